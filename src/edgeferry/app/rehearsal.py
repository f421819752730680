"""A rehearsal: an update played on this machine over a link in user space, with a real device, before a fleet takes it.

What this file leaves to others: what is played and its forecast (`rehearsal_plan.py`), hub and link
(`rehearsal_stage.py`).

Rules:
- All in one process, without root: a hub that serves the repository, a relay that is the link, a device on a temporary
  folder. Only the device's workers and patching have processes of their own, as always.
- The device reaches hub and blobs only through the link. It first gets the version that it is to come from at full
  speed, and is started anew, so that the update meets no connection but the hub's.
- The device's own API does not cross the link: it is asked once a second, as an application there would.
- A relay repeats nothing: where a link loses packets, it has the rate that one TCP connection makes of it.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgeferry.agent.machine import State
from edgeferry.agent.record import Artifact, read_record_bytes
from edgeferry.app.demo import Loop
from edgeferry.app.device import RunningDevice, get_repository, open_device
from edgeferry.app.rehearsal_plan import RehearsalPlan, get_route
from edgeferry.app.rehearsal_stage import Rehearsal, Stage, open_stage
from edgeferry.config import Role
from edgeferry.errors import ConfigInvalid, EdgeferryError, InvariantBroken, LinkError, find_leaves
from edgeferry.link.forecast import Forecast
from edgeferry.storage.journal import open_journal
from edgeferry.transport.http import HttpSettings, open_http
from edgeferry.twin.status import ModelStatus

LONG_S = 30 * 60.0
"""A rehearsal takes as long as the update; one that takes longer must be asked for."""
_PREPARE_TIMEOUT_S = 300.0
_PATIENCE = 3.0
_PATIENCE_MORE_S = 120.0
"""How much longer than the forecast an update may take: so many times, and so much more."""
_POLL_S = 0.1
_ASK_EVERY_S = 1.0
_QUIET_S = 1.0
_SETTLE_S = 15.0
_FAILURES_MAX = 10
_OVER = frozenset({State.ACTIVE, State.REJECTED, State.FAILED, State.ROLLED_BACK})
_ON_LINK = ("", State.RESOLVING, State.DOWNLOADING, State.WAITING)
_FETCHED = frozenset({State.PROVING, State.SWITCHING, State.PROBATION, State.ACTIVE})
_CODES = {leaf.code: leaf for leaf in find_leaves()}
Progress = Callable[[float, str], None]
"""Called with a share 0..1 and a line of words while the update runs."""


class ForecastFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What `forecast` had said, and the seconds of all cuts."""

    payload_bytes: int
    wire_bytes: int
    transfer_s: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and what had been forecast. Bytes; seconds.

    Attributes:
        state: where the update ended; `error` is `{code, message, advice}` of what stopped it, None where nothing did.
        route: what the device took: `patch`, `full`.
        wire_bytes: IP bytes both ways, by the device's ledger; `stream_bytes` the same above TCP, by the relay.
        transfer_s: in which the link was needed: reading the twin, resolving, downloading, waiting for it.
        active_s: until all was over.
        goodput_bps: payload over the seconds spent downloading.
        requests, failed: what the device was asked meanwhile, and did not answer rightly.
    """

    model: str
    base: str
    version: str
    link_bps: float
    link_rtt_s: float
    tcp_bps: float
    state: str
    error: dict[str, str] | None
    route: str
    payload_bytes: int
    wire_bytes: int
    stream_bytes: int
    transfer_s: float
    active_s: float
    goodput_bps: float
    requests: int
    failed: int
    forecast: ForecastFigures
    failures: list[str] = []


def require_short(rehearsal: Rehearsal) -> None:
    """Raises ConfigInvalid for a rehearsal that would take more than half an hour."""
    long_s = rehearsal.forecast().transfer_s + rehearsal.cut_s
    if long_s > LONG_S:
        raise ConfigInvalid(f"this rehearsal takes about {long_s / 60:,.0f} minutes: it is played with --anyway only")


def find_error(figures: Figures) -> type[EdgeferryError] | None:
    """The class of what stopped the update; None where it ended as it should. Too slow is the link's."""
    if figures.state == State.ACTIVE:
        return None
    return _CODES.get(figures.error["code"] if figures.error else "", _CODES["link_timeout"])


