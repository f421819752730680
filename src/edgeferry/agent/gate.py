"""Gate: whether this device may use its link now, for how long and for how many bytes; and the account of what it did.

What this file leaves to others: the rules (`link/budget.py`), the account (`ledger.py`), which interface leads out
(`transport/interface.py`), what is transferred (`steps.py`).

Rules:
- Nothing is sent for an update but inside `open`: it refuses with the reason and the time to ask again, ends when the
  window closes, books before the first byte and settles after the last.
- The clock may be wrong: what is asked again is judged again, nothing is remembered here but the policy.
- A policy that changes, an interface, a budget that another spends end what runs: it is judged again with each of them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Final

from edgeferry.agent.ledger import BOOKING_BYTES, Ledger
from edgeferry.errors import BudgetSpent, BudgetTooSmall, LinkError, LinkForbidden, StorageError, WindowClosed
from edgeferry.link.budget import (
    FREE_KIND,
    HUB_KIND,
    LOOK_AGAIN_S,
    Spent,
    Verdict,
    find_renewal,
    get_allowance,
    get_day,
    judge,
    judge_hub,
    read_spent,
)
from edgeferry.link.policy import LinkClass, LinkPolicy

_LOG = logging.getLogger(__name__)
HTTP: Final = "http"
HUB: Final = HUB_KIND
_AROUND_BYTES = 8 << 10
"""Handshakes and heads of one transfer over a fresh connection, rounded up."""
WIRE_FACTOR: Final = 1.07
"""Headers of segments and acknowledgements at a segment size of 1,448 bytes (5.4 %), TLS records, some loss."""
_LEAST_BYTES = _AROUND_BYTES + (4 << 10)
"""A payload that is smaller than what travels around it is not begun."""
_TALK_BYTES = 8 << 10
"""Booked for the hub's connection: more than a twin and its reports; idle, it lasts an hour."""
_LOOK_EVERY_S = 1.0
"""How long a transfer runs on over an interface that it may not use; what the policy says is heard at once."""
_ERRORS: Final[Mapping[str, type[LinkError]]] = MappingProxyType(
    {"window_closed": WindowClosed, "budget_spent": BudgetSpent, "link_forbidden": LinkForbidden}
)
CLOSED: Final = tuple(_ERRORS.values())
"""What `open` raises when the link may not be used: no failure, so no back-off."""


def get_payload_limit(verdict: Verdict) -> int | None:
    """Payload bytes that fit the verdict's allowance with all that travels around them; None: any number."""
    if verdict.allowance_bytes is None:
        return None
    return _get_payload(verdict.allowance_bytes)


def _get_payload(allowance_bytes: int) -> int:
    return max(1, int((allowance_bytes - _AROUND_BYTES) / WIRE_FACTOR))


