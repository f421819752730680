"""ThinSocket: a TCP socket that has little under way, so that a kill loses little; on a fast link it lets go.

What this file leaves to others: what the bytes are (`http.py`), counting them (`wire_bytes.py`).

Rules:
- What a server has sent and we have not kept lies in the network, in the kernel and in the reader's buffers: together
  at most a chunk of 64 KB on a slow link, also where a reader takes its time. SO_RCVBUF bounds the kernel's share, and
  reading in small blocks the reader's.
- The window follows the link: three times what is on its way in one round trip fills it, and goes on while a loss is
  made good. It grows at once and shrinks slowly: a turn with a loss brings little. A reader that lags gets less.
- A link that brings more for a second is fast, and the kernel chooses for as long as it is.
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
WINDOW_MAX_BYTES = 60 << 10
"""With a block that is being kept, a chunk."""
LAGGING_MAX_BYTES = 24 << 10
"""For a reader that seldom reads all that is here: its own buffers are full, too."""
_LAGGING_SHARE = 0.6
SLOW_BYTES_PER_S = 640_000 // 8
"""Up to here a chunk counts. A window of 60 KB brings more over a round trip of 0.7 s: it is never what holds back."""
FAST_BYTES_PER_S = 4_000_000 // 8
_BLOCK_BYTES = 4 << 10
_MEASURE_S = 0.5
_SHRINK = 0.95
_NEAR_S = 0.02
_SO_BUF_LOCK = 72
"""asm-generic/socket.h, Linux 5.15: 0 gives the buffers back to the kernel's own tuning."""
_UNTUNED_BYTES = 4 << 20
_MIN_RTT = (148, struct.Struct("=I"))
"""tcpi_min_rtt in `struct tcp_info` of linux/tcp.h, microseconds; all ones where there is none."""


def choose_window(bytes_per_s: float, rtt_s: float, *, lags: bool = False) -> int | None:
    """The window for a link that brought `bytes_per_s`, with a round trip of `rtt_s` where nothing queues.

    A window that is the limit itself brings its own size in one round trip, and is tripled; a link that is the limit
    has three times its bandwidth-delay product. A link whose server is near is not thin, and needs no smallest window.

    Returns:
        None for a fast link: it needs no bound. A reader that `lags` behind the link gets little.
    """
    wanted = int(3 * bytes_per_s * rtt_s)
    if bytes_per_s > FAST_BYTES_PER_S:
        return None
    if lags:
        return min(max(wanted, WINDOW_MIN_BYTES), LAGGING_MAX_BYTES)
    if bytes_per_s > SLOW_BYTES_PER_S and wanted > WINDOW_MAX_BYTES:
        return None
    return min(max(wanted, WINDOW_MIN_BYTES if rtt_s > _NEAR_S else LAGGING_MAX_BYTES), WINDOW_MAX_BYTES)


class ThinSocket(socket.socket):
    """Made by `open_thin_socket`. `window_bytes` is None once the link has proven fast."""

    window_bytes: int | None = None
    _on_close: Callable[[socket.socket], None] | None = None
    _began_at = 0.0
    _taken_bytes = 0
    _rtt_s = 0.0
    _was_fast = False
    _was_lagging = False
    _reads = 0
    _short_reads = 0

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """At most a small block while the window is small."""
        wanted = self._limit(bufsize)
        data = super().recv(wanted, flags)
        self._note(len(data), wanted)
        return data

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:  # type: ignore[override] # what asyncio has
        """As `recv`."""
        wanted = self._limit(nbytes or len(buffer))
        size = super().recv_into(buffer, wanted, flags)
        self._note(size, wanted)
        return size

    def _limit(self, wanted: int) -> int:
        return wanted if self.window_bytes is None else min(wanted, _BLOCK_BYTES)

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
            self._set_clamp(window_bytes)
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

    def _note(self, size_bytes: int, wanted_bytes: int) -> None:
        """Measures in turns of a round trip or more; a turn with a pause in it, between two answers, tells nothing."""
        self._taken_bytes += size_bytes
        self._reads += 1
        self._short_reads += size_bytes < wanted_bytes
        now, turn_s = time.monotonic(), max(_MEASURE_S, self._rtt_s)
        elapsed_s = now - self._began_at
        if elapsed_s < turn_s:
            return
        self._rtt_s = self._read_rtt_s()
        if elapsed_s < 2 * turn_s:
            lags = self._short_reads < _LAGGING_SHARE * self._reads
            self._adapt(choose_window(self._taken_bytes / elapsed_s, self._rtt_s, lags=lags), lags=lags)
        self._began_at, self._taken_bytes, self._reads, self._short_reads = now, 0, 0, 0

    def _adapt(self, chosen_bytes: int | None, *, lags: bool) -> None:
        """One turn proves nothing: a bucket that was full makes it fast, a loss that is made good makes it lag."""
        is_sure = not lags or self._was_lagging
        self._was_lagging = lags
        if chosen_bytes is not None and is_sure:
            kept_bytes = 0 if lags else int((self.window_bytes or 0) * _SHRINK)
            self.set_window(max(chosen_bytes, kept_bytes))
        elif chosen_bytes is None and self._was_fast:
            self.set_window(None)
        self._was_fast = chosen_bytes is None

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
