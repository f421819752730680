"""A process that forks devices: one that dies at a chosen call, then one that starts again on the same folder.

What this file leaves to others: what is published and asked for, and what must be true in the end
(`test_device_crashes.py`).

Rules:
- The agent, repository, journal, HTTP client and verifier are the real ones; the hub and serving are in memory.
- A device is asked by a line of JSON and tells what became of it by one. Forking saves each of them its imports.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from agent.agent_world import FAST, FakeActivator, FakeHub, Origin, World
from edgeferry.agent.gate import HUB
from edgeferry.agent.machine import TERMINAL, State
from edgeferry.agent.record import UpdateRecord, read_record_bytes
from edgeferry.app.manifests import TrustedManifests
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import read_manifest_bytes
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.journal import Journal
from edgeferry.storage.refs import REF_NAMES
from soak.crash_calls import Calls, Point, arm
from soak.orphans import list_orphans
from soak.power_cut import DiskLog, cut_power

ENDS = TERMINAL | {State.ACTIVE}
LONGEST_S = 60.0


class Job(msgspec.Struct, kw_only=True):
    """One device's life: it walks to `target`, or dies at `point`, and starts again after that."""

    folder: str
    """Holds `storage`, and what the test needs besides."""
    desired: dict[str, Any]
    model: str
    target: str
    """The version that is asked for."""
    root: bytes
    command: str = ""
    """Told to the agent once it has started: `rollback`."""
    point: Point | None = None
    power: int | None = None
    """None: only the process dies. 0: the machine does, and nothing is left that was not synced; else a seed."""
    leaps_s: dict[str, float] = {}
    """What the clock jumps by the first time that the update is in a state."""


class Account(msgspec.Struct, kw_only=True):
    """What became of a device."""

    died: bool = False
    lost: int = 0
    counts: dict[str, int] = {}
    state: str = ""
    version: str = ""
    code: str = ""
    serves: str = ""
    started_with: list[str] = []
    refs: dict[str, str] = {}
    reported: dict[str, Any] = {}
    messages: list[tuple[str, str]] = []
    """(id, body) of everything that was sent, deaths included."""
    ledger_bytes: int = 0
    """Payload: what the hub's conversation costs is left out."""
    orphans: list[str] = []
    error: str = ""
    walked: list[str] = []
    waited_s: float = 0.0
    """The longest sleep in WAITING."""
    met: list[str] = []
    """What was waited for: codes of errors."""


@dataclass
class CheckedServing(FakeActivator):
    """Serves in memory, and only what is whole: each file is hashed."""

    calls: Calls = field(default_factory=lambda: Calls(None))

    async def prove(self, version: StoredVersion) -> None:
        side = self.calls.begin("serve")
        check_content(version)
        await super().prove(version)
        self.calls.finish(side)

    async def switch(self, version: StoredVersion) -> None:
        side = self.calls.begin("serve")
        check_content(version)
        await super().switch(version)
        self.calls.finish(side)


def check_content(version: StoredVersion) -> None:
    """Every file of the version is what its manifest says."""
    manifest = read_manifest_bytes((version.folder / "manifest.json").read_bytes())
    files = [(version.folder / entry.path, entry.sha256) for entry in manifest.files]
    files += [(one.path, one.golden.input) for one in version.golden]
    for path, digest in files:
        assert str(Digest.of(path.read_bytes())) == digest, f"{path} is damaged, and was about to be served"


class NotingHub(FakeHub):
    """A hub whose every conversation is a call that may be the last; messages are written down outside."""

    def __init__(self, calls: Calls, folder: Path) -> None:
        super().__init__()
        self._calls = calls
        self._log = os.open(folder / "messages", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._write = os.write

    async def fetch_twin(self) -> dict[str, Any]:
        return await self._counted(super().fetch_twin())

    async def report(self, patch: dict[str, Any]) -> int:
        return await self._counted(super().report(patch))

    async def send_output(self, output: str, body: bytes, *, mid: str) -> None:
        self._write(self._log, b"\n" + msgspec.json.encode((mid, body.decode())) + b"\n")
        await self._counted(super().send_output(output, body, mid=mid))

    async def _counted(self, call: Any) -> Any:
        side = self._calls.begin("hub")
        outcome = await call
        self._calls.finish(side)
        return outcome


class Clock:
    """Unix seconds that jump."""

    def __init__(self, leaps_s: dict[str, float]) -> None:
        self._leaps_s = dict(leaps_s)
        self._off_s = 0.0

    def __call__(self) -> float:
        return time.time() + self._off_s

    def leap(self, state: str) -> None:
        self._off_s += self._leaps_s.pop(state, 0.0)


class WatchedJournal:
    """The real journal; notes which states the update walks through, and lets the clock jump there."""

    def __init__(self, journal: Journal, job: Job, account: Account, clock: Clock) -> None:
        self._journal, self._job, self._account, self._clock = journal, job, account, clock
        self._since = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def save_record(self, key: str, *, model: str, state: str, body: bytes) -> None:
        await self._journal.save_record(key, model=model, state=state, body=body)
        record = read_record_bytes(body)
        if (record.model, record.version) == (self._job.model, self._job.target):
            walked, now = self._account.walked, time.monotonic()
            if walked[-1:] == [State.WAITING]:
                self._account.waited_s = max(self._account.waited_s, now - self._since)
            if state == State.WAITING and record.fault is not None:
                self._account.met.append(record.fault.code)
            walked.append(state)
            self._since = now
            self._clock.leap(state)


def make_world(job: Job, calls: Calls, now: Callable[[], float]) -> World:
    folder = Path(job.folder)
    hub = NotingHub(calls, folder)
    hub.desired = job.desired
    world = World(folder / "storage", FAST, Origin(), hub=hub, activator=CheckedServing(calls=calls), now=now)
    world.settings = replace(FAST, shared_root=world.root)
    world.make_manifests = lambda fetcher: TrustedManifests(fetcher, world.repository.trust_folder, job.root, now=now)
    return world


async def live(job: Job, account: Account, calls: Calls) -> None:
    """Runs a device until the update has ended and everybody knows."""
    clock = Clock(job.leaps_s)
    world = make_world(job, calls, clock)
    journals: list[Journal] = []
    world.wrap = lambda journal: journals.append(journal) or WatchedJournal(journal, job, account, clock)
    async with asyncio.timeout(LONGEST_S), world.run(fresh_activator=False) as agent:
        account.started_with = list(world.activator.switched)
        if job.command:
            await agent.run_command(job.command, {"model": job.model})
        await walk(world, job)
        record = world.get_record(job.model)
        assert record is not None
        account.state, account.version = record.state, record.version
        account.code = record.fault.code if record.fault else ""
        account.serves = world.activator.serving[job.model].version if job.model in world.activator.serving else ""
        account.reported = world.hub.reported.get("edgeferry", {}).get("models", {}).get(job.model, {})
        ledger = await journals[0].get_ledger()
        account.ledger_bytes = sum(size for kinds in ledger.values() for kind, size in kinds.items() if kind != HUB)
        account.orphans = await find_orphans(world)
        for name in REF_NAMES:
            stored = world.repository.read_ref(job.model, name)
            account.refs[name] = stored.version if stored else ""
    account.counts = dict(calls.counts)


async def walk(world: World, job: Job) -> None:
    """Until the update has ended, and the hub has heard of it."""
    while (record := world.get_record(job.model)) is None or not has_ended(world, record, job):
        await asyncio.sleep(0.002)


def has_ended(world: World, record: UpdateRecord, job: Job) -> bool:
    told = world.hub.reported.get("edgeferry", {}).get("models", {}).get(job.model, {})
    ends = TERMINAL if job.command else ENDS
    return record.version == job.target and record.state in ends and told.get("state") == record.state


async def find_orphans(world: World, patience_s: float = 1.0) -> list[str]:
    """What lies about and belongs to nothing, once tidying up has had its time."""
    ends_at = time.monotonic() + patience_s
    while (found := list_orphans(world.repository, list_rows(world))) and time.monotonic() < ends_at:
        await asyncio.sleep(0.01)
    return found


def list_rows(world: World) -> list[UpdateRecord]:
    lanes = world.agent._lanes.values() if world.agent is not None else ()
    return [row for lane in lanes for row in lane.rows.values()]


# --- forking ----------------------------------------------------------------------------------------------------------
def fork(work: Callable[[], None]) -> bool:
    """Runs `work` in a child; whether it died by a kill."""
    child = os.fork()
    if child == 0:
        signal.alarm(int(LONGEST_S * 2))
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def do_life(job: Job, *, power: DiskLog | None) -> None:
    """In a fork: a device, with what it does counted; its account is left in the folder."""
    account, calls = Account(), Calls(job.point, power)
    write = os.write
    told = os.open(Path(job.folder) / "account", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        arm(calls)
        asyncio.run(live(job, account, calls))
    except BaseException:  # noqa: BLE001 - the device under test failed: the test shows it
        account.error = traceback.format_exc()[-3000:]
    write(told, msgspec.json.encode(account))


def do_job(job: Job) -> Account:
    folder = Path(job.folder)
    power = folder / "power"

    def first() -> None:
        do_life(job, power=DiskLog(folder / "storage", power) if job.power is not None else None)

    died, lost = fork(first), 0
    if died:
        if job.power is not None:
            lost = cut_power(folder / "storage", power, random.Random(job.power) if job.power else None)
            shutil.rmtree(power)  # its links would keep what is removed later from being anybody's alone
        fork(lambda: do_life(msgspec.structs.replace(job, point=None, command=""), power=None))
    account = msgspec.json.decode((folder / "account").read_bytes() or b'{"error": "no account"}', type=Account)
    account.died, account.lost = died, lost
    account.messages = read_messages(folder / "messages")
    return account


def read_messages(log: Path) -> list[tuple[str, str]]:
    """What the hub had heard in full; a death in the middle of a message leaves half a line."""
    heard = []
    for line in filter(None, log.read_bytes().splitlines() if log.exists() else []):
        with suppress(msgspec.MsgspecError):
            heard.append(msgspec.json.decode(line, type=tuple[str, str]))
    return heard


def main() -> None:
    """Jobs on standard input, accounts on standard output, until nobody asks any more."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        out.write(msgspec.json.encode(do_job(msgspec.json.decode(line, type=Job))) + b"\n")


if __name__ == "__main__":
    main()
