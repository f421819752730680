"""What the device says of itself: a view for people and APIs, and the compact record in the twin.

What this file leaves to others: sending (`hub_link.py`), the rows it is a view of (`lane.py`).

Rules:
- A view of rows and refs, made anew each time; nothing is counted or remembered here but what was told last.
- Under 512 bytes in the twin: where it is longer, advice goes first, then messages, progress and shadow, whole errors.
- At state changes, those of a moment in one; the slower the link, the longer is a moment.
- For progress alone after N seconds, then after twice as many each time, to a quarter of an hour: the longer a download
  takes, the less there is to say about each minute. That a download waits, goes on and waits again is progress too:
  each of it is news once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec

from edgeferry.agent.record import UpdateRecord
from edgeferry.errors import EdgeferryError, ServerBusy
from edgeferry.link.forecast import PROGRESS_MAX_S, get_gather_s
from edgeferry.link.policy import LinkPolicy
from edgeferry.twin.contract import REPORTED_RECORD_MAX_BYTES, SECTION
from edgeferry.twin.document import make_patch
from edgeferry.twin.status import DeviceStatus, ModelStatus

CLASSIC_NAME = "LatestAIModelFileName"
_MESSAGE_MAX_CHARS = 90
_ADVICE_MAX_CHARS = 90
_REPORT_BYTES = 1500
"""A report of 512 bytes, its topic, its answers and their headers, on the wire, rounded up."""
_MOVING = frozenset({"RESOLVING", "DOWNLOADING", "WAITING"})
_SHORTER: tuple[tuple[str, ...], ...] = (
    (),
    ("advice",),
    ("advice", "message"),
    ("advice", "message", "progress", "shadow"),
)


def make_model_status(
    model: str, record: UpdateRecord | None, *, active: str, previous: str, here_bytes: int
) -> ModelStatus:
    """The view of one model; `here_bytes` of its current artifact have come."""
    done, total = _count_bytes(record, here_bytes) if record is not None else (0, 0)
    if record is None:
        return ModelStatus(model=model, active=active, previous=previous, state="ACTIVE" if active else "")
    return ModelStatus(
        model=model,
        active=active,
        previous=previous,
        target=record.version,
        state=record.state,
        progress=round(done / total, 2) if total else 0.0,
        done_bytes=done,
        total_bytes=total,
        retry_at=record.retry_at,
        error=msgspec.to_builtins(record.fault) if record.fault else None,
        shadow=msgspec.to_builtins(record.shadow) if record.shadow else None,
    )


def _count_bytes(record: UpdateRecord, here_bytes: int) -> tuple[int, int]:
    """Bytes of the downloads that have come, and of all of them; (0, 0) where nobody announced a size."""
    total = sum(one.size for one in record.artifacts)
    return min(total, sum(one.size for one in record.artifacts[: record.index]) + here_bytes), total


def get_report_every_s(policy: LinkPolicy, every_s: float) -> float:
    """Seconds between reports of progress: as told, or more, so that a day of them stays in its share of the budget."""
    days = [policy.day_bytes, policy.month_bytes / 31]
    share = min((size * policy.report_share for size in days if size), default=0.0)
    return max(every_s, 86_400 * _REPORT_BYTES / share) if share else every_s


def make_reported(view: DeviceStatus) -> dict[str, Any]:
    """The reported properties of this device: the guide's one, and our section, in at most 512 bytes of JSON."""
    reported: dict[str, Any] = {CLASSIC_NAME: view.latest_file} if view.latest_file else {}
    for left_out in _SHORTER:
        reported[SECTION] = _make_section(view, left_out)
        if len(msgspec.json.encode(reported)) <= REPORTED_RECORD_MAX_BYTES:
            return reported
    reported[SECTION] = {"observed": view.observed, "models": {one.model: {"state": one.state} for one in view.models}}
    return reported


def _make_section(view: DeviceStatus, left_out: tuple[str, ...]) -> dict[str, Any]:
    section: dict[str, Any] = {
        "observed": view.observed,
        "models": {one.model: _make_model(one, left_out) for one in view.models},
        "ledger": {"day": view.ledger.day_bytes, "month": view.ledger.month_bytes},
        "disk": {"free_mb": view.disk_free_bytes >> 20},
        "agent": view.agent_version,
    }
    if view.problem is not None:
        section["error"] = _shorten(view.problem, left_out)
    return section