async def rehearse(rehearsal: Rehearsal, *, say: Callable[[str], None], progress: Progress) -> Figures:
    """Plays the update in real time.

    Raises:
        EdgeferryError leaves: the device could not be brought to the version that it is to come from.
    """
    plan = rehearsal.plan
    with tempfile.TemporaryDirectory(prefix="edgeferry-rehearsal-") as folder:
        async with open_stage(Path(folder), rehearsal) as stage:
            if plan.base:
                say(f"a device gets {plan.model} {plan.base} at full speed")
                await _prepare(stage)
            async with open_device(stage.config) as device:
                await _wait_connected(stage, device)
                say(f"the link is thin now; {plan.model} {plan.version} is deployed")
                played = await _play(stage, device, progress)
            artifacts = await _read_artifacts(stage)
        return _make_figures(rehearsal, played, artifacts)


# --- before the play --------------------------------------------------------------------------------------------------
async def _prepare(stage: Stage) -> None:
    """Brings the device to the version that it is to come from."""
    base = stage.rehearsal.plan.base
    async with open_device(stage.config) as device:
        await stage.deploy(base)
        watch = _Watch(stage, base, _PREPARE_TIMEOUT_S, is_link_good=True)
        status = await watch.wait(device, lambda share, words: None)
        if status.state != State.ACTIVE:
            error = status.error or {}
            kind = _CODES.get(error.get("code", ""), InvariantBroken)
            raise kind(f"the device did not take {base}: {error.get('message', status.state)}")
        await _wait_until(lambda: stage.has_reported(base))


async def _wait_connected(stage: Stage, device: RunningDevice) -> None:
    """The hub's connection is there, and what it had to say is said."""

    async def is_connected() -> bool:
        return device.get_status().connected

    await _wait_until(is_connected)
    passed = -1
    while passed != stage.link.passed_bytes:
        passed = stage.link.passed_bytes
        await asyncio.sleep(_QUIET_S)


# --- the play ---------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Watch:
    """Looks at an update until it is over or `patience_s` is; adds up the seconds in each state ("": not begun)."""

    stage: Stage
    version: str
    patience_s: float
    is_link_good: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    async def wait(self, device: RunningDevice, progress: Progress) -> ModelStatus:
        """The last status."""
        last_s, passed_bytes = time.monotonic(), self.stage.link.passed_bytes
        ends_s = last_s + self.patience_s
        while True:
            status = self.stage.get_status(device)
            now_s = time.monotonic()
            self.seconds[status.state if status.target == self.version else ""] += now_s - last_s
            if status.target == self.version:
                share = 1.0 if status.state in _FETCHED else status.progress
                progress(
                    share, f"{status.state.lower()}, {self.stage.link.passed_bytes - passed_bytes:,} bytes crossed"
                )
            if now_s > ends_s or (status.target == self.version and self._is_over(status)):
                return status
            last_s = now_s
            await asyncio.sleep(_POLL_S)

    def _is_over(self, status: ModelStatus) -> bool:
        kind = _CODES.get(status.error["code"]) if status.error else None
        is_stuck = kind is not None and (self.is_link_good or not issubclass(kind, LinkError))
        return status.state in _OVER or (status.state == State.WAITING and is_stuck)


@dataclass(frozen=True, slots=True)
class _Played:
    """What was seen."""

    forecast: Forecast
    status: ModelStatus
    watch: _Watch
    active_s: float
    wire_bytes: int
    stream_bytes: int
    loop: Loop


async def _play(stage: Stage, device: RunningDevice, progress: Progress) -> _Played:
    rehearsal, link = stage.rehearsal, stage.link
    forecast = rehearsal.forecast()
    wire_bytes, stream_bytes = _get_wire_bytes(device), link.passed_bytes
    link.limit(int(rehearsal.link.tcp_bps), rehearsal.link.rtt_s)
    async with _open_asking(rehearsal.plan, device, rehearsal.role) as loop:
        began_s = time.monotonic()
        patience_s = forecast.transfer_s * _PATIENCE + rehearsal.cut_s + _PATIENCE_MORE_S
        watch = _Watch(stage, rehearsal.plan.version, patience_s)
        cuts = [asyncio.get_running_loop().call_later(at_s, link.cut, for_s) for at_s, for_s in rehearsal.cuts]
        await stage.deploy(rehearsal.plan.version)
        status = await watch.wait(device, progress)
        active_s = time.monotonic() - began_s
        await _settle(stage, status)
        for cut in cuts:
            cut.cancel()
    crossed = _get_wire_bytes(device) - wire_bytes, link.passed_bytes - stream_bytes
    link.limit(0)
    return _Played(forecast, status, watch, active_s, *crossed, loop)


