"""Which network interface leads to the outside: what classes of link are told apart by.

What an interface may be used for is `link/policy.py`'s.

Rules:
- Nothing is sent: a datagram socket that is connected makes the kernel choose a route, and names its own end.
- What cannot be found out is '': the policy then has only its general class.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from pathlib import Path

_OUTSIDE = ("192.0.2.1", "2001:db8::1")
"""Addresses for documentation (RFC 5737, RFC 3849): what the default route leads to."""
_PORT = 9
_SIOCGIFADDR = 0x8915  # linux/sockios.h
_IFREQ_BYTES = 256
_IF_INET6 = Path("/proc/net/if_inet6")


def find_interface(host: str = "") -> str:
    """The name of the interface that leads to `host` (an IP address; any other host: the default route), or ''."""
    for address in (host, *_OUTSIDE):
        own = _find_own_address(address)
        if own:
            return _find_by_ipv6(own) if ":" in own else _find_by_ipv4(own)
    return ""


def _find_own_address(address: str) -> str:
    """Our end of a route to `address`, '' where there is none or it is no address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.inet_pton(family, address)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _PORT))
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return ""


def _find_by_ipv4(own: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack(f"{_IFREQ_BYTES}s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an address of this kind
            if socket.inet_ntoa(answer[20:24]) == own:
                return name
    return ""


def _find_by_ipv6(own: str) -> str:
    try:
        lines = _IF_INET6.read_text("ascii").splitlines()
    except OSError:
        return ""
    wanted = socket.inet_pton(socket.AF_INET6, own).hex()
    return next((line.split()[-1] for line in lines if line.startswith(wanted)), "")