def _make_model(view: ModelStatus, left_out: tuple[str, ...]) -> dict[str, Any]:
    entry: dict[str, Any] = {"active": view.active, "target": view.target, "state": view.state}
    if view.state in _MOVING and "progress" not in left_out:
        entry["progress"] = view.progress
    if view.shadow is not None and "shadow" not in left_out:
        entry["shadow"] = view.shadow
    if view.error is not None:
        entry["error"] = _shorten(view.error, left_out)
    return {key: value for key, value in entry.items() if value != ""}


def _shorten(error: Mapping[str, str], left_out: tuple[str, ...]) -> dict[str, str]:
    limits = {"code": 64, "message": _MESSAGE_MAX_CHARS, "advice": _ADVICE_MAX_CHARS}
    return {key: error[key][:limit] for key, limit in limits.items() if key in error and key not in left_out}


def make_problem(place: str, error: EdgeferryError) -> dict[str, str]:
    """A desired property that cannot be followed, as the twin and the status show it."""
    message = error.message if error.message.startswith(place) else f"{place}: {error.message}"
    return {"code": error.code, "message": message[:300], "advice": error.advice}


class Reporter:
    """Says what has changed, when it is time to. `view` makes the view of this moment."""

    def __init__(self, view: Callable[[], DeviceStatus], *, every_s: float) -> None:
        self._view = view
        self.every_s = every_s
        self._gather_s = get_gather_s(0.0)
        self._news = _News()
        self._changed = asyncio.Event()
        self._progressed = asyncio.Event()

    def note_change(self) -> None:
        """A state has changed: to be said in a moment."""
        self._changed.set()

    def note_progress(self) -> None:
        """Bytes have come: to be said when `every_s` have passed."""
        self._progressed.set()

    async def run(self, reported: Mapping[str, Any], send: Callable[[dict[str, Any]], Awaitable[object]]) -> None:
        """Says what differs from `reported` (as the hub holds it), now and for ever; ends with what `send` raises.

        A hub that is busy is told what is true then, later.
        """
        told, every_s = {key: reported[key] for key in (CLASSIC_NAME, SECTION) if key in reported}, self.every_s
        while True:
            await asyncio.sleep(self._gather_s)  # states follow each other quickly: one report for several
            self._changed.clear()
            self._progressed.clear()
            view = self._view()
            changed, wanted = self._news.take(view), make_reported(view)
            patch = make_patch(told, wanted)
            if patch:
                began_s = time.monotonic()
                try:
                    await send(patch)
                except ServerBusy as error:  # it wants to hear less: what is true then is said later
                    self._gather_s = max(min(max(1.0, self._gather_s * 2), PROGRESS_MAX_S), error.retry_after_s or 0.0)
                    continue
                told = wanted
                self._gather_s = get_gather_s(time.monotonic() - began_s)
            every_s = self.every_s if changed else min(every_s * 2, max(self.every_s, PROGRESS_MAX_S))
            await self._wait(every_s)

    async def _wait(self, every_s: float) -> None:
        """Returns at news; for what is none, not before `every_s`."""
        try:
            async with asyncio.timeout(every_s):
                while not self._news.has_come(self._view()):
                    self._changed.clear()
                    await self._changed.wait()
                    self._progressed.set()
        except TimeoutError:
            if not self._changed.is_set():
                await _wait_any(self._changed, self._progressed)


class _News:
    """What was said of each model since it last did something else than move or wait, and of the device."""

    def __init__(self) -> None:
        self._said: dict[str, set[tuple[str, ...]]] = {}

    def has_come(self, view: DeviceStatus) -> bool:
        """Whether the view shows what was not said."""
        return any(mark not in self._said.get(name, ()) for name, mark in _list_marks(view))

    def take(self, view: DeviceStatus) -> bool:
        """The same; now it is said."""
        has_come = self.has_come(view)
        moving = {one.model for one in view.models if one.state in _MOVING}
        for name, mark in _list_marks(view):
            self._said[name] = {*(self._said.get(name, ()) if name in moving else ()), mark}
        return has_come


def _list_marks(view: DeviceStatus) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "", (str(view.observed), (view.problem or {}).get("message", ""), view.latest_file)
    for one in view.models:
        code = (one.error or {}).get("code", "")
        yield one.model, (one.active, one.previous, one.target, one.state, code)


async def _wait_any(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
