"""What the device says of itself: a view for people and APIs, and the compact record in the twin.

What this file leaves to others: sending (`hub_link.py`), the rows it is a view of (`lane.py`).

Rules:
- A view of rows and refs, made anew each time; nothing is counted or remembered here but what was told last.
- Under 512 bytes in the twin: where it is longer, advice goes first, then messages, progress, whole errors.
- At state changes, those of a second in one; for progress alone at most every N seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from edgeferry.agent.record import UpdateRecord
from edgeferry.errors import EdgeferryError
from edgeferry.link.policy import LinkPolicy
from edgeferry.twin.contract import REPORTED_RECORD_MAX_BYTES, SECTION
from edgeferry.twin.document import make_patch
from edgeferry.twin.status import DeviceStatus, ModelStatus

CLASSIC_NAME = "LatestAIModelFileName"
_MESSAGE_MAX_CHARS = 90
_ADVICE_MAX_CHARS = 90
_REPORT_BYTES = 1500
"""A report of 512 bytes, its topic, its answers and their headers, on the wire, rounded up."""
_SHORTER: tuple[tuple[str, ...], ...] = ((), ("advice",), ("advice", "message"), ("advice", "message", "progress"))


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
    if view.state in ("RESOLVING", "DOWNLOADING", "WAITING") and "progress" not in left_out:
        entry["progress"] = view.progress
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

    def __init__(self, view: Callable[[], DeviceStatus], *, every_s: float, gather_s: float) -> None:
        self._view = view
        self.every_s = every_s
        self._gather_s = gather_s
        self._changed = asyncio.Event()
        self._progressed = asyncio.Event()

    def note_change(self) -> None:
        """A state has changed: to be said within a second."""
        self._changed.set()

    def note_progress(self) -> None:
        """Bytes have come: to be said when `every_s` have passed."""
        self._progressed.set()

    async def run(self, reported: Mapping[str, Any], send: Callable[[dict[str, Any]], Awaitable[object]]) -> None:
        """Says what differs from `reported` (as the hub holds it), now and for ever; ends with what `send` raises."""
        told = {key: reported[key] for key in (CLASSIC_NAME, SECTION) if key in reported}
        while True:
            self._changed.clear()
            self._progressed.clear()
            wanted = make_reported(self._view())
            patch = make_patch(told, wanted)
            if patch:
                await send(patch)
                told = wanted
            await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self.every_s):
                await self._changed.wait()
                await asyncio.sleep(self._gather_s)  # states follow each other quickly: one report for several
        except TimeoutError:
            if not self._changed.is_set():
                await _wait_any(self._changed, self._progressed)


async def _wait_any(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
