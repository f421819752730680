"""shared_bodies: memory that the main process and one worker both map: a body is written there once and read in place.

What this file leaves to others: which request a body belongs to (`line.py`, `wire/worker_frames.py`).

Rules:
- First fit from the start: small bodies use the same few pages again and again.
- A place is given back when the worker has replied, never before: it may still be reading.
- Pages beyond the first KEPT_BYTES go back to the system with the body that needed them.
- Where no such memory can be had (a limit on the size of files counts for it too) every body goes over the socket.
- The main process never reads here: a worker that runs a hostile model may write what it likes.
"""

from __future__ import annotations

import mmap
import os
from bisect import insort
from collections.abc import Sequence

from edgeferry.runtime.blocks import Part

SIZE_BYTES = 64 << 20
LEAST_BYTES = 16 << 10
"""A smaller body goes over the socket as fast."""
KEPT_BYTES = 1 << 20
_PAGE_BYTES = mmap.PAGESIZE

Place = tuple[int, int]
"""Offset and size of a body, bytes."""


class SharedBodies:
    """The main process's side. `fd` is handed to the worker; -1 where there is no such memory."""

    def __init__(self) -> None:
        self.fd, self._map = _make_memory()
        self._taken: list[Place] = []

    def put(self, parts: Sequence[Part]) -> Place | None:
        """Writes a body, given in parts; None where it is small or there is no room: it is to be sent."""
        size = sum(len(part) for part in parts)
        offset = self._find_gap(size) if size >= LEAST_BYTES else None
        if self._map is None or offset is None:
            return None
        at = offset
        for part in parts:
            self._map[at : at + len(part)] = part
            at += len(part)
        place = (offset, size)
        insort(self._taken, place)
        return place

    def give_back(self, place: Place) -> None:
        """The worker has replied: the place is free."""
        self._taken.remove(place)
        start, end = max(place[0], KEPT_BYTES), _round_up(sum(place))
        if end > start and self._map is not None:
            self._map.madvise(mmap.MADV_REMOVE, start, end - start)

    def close(self) -> None:
        """The worker has ended. Safe to call twice."""
        if self._map is not None:
            self._map.close()
            os.close(self.fd)
            self._map = None

    def _find_gap(self, size: int) -> int | None:
        at = 0
        for offset, taken in self._taken:
            if offset - at >= size:
                return at
            at = _round_up(offset + taken)
        return at if SIZE_BYTES - at >= size else None


def _make_memory() -> tuple[int, mmap.mmap | None]:
    try:
        fd = os.memfd_create("edgeferry-bodies", os.MFD_CLOEXEC)
    except OSError:
        return -1, None
    try:
        os.ftruncate(fd, SIZE_BYTES)
        return fd, mmap.mmap(fd, SIZE_BYTES)
    except OSError:
        os.close(fd)
        return -1, None


def open_shared_bodies(fd: int) -> memoryview:
    """The worker's side: all of it, to be read only; nothing where there is none."""
    if fd < 0:
        return memoryview(b"")
    shared = mmap.mmap(fd, SIZE_BYTES, prot=mmap.PROT_READ)
    os.close(fd)
    return memoryview(shared)


def _round_up(size: int) -> int:
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES
