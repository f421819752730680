"""The agent: what is wanted of this device in, updates walked, the device's own account out.

What this file leaves to others: one model's walk (`lane.py`), the hub's conversation (`hub_link.py`), what happens at
start (`restart.py`), what is said (`reporter.py`), the door for people (`control.py`).

Rules:
- Serving is restored before anything is connected.
- The last desired document is kept: a device that starts without its hub goes on with what it knows.
- `except Exception` stands here at the task-group edge, once: a defect in one task ends neither the others nor serving.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edgeferry.agent.announce import INPUT
from edgeferry.agent.claims import release
from edgeferry.agent.fetch import Fetcher
from edgeferry.agent.gate import HUB, Gate
from edgeferry.agent.healing import watch_content
from edgeferry.agent.hub_link import MENDED_CODES, HubLink, OpenHub, read_message
from edgeferry.agent.kept import Keeper, find_source
from edgeferry.agent.lane import Lane, Surroundings
from edgeferry.agent.loose import make_local_target
from edgeferry.agent.machine import Event, State
from edgeferry.agent.outlook import forecast, make_ledger_status, make_link_status
from edgeferry.agent.pace import Pace
from edgeferry.agent.plan import make_wanted
from edgeferry.agent.ports import Activator, ManifestSource
from edgeferry.agent.record import Target, UpdateRecord, read_target_bytes
from edgeferry.agent.reporter import Reporter, get_report_every_s, make_model_status, make_problem
from edgeferry.agent.restart import note_clean_stop, pick_current, restore_records, serve_active, watch_serving
from edgeferry.agent.room import collect, run_gc, run_pin
from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import AgentSettings, Tools
from edgeferry.agent.turns import Turns
from edgeferry.errors import EdgeferryError, RequestInvalid, StorageError
from edgeferry.storage.files import get_free_bytes
from edgeferry.storage.journal import Journal
from edgeferry.storage.mending import Named
from edgeferry.storage.repository import Repository
from edgeferry.storage.tidying import list_status
from edgeferry.twin.contract import CLASSIC_MODEL, read_desired
from edgeferry.twin.status import DeviceStatus

_LOG = logging.getLogger(__name__)
_DESIRED_KEY, _LOCAL_KEY = "desired", "local"
_DEFECT_PAUSE_S, _TALK_EVERY_S = 5.0, 5.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What the agent is built from. `now` is Unix seconds, `random` 0..1; `boot` names this boot of the machine."""

    repository: Repository
    journal: Journal
    fetcher: Fetcher
    manifests: ManifestSource
    activator: Activator
    open_hub: OpenHub | None
    now: Callable[[], float]
    random: Callable[[], float]
    gate: Gate
    boot: str = ""
    take_default_model: Callable[[str | None], None] = field(default=lambda name: None)
    """Is told which model the twin makes the default one, if it does."""


class Agent:
    """One device's agent; `run` never returns."""

    def __init__(self, parts: Parts, settings: AgentSettings) -> None:
        self.settings = settings
        self.started = asyncio.Event()
        """Set once what was active serves again."""
        self._parts = parts
        self._tools = Tools(
            settings=settings,
            repository=parts.repository,
            journal=parts.journal,
            gate=parts.gate,
            fetcher=parts.fetcher,
            manifests=parts.manifests,
            activator=parts.activator,
            now=parts.now,
            boot=parts.boot,
            progress=self._note_progress,
            posted=self._note_posted,
        )
        self._around = Surroundings(self._tools, Turns(), parts.random, self._note_moved, self._note_settled)
        self._keeper = Keeper(self._tools, self._around.turns, parts.random, self._find_source)
        self._lanes: dict[str, Lane] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._targets: dict[str, Target] = {}
        self._local: Target | None = None
        self._view = DeviceStatus(device=settings.device, role=settings.role)
        self._refs: dict[str, tuple[str, str]] = {}
        self._here_bytes: dict[str, int] = {}
        self._pace = Pace()
        self._observed_here = 0
        self._link_policy = parts.gate.policy
        self._unkept: dict[str, bytes] = {}
        self._disk_problem: dict[str, str] | None = None
        self.reporter = Reporter(self.get_status, every_s=settings.report_every_s)
        self._link = self._make_link(parts, parts.open_hub) if parts.open_hub is not None else None

    def _make_link(self, parts: Parts, open_hub: OpenHub) -> HubLink:
        return HubLink(
            open_hub,
            self,
            gate=parts.gate,
            reporter=self.reporter,
            journal=parts.journal,
            random=parts.random,
            pauses_s=(self.settings.connect_base_s, self.settings.connect_max_s),
        )

    async def run(self) -> None:
        """Starts what was active, then walks updates and stays with the hub, until cancelled."""
        await self._start()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for model in self._lanes:
                    self._spawn_lane(model)
                self._aim()
                self.started.set()
                tasks.create_task(self._guard("scrub", lambda: watch_content(self._tools, self._note_hurt)))
                tasks.create_task(self._guard("kept", self._keeper.run))
                tasks.create_task(self._guard("serving", lambda: watch_serving(self._tools, self._around.turns)))
                if self._link is not None:
                    tasks.create_task(self._guard("hub", self._link.run))
                    tasks.create_task(self._guard("ledger", self._book_talk))
                await asyncio.get_running_loop().create_future()
        finally:
            self._tasks = None
            await note_clean_stop(self._tools)
            await self._parts.gate.settle(HUB)

    async def _start(self) -> None:
        await serve_active(self._tools)  # first: what it finds damaged is not what a record goes on with
        records = await restore_records(self._tools)
        for model in {one.model for one in records}:
            rows = {one.key: one for one in records if one.model == model}
            self._lanes[model] = Lane(model, self._around, rows, pick_current(rows.values()))
        for model in await in_thread(self._parts.repository.list_models):
            await self._read_refs(model)
        await self._recall()

    async def _recall(self) -> None:
        """Goes on with what was last asked, as long as the hub says nothing newer."""
        await self._parts.gate.ledger.load()
        desired = read_message(await self._parts.journal.get_value(_DESIRED_KEY) or b"")
        local = await self._parts.journal.get_value(_LOCAL_KEY)
        try:
            self._local = read_target_bytes(local) if local else None
        except StorageError as error:
            _LOG.warning("forgot a message that cannot be read: %s", error.message)
        if desired is not None:
            self._follow(desired)

    # --- what is wanted (hub_link.Listener) ---------------------------------------------------------------------------
    def note_connected(self, connected: bool) -> None:
        """The hub has come or gone."""
        self._observed_here = 0
        self._view = msgspec.structs.replace(self._view, connected=connected)

    async def take_twin(self, desired: Mapping[str, Any]) -> None:
        """Reconciles with a full desired document, unless this connection has brought it, or a newer one, before.

        What waits need not wait longer where somebody has changed something; where only the hub is back, what waits
        for the link.
        """
        version = desired.get("$version", 0)
        if isinstance(version, int) and 0 < version <= self._observed_here:
            return
        self._observed_here = version if isinstance(version, int) else 0
        is_known = 0 < self._observed_here == self._view.observed
        self._follow(desired)
        self._aim()
        for lane in self._lanes.values():
            fault = lane.record.fault if lane.record is not None else None
            if not is_known or (fault is not None and fault.code in MENDED_CODES):
                lane.order(Event.RETRY_DUE)
        self._keeper.ring()
        self.reporter.note_change()
        await self._keep(_DESIRED_KEY, msgspec.json.encode(desired))

    async def _keep(self, key: str, document: bytes) -> None:
        """Keeps what is wanted for a start without hub; a full disk is told over the connection and does not end it."""
        try:
            await self._parts.journal.set_value(key, document)
            self._unkept.pop(key, None)
        except StorageError as error:
            _LOG.warning("what is wanted is followed, but not kept: %s", error.message)
            self._unkept[key] = document
            self._disk_problem = make_problem("journal", error)
            self.reporter.note_change()
        if not self._unkept:
            self._disk_problem = None

    def _follow(self, document: Mapping[str, Any]) -> None:
        desired = read_desired(document)
        own = self.settings
        wanted = make_wanted(desired, self._link_policy, accept_classic=own.accept_classic, shadow=own.shadow)
        self._targets = {} if self.settings.role == "inferencer" else dict(wanted.targets)
        first = next(iter(wanted.problems), None)
        self._view = msgspec.structs.replace(
            self._view,
            observed=desired.version,
            problem=make_problem(first.place, first.error) if first is not None else None,
        )
        for problem in wanted.problems:
            _LOG.warning("cannot follow the twin: %s", problem.error.message)
        self._tools.wishes.shadow = wanted.shadow
        self._parts.gate.policy = wanted.link
        self._parts.fetcher.set_rate(wanted.link.rate_bps)
        self.reporter.every_s = get_report_every_s(wanted.link, self.settings.report_every_s)
        self._parts.take_default_model(wanted.default_model)

    def _aim(self) -> None:
        targets = dict(self._targets)
        if self._local is not None and self.settings.role == "inferencer":
            targets[self._local.model] = self._local
        for model in {*self._lanes, *targets}:
            self._get_lane(model).aim(targets.get(model))

    async def take_message(self, name: str, body: bytes) -> None:
        """Another module's message on AIMessageInput; what is wrong with it is reported, never raised."""
        if name != INPUT or self.settings.role != "inferencer":
            _LOG.warning("a message on the input %.60r is not for this role", name)
            return
        message = read_message(body)
        try:
            if message is None:
                raise RequestInvalid("expected a JSON object with local_model_path and local_labelmap_path")
            self._local = await in_thread(make_local_target, message, self.settings.shared_root)
            problem = None
        except EdgeferryError as error:
            problem = make_problem(INPUT, error)
            _LOG.warning("cannot follow a message: %s", error.message)
        self._view = msgspec.structs.replace(self._view, problem=problem)
        if problem is None and self._local is not None:
            self._aim()
            await self._keep(_LOCAL_KEY, msgspec.json.encode(self._local))
        self.reporter.note_change()

    # --- commands -----------------------------------------------------------------------------------------------------
    async def run_command(self, name: str, payload: object) -> tuple[int, dict[str, Any]]:
        """A direct method or a word through agent.sock: status like HTTP's, and the answer."""
        model = payload.get("model") if isinstance(payload, Mapping) else None
        match name:
            case "status":
                versions = await in_thread(list_status, self._parts.repository)
                return 200, msgspec.to_builtins(msgspec.structs.replace(self.get_status(), versions=versions))
            case "gc":
                return await run_gc(self._parts.repository, self._parts.journal)
            case "pin":
                return await run_pin(self._parts.repository, payload)
            case "reload":
                return 200, self._reload()
            case "rollback":
                return await self._order(model, Event.ROLL_BACK)
            case "cancel":
                return await self._order(model, Event.CANCEL)
        return 404, {"error": {"code": "not_found", "message": "expected status, rollback, reload, cancel, gc or pin"}}

    def _reload(self) -> dict[str, Any]:
        for lane in self._lanes.values():
            lane.order(Event.RETRY_DUE)
        self._keeper.ring()
        if self._link is not None:
            self._link.ring()
        return {"ok": True}

    async def _order(self, model: object, event: Event) -> tuple[int, dict[str, Any]]:
        name = model if isinstance(model, str) else next(iter(self._lanes), "") if len(self._lanes) == 1 else ""
        lane = self._lanes.get(name)
        if lane is None:
            choices = ", ".join(sorted(self._lanes)) or "none here"
            return 404, {"error": {"code": "model_not_found", "message": f"expected one of the models: {choices}"}}
        if event is Event.ROLL_BACK and await in_thread(self._parts.repository.read_ref, name, "previous") is None:
            return 409, {"error": {"code": "conflict", "message": f"{name} has no previous version to go back to"}}
        if not lane.order(event):
            state = lane.walked.state if lane.walked is not None else "no state"
            return 409, {"error": {"code": "conflict", "message": f"{event} is not possible in {state}"}}
        return 202, {"ok": True, "model": name}

    # --- what is said -------------------------------------------------------------------------------------------------
    def get_status(self) -> DeviceStatus:
        """The device as it stands; no I/O."""
        models = []
        for model in sorted({*self._lanes, *self._refs}):
            lane = self._lanes.get(model)
            record = lane.record if lane is not None else None
            active, previous = self._refs.get(model, ("", ""))
            here = self._here_bytes.get(record.key, 0) if record is not None else 0
            bps = self._pace.get_bps(record.key) if record is not None else 0.0
            one = make_model_status(model, record, active=active, previous=previous, here_bytes=here)
            models.append(forecast(one, self._parts.gate, bps, priority=record.priority) if record is not None else one)
        return msgspec.structs.replace(
            self._view,
            models=tuple(models),
            latest_file=self._get_latest_file(),
            problem=self._view.problem or self._disk_problem,
            ledger=make_ledger_status(self._parts.gate),
            link=make_link_status(self._parts.gate),
        )

    def _get_latest_file(self) -> str:
        lane = self._lanes.get(CLASSIC_MODEL)
        rows = lane.rows.values() if lane is not None else ()
        served = self._tools.served.get(CLASSIC_MODEL)
        return next((row.file_name for row in rows if row.identity == served and row.file_name), "")

    def _note_progress(self, key: str, length_bytes: int) -> None:
        self._here_bytes[key] = length_bytes
        self._pace.note(key, length_bytes, time.monotonic())
        self.reporter.note_progress()

    async def _note_moved(self, record: UpdateRecord) -> None:
        if record.state not in (State.DOWNLOADING, State.WAITING):
            self._here_bytes.pop(record.key, None)
        for key, document in list(self._unkept.items()):
            await self._keep(key, document)  # the journal could be written just now
        try:
            await self._read_refs(record.model)
            free = await in_thread(get_free_bytes, self._parts.repository.root)
            self._view = msgspec.structs.replace(self._view, disk_free_bytes=free)
        except StorageError as error:
            _LOG.warning("the account of this device is not whole: %s", error.message)
        self.reporter.note_change()

    def _note_hurt(self, named: Named) -> None:
        """A version is damaged: what is active its lane fetches again; what is kept beside it, the keeper."""
        for lane in self._lanes.values():
            lane.heal(named.identity)
        self._keeper.ring()

    def _find_source(self, named: Named) -> Target | None:
        return find_source(named, self._lanes.get(named.model), self._targets.values())

    def _note_posted(self) -> None:
        if self._link is not None:
            self._link.note_message()

    async def _read_refs(self, model: str) -> None:
        refs = [await in_thread(self._parts.repository.read_ref, model, name) for name in ("active", "previous")]
        self._refs[model] = (refs[0].version if refs[0] else "", refs[1].version if refs[1] else "")

    async def _book_talk(self) -> None:
        """Keeps the account of the hub's connection, which speaks whenever it likes."""
        while True:
            try:
                await self._parts.gate.book_talk()
            except StorageError as error:
                _LOG.warning("what the hub's connection costs is not in the ledger: %s", error.message)
            await asyncio.sleep(_TALK_EVERY_S)

    async def _note_settled(self, record: UpdateRecord) -> None:
        """What nobody needs goes, and of what may stay as much as has no room."""
        await collect(self._parts.repository, self._parts.journal)
        lane = self._lanes[record.model]
        await release(self._parts.repository, self._parts.journal, list(lane.rows.values()))
        await lane.forget_old_rows()

    # --- tasks --------------------------------------------------------------------------------------------------------
    def _get_lane(self, model: str) -> Lane:
        if model not in self._lanes:
            self._lanes[model] = Lane(model, self._around)
            self._spawn_lane(model)
        return self._lanes[model]

    def _spawn_lane(self, model: str) -> None:
        if self._tasks is not None:
            lane = self._lanes[model]
            self._tasks.create_task(self._guard(f"lane {model}", lane.run, lane.fail))

    async def _guard(
        self, name: str, work: Callable[[], Awaitable[None]], mend: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """The task-group edge: a defect is logged, mended where that can be, and the task begins again."""
        failed = False
        while True:
            try:
                if failed and mend is not None:
                    await mend()
                return await work()
            except Exception:  # noqa: BLE001 - the task-group edge: one task's defect must not stop the others
                _LOG.exception("a defect in %s", name)
                failed = True
                await asyncio.sleep(_DEFECT_PAUSE_S)
