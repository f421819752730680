"""WireMeter: what crosses the wire for the sockets of this process, as the kernel counts it.

What this file leaves to others: opening the sockets (`http.py`, `mqtt.py`), budgets and ledger (`link/`, the agent).

Rules:
- A socket's bytes are what TCP_INFO says that it sent (repeats included) and received, and for each segment either way
  the headers of IP and TCP. Headers of the layers below IP are not counted: they are not known here.
- A socket is watched from its first SYN to its close; the segments of the close itself, which nobody can read any more,
  are booked by the state that the connection was in.
- Safe from any thread: the hub's connection is opened in another one.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import ssl
import struct
import termios
import threading

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
_CLOSING_SEGMENTS = {1: 3, 4: 3, 5: 2, 8: 2, 9: 1, 11: 1}
"""State at the close -> segments that follow: ESTABLISHED two FINs and an answer; CLOSE_WAIT one and its answer; ..."""


class WireMeter:
    """Counts for all sockets that it is told of; one for a whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[int, socket.socket] = {}
        self._closed_bytes = 0

    def watch(self, sock: socket.socket) -> None:
        """Counts `sock` from now on, with all that it has sent and received so far."""
        with self._lock:
            self._live[id(sock)] = sock

    def forget(self, sock: socket.socket) -> None:
        """Takes the last reading of a socket that is about to be closed; again, or of an unknown one: nothing."""
        with self._lock:
            if self._live.pop(id(sock), None) is not None:
                self._closed_bytes += read_wire_bytes(sock, closing=True)

    def get_bytes(self) -> int:
        """Bytes that have crossed the wire so far, both ways, of closed and open connections."""
        with self._lock:
            return self._closed_bytes + sum(read_wire_bytes(sock) for sock in self._live.values())

    def make_socket(self, family: int, kind: int, proto: int) -> socket.socket:
        """A socket that is watched until it is closed."""
        return _MeteredSocket(self, family, kind, proto)

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


class _MeteredSocket(socket.socket):
    """Only its close is known to the one who reads it last; asyncio calls no other hook before."""

    def __init__(self, meter: WireMeter, family: int, kind: int, proto: int) -> None:
        super().__init__(family, kind, proto)
        self._meter = meter
        meter.watch(self)

    def close(self) -> None:
        self._meter.forget(self)
        super().close()


def read_wire_bytes(sock: socket.socket, *, closing: bool = False) -> int:
    """What `sock` has sent and received with its headers; `closing` adds the segments of an orderly close.

    Returns:
        0 for a socket that is closed, is not TCP, or has never been connected.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except OSError as error:
        if error.errno in (errno.EBADF, errno.EOPNOTSUPP, errno.ENOPROTOOPT):
            return 0
        raise
    after = _count_closing_segments(sock, info[0]) if closing else 0
    return _count(info, _IP_HEADER_BYTES.get(socket.AddressFamily(sock.family), 0), after)


def _count_closing_segments(sock: socket.socket, state: int) -> int:
    """Who closes with bytes unread resets the connection (RFC 1122, 4.2.2.13): one segment instead of a farewell."""
    unread = bytearray(4)
    fcntl.ioctl(sock, termios.FIONREAD, unread)
    return 1 if any(unread) else _CLOSING_SEGMENTS.get(state, 0)


def _count(info: bytes, ip_header_bytes: int, closing_segments: int) -> int:
    state, options = _STATE_AND_OPTIONS.unpack_from(info)
    (received,), (sent,), (segments_out, segments_in) = (_unpack(info, one) for one in (_RECEIVED, _SENT, _SEGMENTS))
    segments = segments_out + segments_in + closing_segments
    option_bytes = _TIMESTAMPS_BYTES if options & _OPTION_TIMESTAMPS else 0
    was_open = state not in _NOT_OPEN or received + sent > 0
    syns = min(segments_out, 1) + min(segments_in, 1) if was_open else segments_out
    header_bytes = ip_header_bytes + _TCP_HEADER_BYTES + option_bytes
    return received + sent + segments * header_bytes + syns * (_SYN_OPTIONS_BYTES - option_bytes)


def _unpack(info: bytes, field: tuple[int, struct.Struct]) -> tuple[int, ...]:
    offset, form = field
    return form.unpack_from(info.ljust(_INFO_BYTES, b"\0"), offset)
