"""ThinSocket: a TCP socket that has little under way, so that a kill loses little; on a fast link it lets go.

What this file leaves to others: what the bytes are (`http.py`), counting them (`wire_bytes.py`).

Rules:
- What a server has sent and we have not kept lies in the network, in the kernel and in the reader's buffers: together
  at most a chunk of 64 KB on a slow link, also where a reader takes its time. SO_RCVBUF bounds the kernel's share, and
  reading in small blocks the reader's.
- The window follows the link: twice of what is on its way in one round trip, for that fills it. A link that brings more
  for a second is fast, and the kernel chooses for as long as it is.
- The window never shrinks below what the thinnest link needs.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from edgeferry.transport.wire_bytes import WireMeter

WINDOW_START_BYTES = 16 << 10
WINDOW_MIN_BYTES = 12 << 10
WINDOW_MAX_BYTES = 40 << 10
"""A kernel grants up to 1.3 times as much, for segments of 1,448 bytes (it counts memory: 2,304 bytes for each)."""
SLOW_BYTES_PER_S = 640_000 // 8
"""Up to here a chunk counts. A window of 40 KB brings more over a round trip of 0.5 s: it is never what holds back."""
FAST_BYTES_PER_S = 4_000_000 // 8
_BLOCK_BYTES = 4 << 10
_MEASURE_S = 0.5
_SO_BUF_LOCK = 72
"""asm-generic/socket.h, Linux 5.15: 0 gives the buffers back to the kernel's own tuning."""
_UNTUNED_BYTES = 4 << 20
_MIN_RTT = (148, struct.Struct("=I"))
"""tcpi_min_rtt in `struct tcp_info` of linux/tcp.h, microseconds; all ones where there is none."""


def choose_window(bytes_per_s: float, rtt_s: float) -> int | None:
    """The window for a link that brought `bytes_per_s`, with a round trip of `rtt_s` where nothing queues.

    A window that is the limit itself brings its own size in one round trip and is doubled; a link that is the limit
    has twice its bandwidth-delay product, half of it for what is being acknowledged and repeated.

    Returns:
        None for a fast link: it needs no bound.
    """
    wanted = int(2 * bytes_per_s * rtt_s)
    if bytes_per_s > FAST_BYTES_PER_S or (bytes_per_s > SLOW_BYTES_PER_S and wanted > WINDOW_MAX_BYTES):
        return None
    return min(max(wanted, WINDOW_MIN_BYTES), WINDOW_MAX_BYTES)


class ThinSocket(socket.socket):
    """Made by `open_thin_socket`. `window_bytes` is None once the link has proven fast."""

    window_bytes: int | None = None
    _on_close: Callable[[socket.socket], None] | None = None
    _began_at = 0.0
    _taken_bytes = 0
    _rtt_s = 0.0
    _was_fast = False

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """At most a small block while the window is small."""
        data = super().recv(bufsize if self.window_bytes is None else min(bufsize, _BLOCK_BYTES), flags)
        self._note(len(data))
        return data

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:  # type: ignore[override] # what asyncio has
        """As `recv`."""
        wanted = nbytes or len(buffer)
        size = super().recv_into(buffer, wanted if self.window_bytes is None else min(wanted, _BLOCK_BYTES), flags)
        self._note(size)
        return size

    def close(self) -> None:
        """Closes, once its last reading is taken."""
        if self._on_close is not None:
            self._on_close(self)
        super().close()

    def set_window(self, window_bytes: int | None) -> None:
        """Bounds what may be under way to about `window_bytes`; None: as the kernel likes."""
        if window_bytes == self.window_bytes:
            return
        self.window_bytes = window_bytes
        if window_bytes is not None:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
            self._set_clamp(window_bytes * 2)
            return
        self._set_clamp(1 << 30)
        try:
            self.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)
        except OSError:  # an older kernel: large once and for all
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UNTUNED_BYTES)

    def _set_clamp(self, size_bytes: int) -> None:
        """A kernel keeps the first window as the largest; set before the connection it would bound the scale."""
        if self._began_at:
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, size_bytes)

    def _note(self, size_bytes: int) -> None:
        """Measures in turns of some round trips; a turn with a pause in it, between two answers, tells nothing."""
        self._taken_bytes += size_bytes
        now, turn_s = time.monotonic(), max(_MEASURE_S, 2 * self._rtt_s)
        elapsed_s = now - self._began_at
        if elapsed_s < turn_s:
            return
        self._rtt_s = self._read_rtt_s()
        if elapsed_s < 2 * turn_s:
            self._adapt(choose_window(self._taken_bytes / elapsed_s, self._rtt_s))
        self._began_at, self._taken_bytes = now, 0

    def _adapt(self, chosen_bytes: int | None) -> None:
        """One fast turn proves nothing: a bucket that was full makes one, too."""
        is_fast = chosen_bytes is None
        if self._was_fast or not is_fast:
            self.set_window(chosen_bytes)
        self._was_fast = is_fast

    def _read_rtt_s(self) -> float:
        offset, form = _MIN_RTT
        info = self.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256).ljust(256, b"\0")
        microseconds = int(form.unpack_from(info, offset)[0])
        return 0.0 if microseconds == 0xFFFFFFFF else microseconds / 1e6


def open_thin_socket(family: int, kind: int, proto: int, *, meter: WireMeter | None = None) -> ThinSocket:
    """A socket before its connection, with a small window, that `meter` counts until it is closed."""
    sock = ThinSocket(family, kind, proto)
    sock.set_window(WINDOW_START_BYTES)
    if meter is not None:
        meter.watch(sock)
        sock._on_close = meter.forget
    return sock
