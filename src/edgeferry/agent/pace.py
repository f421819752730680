"""Pace: how fast a download comes in, from its latest blocks. Pure.

Rules:
- What counts is the last half minute: a link is not what it was an hour ago.
"""

from __future__ import annotations

from collections import deque

_SPAN_S = 30.0
_SHORTEST_S = 1.0


class Pace:
    """Of one download at a time; `key` names it."""

    def __init__(self) -> None:
        self._key = ""
        self._marks: deque[tuple[float, int]] = deque()

    def note(self, key: str, length_bytes: int, now_s: float) -> None:
        """So many bytes of `key` are here at `now_s` (any monotonic clock)."""
        if key != self._key or (self._marks and length_bytes < self._marks[-1][1]):
            self._key = key
            self._marks.clear()
        self._marks.append((now_s, length_bytes))
        while now_s - self._marks[0][0] > _SPAN_S and len(self._marks) > 2:
            self._marks.popleft()

    def get_bps(self, key: str) -> float:
        """Bits per second, 0 where it cannot be told yet."""
        if key != self._key or not self._marks:
            return 0.0
        (first_s, first_bytes), (last_s, last_bytes) = self._marks[0], self._marks[-1]
        return 8 * (last_bytes - first_bytes) / (last_s - first_s) if last_s - first_s >= _SHORTEST_S else 0.0