async def _settle(stage: Stage, status: ModelStatus) -> None:
    """What the device has to say of it crosses the link too."""
    if status.state == State.ACTIVE:
        await _wait_until(lambda: stage.has_reported(status.target), timeout_s=_SETTLE_S + stage.rehearsal.cut_s)
    await asyncio.sleep(2 * stage.rehearsal.link.rtt_s + 0.5)


def _get_wire_bytes(device: RunningDevice) -> int:
    return device.get_status().ledger.total_bytes


@asynccontextmanager
async def _open_asking(plan: RehearsalPlan, device: RunningDevice, role: Role) -> AsyncIterator[Loop]:
    """One client on the device that asks a golden picture again and again; nobody where nothing is served."""
    loop = Loop()
    if plan.picture is None or role == "loader":
        yield loop
        return
    task = asyncio.create_task(_ask_on(f"{device.url}/v1/models/{plan.model}/predict", plan.picture, loop))
    try:
        yield loop
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _ask_on(url: str, picture: bytes, loop: Loop) -> None:
    async with open_http(HttpSettings()) as http:
        while True:
            try:
                answer = await http.fetch(url, max_bytes=1 << 20, method="POST", body=picture)
                if answer.status == 200:
                    loop.answered[str(msgspec.json.decode(answer.body)["version"])] += 1
                else:
                    loop.failures.append(f"status {answer.status}")
            except EdgeferryError as error:
                loop.failures.append(f"{error.code}: {error.message}")
            await asyncio.sleep(_ASK_EVERY_S)


async def _wait_until(check: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Returns when `check` says so, or when it took too long: a rehearsal goes on with what it has."""
    ends_s = time.monotonic() + timeout_s
    while True:
        if await check() or time.monotonic() > ends_s:
            return
        await asyncio.sleep(_POLL_S)


async def _read_artifacts(stage: Stage) -> tuple[Artifact, ...]:
    """What the device fetched, as its own journal tells."""
    plan = stage.rehearsal.plan
    async with open_journal(get_repository(stage.config).journal_path) as journal:
        records = [read_record_bytes(body) for _, body in await journal.load_records()]
    return next((one.artifacts for one in records if (one.model, one.version) == (plan.model, plan.version)), ())


def _make_figures(rehearsal: Rehearsal, played: _Played, artifacts: tuple[Artifact, ...]) -> Figures:
    plan, status, link = rehearsal.plan, played.status, rehearsal.link
    seconds = played.watch.seconds
    download_s = max(_POLL_S, seconds[State.DOWNLOADING])
    return Figures(
        model=plan.model,
        base=plan.base,
        version=plan.version,
        link_bps=link.bps,
        link_rtt_s=link.rtt_s,
        tcp_bps=link.tcp_bps,
        state=status.state or State.WAITING,
        error=status.error if status.state != State.ACTIVE else None,
        route=get_route(artifacts),
        payload_bytes=sum(one.size for one in artifacts),
        wire_bytes=played.wire_bytes,
        stream_bytes=played.stream_bytes,
        transfer_s=round(sum(seconds[state] for state in _ON_LINK), 1),
        active_s=round(played.active_s, 1),
        goodput_bps=round(status.done_bytes * 8 / download_s),
        requests=played.loop.total,
        failed=len(played.loop.failures),
        failures=played.loop.failures[:_FAILURES_MAX],
        forecast=ForecastFigures(
            payload_bytes=played.forecast.payload_bytes,
            wire_bytes=played.forecast.wire_bytes,
            transfer_s=round(played.forecast.transfer_s + rehearsal.cut_s, 1),
        ),
    )
