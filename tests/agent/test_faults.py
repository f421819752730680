"""What goes wrong: each fault is a row. The update ends where it should, serving goes on, nothing is left behind."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest

from agent.agent_world import CrashingJournal, World
from edgeferry.agent.ledger import BOOKING_BYTES
from edgeferry.agent.machine import State
from edgeferry.agent.record import read_record_bytes
from edgeferry.errors import (
    AccessDenied,
    DigestMismatch,
    EdgeferryError,
    GoldenMismatch,
    LinkDown,
    ManifestInvalid,
    MetadataExpired,
    MetadataUntrusted,
    ModelCrashed,
    ServerBusy,
    WorkerStartFailed,
)
from edgeferry.model.manifest import make_manifest_bytes
from edgeferry.storage.journal import open_journal
from polling import poll


@dataclass(frozen=True)
class Fault:
    """Knobs turned before version 1.1.0 is deployed, and how it must end."""

    name: str
    ends: State
    code: str = ""
    manifests: list[EdgeferryError] = field(default_factory=list)
    prove: list[EdgeferryError] = field(default_factory=list)
    switch: list[EdgeferryError] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)
    damage: int = 0
    """How many answers carry damaged bytes."""
    serves: str = "1.1.0"


FAULTS = [
    Fault("the link is down while metadata is fetched", State.ACTIVE, manifests=[LinkDown("no"), LinkDown("no")]),
    Fault(
        "metadata does not verify once", State.ACTIVE, manifests=[MetadataUntrusted("portal"), MetadataExpired("old")]
    ),
    Fault(
        "the repository has another digest",
        State.REJECTED,
        "digest_mismatch",
        manifests=[DigestMismatch("x")],
        serves="1.0.0",
    ),
    Fault(
        "a signed manifest is none",
        State.REJECTED,
        "manifest_invalid",
        manifests=[ManifestInvalid("x")],
        serves="1.0.0",
    ),
    Fault("the server is busy, then fails", State.ACTIVE, statuses=[503, 500, 429]),
    Fault("the object is not there yet", State.ACTIVE, statuses=[404, 404]),
    Fault("transfers break off", State.ACTIVE, cut_after=[4096, 8192, 0, 12288]),
    Fault("bytes are damaged once", State.ACTIVE, damage=1),
    Fault("bytes are damaged twice", State.REJECTED, "digest_mismatch", damage=2, serves="1.0.0"),
    Fault(
        "golden truth is missed", State.REJECTED, "golden_mismatch", prove=[GoldenMismatch("1 of 4")], serves="1.0.0"
    ),
    Fault("the worker cannot be started twice", State.ACTIVE, prove=[WorkerStartFailed("x"), WorkerStartFailed("x")]),
    Fault("the switch fails", State.ROLLED_BACK, "model_crashed", switch=[ModelCrashed("x")], serves="1.0.0"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_ends_where_it_should(world: World, fault: Fault) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.manifests.failures = deque(fault.manifests)
        world.activator.failures = {"prove": deque(fault.prove), "switch": deque(fault.switch)}
        world.origin.statuses = deque(fault.statuses)
        world.origin.cut_after = deque(fault.cut_after)
        with damaged(world, fault.damage):
            world.deploy("1.1.0")
            record = await world.wait_state(fault.ends, version="1.1.0")
        assert (record.fault.code if record.fault else "") == fault.code
        assert world.activator.serving["detector"].version == fault.serves
        assert world.repository.read_ref("detector", "active").version == fault.serves  # type: ignore[union-attr]
        await poll(lambda: is_clean(world))
        report = await poll(lambda: has_reported(world, fault.ends))
        assert report["active"] == fault.serves


async def test_a_first_version_that_cannot_be_switched_to_has_nothing_to_go_back_to(world: World) -> None:
    world.publish("1.0.0")
    world.activator.failures["switch"].append(ModelCrashed("x"))
    async with world.run(fresh_activator=False):
        world.deploy("1.0.0")
        record = await world.wait_state(State.FAILED)
        assert record.fault is not None


async def test_a_coded_file_that_does_not_decode_is_rejected_and_leaves_nothing(world: World) -> None:
    manifest = world.publish("1.0.0", codec="zstd")
    source = manifest.files[0].sources[0]
    junk = b"no zstd frame at all, but of the right digest"
    lying = msgspec.structs.replace(source, blob=world.put_blob(junk), size=len(junk))
    entry = msgspec.structs.replace(manifest.files[0], sources=(lying,))
    files = (entry, *manifest.files[1:])
    world.manifests.known["detector", "1.0.0"] = make_manifest_bytes(msgspec.structs.replace(manifest, files=files))
    async with world.run():
        world.deploy("1.0.0")
        record = await world.wait_state(State.REJECTED)
        assert record.fault is not None
        assert record.fault.code == "delta_damaged"
        await poll(lambda: is_clean(world))


class damaged:  # noqa: N801 - reads as a word in the test
    """The next `count` large answers carry a flipped byte."""

    def __init__(self, world: World, count: int) -> None:
        self.world, self.count = world, count

    def __enter__(self) -> None:
        self.plain = self.world.origin.files
        self.world.origin.files = DamagedFiles(self.plain, self.count)

    def __exit__(self, *_: object) -> None:
        self.world.origin.files = dict(self.plain)


class DamagedFiles(dict[str, bytes]):
    def __init__(self, files: dict[str, bytes], count: int) -> None:
        super().__init__(files)
        self.left = count

    def get(self, path: str, default: Any = None) -> Any:
        data = super().get(path, default)
        if data is None or self.left == 0:
            return data
        self.left -= 1
        return bytes([data[0] ^ 1]) + data[1:]


async def is_clean(world: World) -> bool:
    return world.list_leftovers() == []


async def has_reported(world: World, state: State) -> dict[str, Any] | None:
    found = world.hub.reported.get("edgeferry", {}).get("models", {}).get("detector")
    return found if found and (found["state"], found["target"]) == (state, "1.1.0") else None


async def test_a_broken_transfer_goes_on_where_it_broke(world: World) -> None:
    world.publish("1.0.0", size=100_000)
    world.origin.cut_after = deque([60_000])
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        model = [asked for _, asked in world.origin.requests if asked]
        assert model == ["bytes=60000-"] or int(model[0].removeprefix("bytes=").rstrip("-")) > 0
        assert world.origin.sent_bytes < 100_000 + 200 + BOOKING_BYTES, "what lay in buffers when it broke is lost"


async def test_a_full_disk_waits_and_goes_on_when_there_is_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish("1.0.0")
    free = {"bytes": 1000}
    monkeypatch.setattr("edgeferry.storage.repository.get_free_bytes", lambda path: free["bytes"])
    async with world.run():
        world.deploy("1.0.0")
        record = await world.wait_state(State.WAITING)
        assert record.fault is not None
        assert record.fault.code == "no_space"
        free["bytes"] = 1 << 40
        await world.wait_state(State.ACTIVE)


async def test_an_origin_that_changes_under_a_download_is_fetched_anew(world: World, classic_zip: bytes) -> None:
    async with world.run():
        world.origin.cut_after = deque([50_000])
        world.deploy_classic("gauge.zip", classic_zip + b"\0" * 10, md5="")
        await world.wait_state(State.WAITING, State.DOWNLOADING, model="default")
        world.origin.files["/gauge.zip"] = classic_zip
        await world.wait_state(State.ACTIVE, model="default")


@pytest.mark.parametrize(("ranges", "etags"), [(False, False), (True, False), (False, True)])
async def test_a_plain_origin_is_enough_even_when_transfers_break(
    world: World, classic_zip: bytes, ranges: bool, etags: bool
) -> None:
    world.origin.ranges, world.origin.etags = ranges, etags
    world.origin.cut_after = deque([30_000, 60_000])
    async with world.run():
        world.deploy_classic("gauge.zip", classic_zip)
        await world.wait_state(State.ACTIVE, model="default")


async def test_a_defect_of_ours_in_a_step_rejects_the_update_and_the_device_lives_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeferry.agent.agent._DEFECT_PAUSE_S", 0.01)
    world.publish("1.0.0")
    world.activator.failures["prove"].append(ZeroDivisionError("a defect"))
    async with world.run(fresh_activator=False):
        world.deploy("1.0.0")
        record = await world.wait_state(State.REJECTED)
        assert record.fault is not None
        assert record.fault.code == "invariant_broken"
        world.deploy("1.0.0", **{"try": 2})
        await world.wait_state(State.ACTIVE)


# --- crashes ----------------------------------------------------------------------------------------------------------
WALKED = [
    State.RESOLVING,
    State.DOWNLOADING,
    State.VERIFYING,
    State.PATCHING,
    State.STORING,
    State.PROVING,
    State.SWITCHING,
    State.PROBATION,
    State.ACTIVE,
]


@pytest.mark.parametrize("after", [False, True], ids=["before it is written", "after it is written"])
@pytest.mark.parametrize("state", WALKED)
async def test_a_kill_at_any_state_ends_active_after_restart(world: World, state: State, after: bool) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0", codec="zstd")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
    crashing: list[CrashingJournal] = []
    world.wrap = lambda journal: crashing.append(CrashingJournal(journal, state, after=after)) or crashing[0]
    async with world.run():
        assert world.activator.serving["detector"].version == "1.0.0"
        world.deploy("1.1.0")
        await poll(lambda: has_crashed(crashing[0]))
    world.wrap = lambda journal: journal
    async with world.run():
        assert world.activator.switched[0] in ("1.0.0", "1.1.0"), "a device never starts without a model"
        await world.wait_state(State.ACTIVE, version="1.1.0")
        assert world.activator.serving["detector"].version == "1.1.0"
        assert world.list_leftovers() == []
        await poll(lambda: has_message(world, "1.1.0"))


async def has_crashed(journal: CrashingJournal) -> bool:
    return journal.crashed


async def has_message(world: World, version: str) -> bool:
    return any(version.encode() in body for _, body, _ in world.hub.outputs)


@pytest.mark.parametrize(
    "state", [State.DOWNLOADING, State.VERIFYING, State.STORING, State.PROVING, State.SWITCHING, State.PROBATION]
)
async def test_a_kill_in_a_classic_update_ends_active_after_restart(
    world: World, classic_zip: bytes, state: State
) -> None:
    crashing: list[CrashingJournal] = []
    world.wrap = lambda journal: crashing.append(CrashingJournal(journal, state, after=True)) or crashing[0]
    async with world.run():
        world.deploy_classic("gauge.zip", classic_zip)
        await poll(lambda: has_crashed(crashing[0]))
    world.wrap = lambda journal: journal
    async with world.run():
        await world.wait_state(State.ACTIVE, model="default")
        await poll(lambda: has_only_the_folder(world))


async def has_only_the_folder(world: World) -> bool:
    return world.list_leftovers() == ["gauge"]


async def test_a_kill_in_the_middle_of_a_download_resends_nothing_that_is_here(world: World) -> None:
    world.publish("1.0.0", size=300_000)
    world.origin.block_delay_s = 0.01
    async with world.run():
        world.deploy("1.0.0")
        await poll(lambda: has_sent(world, 100_000))
    sent = world.origin.sent_bytes
    world.origin.block_delay_s = 0
    async with world.run():
        await world.wait_state(State.ACTIVE)
    assert world.origin.sent_bytes - sent < 300_000 - 50_000


async def has_sent(world: World, size: int) -> bool:
    return world.origin.sent_bytes >= size


async def test_a_device_without_hub_starts_with_what_was_active_and_goes_on_with_what_it_knew(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0", size=200_000)
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.origin.block_delay_s = 0.02
        world.deploy("1.1.0")
        await world.wait_state(State.DOWNLOADING, version="1.1.0")
    world.hub.down = True
    world.origin.block_delay_s = 0
    async with world.run():
        assert world.activator.switched == ["1.0.0"]
        await world.wait_state(State.ACTIVE, version="1.1.0")
        assert not world.agent.get_status().connected  # type: ignore[union-attr]
        messages = len(world.hub.outputs)
        world.hub.down = False
        await poll(lambda: has_reported(world, State.ACTIVE))
        await poll(lambda: has_more_outputs(world, messages))


async def has_more_outputs(world: World, count: int) -> bool:
    return len(world.hub.outputs) > count


async def test_what_happened_while_the_connection_was_down_is_taken_in_one_step(world: World) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        world.publish(version)
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.hub.down = True
        world.hub.drop()
        await poll(lambda: is_disconnected(world))
        world.deploy("1.1.0")
        world.deploy("1.2.0")
        world.hub.down = False
        await world.wait_state(State.ACTIVE, version="1.2.0")
        assert world.activator.proven == ["1.0.0", "1.2.0"]


@pytest.mark.parametrize("error", [LinkDown, ServerBusy, AccessDenied])
async def test_a_hub_that_is_back_wakes_what_waits_for_the_link_and_nothing_else(
    world: World, error: type[EdgeferryError]
) -> None:
    world.settings = replace(world.settings, retry_base_s=30.0, retry_max_s=30.0)
    world.publish("1.0.0")
    world.manifests.failures = deque([error("not now")])
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.WAITING)
        world.hub.drop()
        await poll(lambda: has_connected(world, 2))
        if error is not LinkDown:
            await asyncio.sleep(0.1)
            assert len(world.manifests.calls) == 1
            world.hub.desire(something="else")
        await world.wait_state(State.ACTIVE)


async def test_a_hub_that_is_busy_is_asked_again_over_the_same_connection_at_the_start_and_later(world: World) -> None:
    for version in ("1.0.0", "1.1.0"):
        world.publish(version)
    async with world.run():
        for version in ("1.0.0", "1.1.0"):
            world.hub.busy = 3
            world.deploy(version)
            await world.wait_state(State.ACTIVE, version=version)
            assert world.hub.busy == 0
    assert world.hub.connections == 1


async def has_connected(world: World, times: int) -> bool:
    return world.hub.connections >= times


async def is_disconnected(world: World) -> bool:
    return not world.agent.get_status().connected  # type: ignore[union-attr]


async def test_an_active_version_that_does_not_load_gives_way_to_the_previous_one(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        for version in ("1.0.0", "1.1.0"):
            world.deploy(version)
            await world.wait_state(State.ACTIVE, version=version)
    world.activator.failures["prove"].append(ModelCrashed("the engine changed"))
    async with world.run():
        assert world.activator.serving["detector"].version == "1.0.0"


async def test_deaths_of_the_whole_device_on_probation_roll_back(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
    world.settings = replace(world.settings, probation_s=60.0)
    crashing: list[CrashingJournal] = []
    world.wrap = lambda journal: crashing.append(CrashingJournal(journal, State.PROBATION, after=True)) or crashing[-1]
    async with world.run():
        world.deploy("1.1.0")
        await poll(lambda: has_crashed(crashing[-1]))
    for _ in range(3):
        world.wrap = lambda journal: crashing.append(CrashingJournal(journal, State.ACTIVE, after=True)) or crashing[-1]
        async with world.run():
            await asyncio.sleep(0.05)
            if world.get_record().state is State.PROBATION:  # type: ignore[union-attr]
                crashing[-1].crashed = True
    world.wrap = lambda journal: journal
    async with world.run():
        record = await world.wait_state(State.ROLLED_BACK, version="1.1.0")
        assert record.fault is not None
        assert world.activator.serving["detector"].version == "1.0.0"


async def test_a_journal_that_was_lost_costs_no_byte(world: World) -> None:
    world.publish("1.0.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
    for path in (world.root / "edgeferry").glob("journal.db*"):
        path.write_bytes(b"rubbish") if path.name == "journal.db" else path.unlink()
    world.origin.requests.clear()
    async with world.run():
        await world.wait_state(State.ACTIVE)
        assert world.activator.switched == ["1.0.0"]
        assert world.origin.requests == []


async def test_the_journal_holds_no_secret(world: World) -> None:
    world.publish("1.0.0")
    async with world.run():
        world.deploy("1.0.0", sas="sv=1&sig=topsecret")
        await world.wait_state(State.ACTIVE)
    async with open_journal(world.repository.journal_path) as journal:
        rows = await journal.load_records()
    assert rows
    assert all(b"topsecret" not in body and read_record_bytes(body) for _, body in rows)
