"""WireMeter: what crosses the wire for the sockets of this process, as the kernel counts it.

What this file leaves to others: opening the sockets (`http.py`, `mqtt.py`), budgets and ledger (`link/`, the agent).

Rules:
- A socket's bytes are what TCP_INFO says that it sent (repeats included) and received, and for each segment either way
  the headers of IP and TCP. Headers of the layers below IP are not counted: they are not known here.
- A socket is watched from its first SYN to its last FIN: its connection is held here, shut down, until both sides have
  said goodbye. A few are held at once; the oldest gives way.
- Safe from any thread: the hub's connection is opened in another one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import struct
import sys
import termios
import threading
from collections import deque

_IP_HEADER_BYTES = {socket.AF_INET: 20, socket.AF_INET6: 40}
_TCP_HEADER_BYTES = 20
_TIMESTAMPS_BYTES = 12
_SYN_OPTIONS_BYTES = 20
"""MSS, SACK permitted, timestamps and window scale, as Linux sends them in a SYN (RFC 9293, 7323, 2018)."""
_INFO_BYTES = 256
_STATE_AND_OPTIONS = struct.Struct("=B4xB")
_RECEIVED, _SEGMENTS, _SENT = (128, struct.Struct("=Q")), (136, struct.Struct("=II")), (200, struct.Struct("=Q"))
"""Offsets in `struct tcp_info` of linux/tcp.h: bytes_received; segs_out and segs_in; bytes_sent (Linux 4.19)."""
_OPTION_TIMESTAMPS = 1
_NOT_OPEN = frozenset({2, 7})
"""SYN_SENT and CLOSE: of a connection that carried no byte, one that was never answered, or refused."""
_CLOSED = 7
_HELD_MAX = 8


class WireMeter:
    """Counts for all sockets that it is told of; one for a whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[int, socket.socket] = {}
        self._leaving: deque[socket.socket] = deque()
        self._closed_bytes = 0

    def watch(self, sock: socket.socket) -> None:
        """Counts `sock` from now on, with all that it has sent and received so far."""
        with self._lock:
            self._live[id(sock)] = sock

    def forget(self, sock: socket.socket) -> None:
        """Ends the connection of a socket that is about to be closed; again, or of an unknown one: nothing."""
        with self._lock:
            if self._live.pop(id(sock), None) is None:
                return
            if _count_unread(sock):  # its close resets the connection (RFC 1122, 4.2.2.13), and nothing follows
                self._closed_bytes += read_wire_bytes(sock, more_segments=1)
            elif (leaving := _shut_down(sock)) is not None:
                self._leaving.append(leaving)
            else:
                self._closed_bytes += read_wire_bytes(sock)
            self._settle()

    def get_bytes(self) -> int:
        """Bytes that have crossed the wire so far, both ways, of closed and open connections."""
        with self._lock:
            self._settle()
            return self._closed_bytes + sum(map(read_wire_bytes, (*self._live.values(), *self._leaving)))

    def _settle(self) -> None:
        """Lets go of connections that have ended, and of the oldest where too many end slowly."""
        ended = [sock for sock in self._leaving if _get_state(sock) == _CLOSED]
        ended += [sock for sock in self._leaving if sock not in ended][: len(self._leaving) - len(ended) - _HELD_MAX]
        for sock in ended:
            self._leaving.remove(sock)
            self._closed_bytes += read_wire_bytes(sock)
            sock.close()

    def meter_tls(self, context: ssl.SSLContext) -> ssl.SSLContext:
        """Makes every blocking connection of `context` a watched one, from its handshake on."""
        meter = self

        class MeteredTlsSocket(ssl.SSLSocket):
            def do_handshake(self, block: bool = False) -> None:
                meter.watch(self)
                try:
                    super().do_handshake(block)
                except BaseException:  # nobody else closes what has not come to be
                    self.close()
                    raise

            def close(self) -> None:
                meter.forget(self)
                super().close()

        context.sslsocket_class = MeteredTlsSocket
        return context


def read_wire_bytes(sock: socket.socket, *, more_segments: int = 0) -> int:
    """What `sock` has sent and received with its headers, and `more_segments` without payload.

    Returns:
        0 for a socket that is closed, is not TCP, or has never been connected.
    """
    info = _read_info(sock)
    return _count(info, _IP_HEADER_BYTES[socket.AddressFamily(sock.family)], more_segments) if info else 0


def _read_info(sock: socket.socket) -> bytes:
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES).ljust(_INFO_BYTES, b"\0")
    except OSError as error:
        if error.errno in (errno.EBADF, errno.EOPNOTSUPP, errno.ENOPROTOOPT):
            return b""
        raise


def _get_state(sock: socket.socket) -> int:
    return (_read_info(sock) or bytes([_CLOSED]))[0]


def _count_unread(sock: socket.socket) -> int:
    """Bytes that the kernel holds for the reader; 0 for a socket that is closed."""
    unread = bytearray(4)
    try:
        fcntl.ioctl(sock, termios.FIONREAD, unread)
    except (OSError, ValueError):
        return 0
    return int.from_bytes(unread, sys.byteorder)


def _shut_down(sock: socket.socket) -> socket.socket | None:
    """The connection, shut down, under a number of its own; None where there is none any more."""
    try:
        leaving = socket.socket(fileno=os.dup(sock.fileno()))
    except (OSError, ValueError):
        return None
    try:
        leaving.shutdown(socket.SHUT_RDWR)
    except OSError:  # not connected, or not any more
        leaving.close()
        return None
    return leaving


def _count(info: bytes, ip_header_bytes: int, more_segments: int) -> int:
    state, options = _STATE_AND_OPTIONS.unpack_from(info)
    (received,), (sent,), (segments_out, segments_in) = (_unpack(info, one) for one in (_RECEIVED, _SENT, _SEGMENTS))
    option_bytes = _TIMESTAMPS_BYTES if options & _OPTION_TIMESTAMPS else 0
    was_open = state not in _NOT_OPEN or received + sent > 0
    syns = min(segments_out, 1) + min(segments_in, 1) if was_open else segments_out
    header_bytes = ip_header_bytes + _TCP_HEADER_BYTES + option_bytes
    segments = segments_out + segments_in + more_segments
    return received + sent + segments * header_bytes + syns * (_SYN_OPTIONS_BYTES - option_bytes)


def _unpack(info: bytes, field: tuple[int, struct.Struct]) -> tuple[int, ...]:
    offset, form = field
    return form.unpack_from(info, offset)
