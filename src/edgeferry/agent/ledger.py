"""Ledger: what crossed the wire, by day and kind, in the journal: booked before it is spent, settled after.

What this file leaves to others: counting (`transport/wire_bytes.py`), what may be spent (`link/budget.py`), when to
book and under which kind and day (`gate.py`).

Rules:
- The journal is never behind the wire by more than what came since the last `book`: a kill makes the ledger say at most
  one booking too much, never too little.
- A booking belongs to one day and one kind, and is settled there.
- A write and what is remembered of it are one: a transfer that is cancelled meanwhile ends after both.
- A disk that takes no booking stops the transfer, never the device.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from edgeferry.agent.threads import to_its_end
from edgeferry.storage.journal import Journal

Days = Mapping[str, Mapping[str, int]]
"""Bytes by day (`2026-11-26`) and kind (`http`, `hub`, `free`)."""
BOOKING_BYTES: Final = 64 << 10
"""What is booked ahead of a transfer: the most that may be on its way at once (`transport/http.py`'s window)."""
_AHEAD_MAX_BYTES = 8 << 20


@dataclass(slots=True)
class _Account:
    """One meter: `settled` of its bytes are in the journal for good, `booked` more are there in advance at `place`."""

    meter: Callable[[], int]
    settled: int = 0
    booked: int = 0
    place: tuple[str, str] = ("", "")
    ahead: int = 0
    booked_at_s: float = -1.0

    @property
    def used(self) -> int:
        return self.meter() - self.settled

    def has_booked(self, ahead_bytes: int) -> bool:
        return self.booked - self.used >= max(self.ahead, ahead_bytes) // 2


class Ledger:
    """The ledger of a running device. `meters` count bytes since the process began, by name."""

    def __init__(self, journal: Journal, meters: Mapping[str, Callable[[], int]]) -> None:
        self._journal = journal
        self._accounts = {name: _Account(meter) for name, meter in meters.items()}
        self._days: dict[str, dict[str, int]] = {}
        self._moving = asyncio.Lock()

    async def load(self) -> None:
        """Takes over what earlier processes spent; what they had booked when they were killed counts as spent."""
        self._days = await self._journal.get_ledger()

    async def book(self, name: str, ahead_bytes: int, *, day: str, kind: str) -> bool:
        """Returns when the journal holds what the meter `name` has counted and at least half of `ahead_bytes` more.

        Returns:
            Whether anything was to be written for that.

        Raises:
            StorageError leaves: the journal cannot be written; nothing more may be spent.
        """
        account, place = self._accounts[name], (day, kind)
        if account.place == place and account.has_booked(ahead_bytes) and not self._moving.locked():
            return False
        await to_its_end(self._book(account, ahead_bytes, place))
        return True

    async def settle(self, name: str) -> None:
        """The journal holds what was spent, no more and no less."""
        await to_its_end(self._settle(self._accounts[name]))

    async def _book(self, account: _Account, ahead_bytes: int, place: tuple[str, str]) -> None:
        async with self._moving:
            if account.place != place:
                await self._clear(account)
                account.place = place
            if not account.has_booked(ahead_bytes):
                account.ahead = _get_next_ahead(account, ahead_bytes, now_s=time.monotonic())
                await self._add(account, account.used + account.ahead - account.booked)

    async def _settle(self, account: _Account) -> None:
        async with self._moving:
            await self._clear(account)

    async def _clear(self, account: _Account) -> None:
        used = account.used
        if account.place[0] and used != account.booked:
            await self._add(account, used - account.booked)
        account.settled, account.booked, account.ahead = account.settled + used, 0, 0

    async def _add(self, account: _Account, size_bytes: int) -> None:
        day, kind = account.place
        await self._journal.add_bytes(day, kind, size_bytes)
        kinds = self._days.setdefault(day, {})
        kinds[kind] = kinds.get(kind, 0) + size_bytes
        account.booked += size_bytes

    def get_days(self) -> Days:
        """What was spent by day and kind; what is booked and not spent does not count."""
        days = {day: dict(kinds) for day, kinds in self._days.items()}
        for account in self._accounts.values():
            day, kind = account.place
            if day:
                kinds = days.setdefault(day, {})
                kinds[kind] = kinds.get(kind, 0) - account.booked + account.used
        return days


def _get_next_ahead(account: _Account, ahead_bytes: int, *, now_s: float) -> int:
    """Twice as much where the last booking was spent within a second: a fast link must not wait for a slow disk."""
    quick = 0 <= now_s - account.booked_at_s < 1.0
    account.booked_at_s = now_s
    return max(ahead_bytes, min(_AHEAD_MAX_BYTES, account.ahead * 2)) if quick else ahead_bytes