class Gate:
    """One device's link. `find_interface` names the interface that leads out, '' where it is unknown."""

    def __init__(
        self, ledger: Ledger, *, policy: LinkPolicy, now: Callable[[], float], find_interface: Callable[[], str]
    ) -> None:
        self.ledger = ledger
        self._policy = policy
        self._changed = asyncio.Event()
        self.now = now
        self.find_interface = find_interface

    @property
    def policy(self) -> LinkPolicy:
        """What holds for this device's link; a new one is heard by what runs."""
        return self._policy

    @policy.setter
    def policy(self, policy: LinkPolicy) -> None:
        self._policy = policy
        self._ring()

    def get_spent(self) -> Spent:
        """What counts for the budgets of today and this month."""
        return read_spent(self.ledger.get_days(), self.policy, self.now())

    def get_class(self) -> LinkClass:
        """The class of the link that leads out now."""
        return self.policy.get_class(self.find_interface())

    def judge(self, priority: int = 0, *, least_bytes: int = _LEAST_BYTES) -> Verdict:
        """What the policy says of a transfer of that priority at this moment, `least_bytes` of which are left to go."""
        return judge(
            self.policy,
            self.get_spent(),
            now=self.now(),
            priority=priority,
            interface=self.find_interface(),
            least_bytes=least_bytes,
        )

    def judge_hub(self) -> Verdict:
        """What the policy says of the hub's connection at this moment."""
        return judge_hub(self.policy, self.get_spent(), now=self.now(), interface=self.find_interface())

    @asynccontextmanager
    async def open(self, priority: int = 0) -> AsyncIterator[Verdict]:
        """Lets the block use the link.

        Raises:
            WindowClosed, BudgetSpent, LinkForbidden: not now (`retry_after_s`); in the block too, once that is so.
            StorageError leaves: nothing can be booked.
        """
        verdict = self.judge(priority)
        if not verdict.may_send:
            raise self._make_refusal(verdict)
        try:
            await self.book()
            async with self._hold(lambda: self.judge(priority, least_bytes=1), look_every_s=_LOOK_EVERY_S) as limit:
                yield verdict
            if limit.expired():
                raise self._make_refusal(self.judge(priority))
        finally:
            await self.settle(HTTP)

    @asynccontextmanager
    async def open_hub(self) -> AsyncIterator[None]:
        """Lets the block have the hub's connection; ends it, without an error, when it may not be open any longer."""
        async with self._hold(self.judge_hub, look_every_s=LOOK_AGAIN_S):
            yield

    @asynccontextmanager
    async def _hold(self, judge_now: Callable[[], Verdict], *, look_every_s: float) -> AsyncIterator[asyncio.Timeout]:
        """Cuts the block off when the verdict turns; the limit that it gives tells whether it has."""
        try:
            async with asyncio.timeout(None) as limit:
                watching = asyncio.create_task(self._watch(limit, judge_now, look_every_s))
                try:
                    yield limit
                finally:
                    watching.cancel()
        except TimeoutError:
            if not limit.expired():
                raise

    async def _watch(self, limit: asyncio.Timeout, judge_now: Callable[[], Verdict], look_every_s: float) -> None:
        while not limit.expired():
            verdict = judge_now()
            lasts_s = verdict.closes_at - self.now() if verdict.may_send else 0.0
            limit.reschedule(asyncio.get_running_loop().time() + lasts_s if math.isfinite(lasts_s) else None)
            await self._wait_changed(look_every_s)

    def _make_refusal(self, verdict: Verdict) -> LinkError:
        """The error that says why not, and after how long to ask again."""
        kind = _ERRORS.get(verdict.reason, WindowClosed)
        words = verdict.reason.replace("_", " ") or "window closed"
        error = kind(f"no transfer now: {words}")
        error.retry_after_s = max(0.0, verdict.retry_at - self.now())
        return error

    def make_spent(self, message: str) -> BudgetSpent:
        """The error of a transfer that took what it was allowed and is not whole: when to ask again is in it."""
        error, now = BudgetSpent(message), self.now()
        error.retry_after_s = max(0.0, find_renewal(self.policy, self.get_spent(), now) - now)
        return error

    def make_too_small(self, part: str, needed_bytes: int, left_bytes: int) -> BudgetTooSmall:
        """The error of a part of a transfer that comes at once or is of no use, and that `left_bytes` do not hold."""
        allowance = get_allowance(self.policy, Spent())
        day_bytes = left_bytes if allowance is None else _get_payload(allowance)
        words = "and no other day more than" if needed_bytes > day_bytes else "and another day"
        error = BudgetTooSmall(
            f"expected a budget for {part}, {needed_bytes} bytes; today's holds {left_bytes}, {words} {day_bytes}",
            needed_bytes=needed_bytes,
            day_bytes=day_bytes,
        )
        error.retry_after_s = self.make_spent(error.message).retry_after_s
        return error

    async def wait_hub_open(self) -> None:
        """Returns once the hub's connection may be open."""
        while not (verdict := self.judge_hub()).may_send:
            await self._wait_changed(min(max(0.0, verdict.retry_at - self.now()), LOOK_AGAIN_S))

    async def _wait_changed(self, longest_s: float) -> None:
        """Returns when the policy has changed or something was booked, after `longest_s` in any case."""
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._changed.wait()

    def _ring(self) -> None:
        """Wakes all who wait for a change, each once."""
        self._changed.set()
        self._changed = asyncio.Event()

    # --- the account --------------------------------------------------------------------------------------------------
    async def book(self) -> None:
        """Books the next bytes of a transfer, where fewer than half a booking are left."""
        await self._book(HTTP, BOOKING_BYTES)

    async def book_talk(self) -> None:
        """The same for the hub's connection, which speaks whenever it likes."""
        await self._book(HUB, _TALK_BYTES)

    async def _book(self, name: str, ahead_bytes: int) -> None:
        kind = FREE_KIND if self.get_class() == "free" else name
        if await self.ledger.book(name, ahead_bytes, day=get_day(self.policy, self.now()), kind=kind):
            self._ring()

    async def settle(self, name: str) -> None:
        """Writes what was spent in place of what was booked."""
        try:
            await self.ledger.settle(name)
        except StorageError as error:  # the booking stands: the ledger says too much, never too little
            _LOG.warning("the ledger is not settled: %s", error.message)
