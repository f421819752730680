"""What is kept beside the version that serves: `previous` and pins come back whole, and nothing else moves."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from agent.agent_world import World, make_model_file, make_zip
from agent.test_damage import cut, flip, get_folder, remove, scribble
from edgeferry.agent import kept
from edgeferry.agent.agent import Agent
from edgeferry.agent.machine import State
from edgeferry.errors import ObjectMissing
from edgeferry.link.policy import read_link_policy
from edgeferry.model.chunks import CHUNK_BYTES, CHUNK_DIGEST_BYTES
from edgeferry.model.digest import Digest
from edgeferry.storage.blobs import is_sound
from edgeferry.storage.mending import list_hurt, list_pieces
from polling import poll

SIZE = 20_000
MODEL = make_model_file("detector", "1.0.0", SIZE)


@dataclass(frozen=True)
class Row:
    """What of version 1.0.0 is harmed and how, and what may be asked of the server for it."""

    name: str
    harm: Callable[[Path], None]
    file: str = ""
    """In the version's folder; else its model's blob, which is the same file."""
    fetches: int = 0


ROWS = [
    Row("a byte of the model is flipped", flip, fetches=SIZE),
    Row("the model is gone under both names", remove, "model.onnx", fetches=SIZE),
    Row("the version's file is gone", remove, "model.onnx"),
    Row("the manifest is damaged", flip, "manifest.json"),
    Row("the manifest is gone", remove, "manifest.json"),
    Row("the identity is damaged", flip, "identity:"),
    Row("the identity is gone", remove, "identity:"),
]


async def run_updates(world: World, size: int = SIZE) -> None:
    """1.0.0, then 1.1.0: the first is `previous` now."""
    for version in ("1.0.0", "1.1.0"):
        world.publish(version, size=size)
    async with world.run():
        for version in ("1.0.0", "1.1.0"):
            world.deploy(version)
            await world.wait_state(State.ACTIVE, version=version)
    world.origin.sent_bytes = 0
    world.settings = replace(world.settings, scrub_every_s=0.05)


def harm(world: World, row: Row) -> None:
    folder = get_folder(world, "1.0.0")
    blob = world.repository.blob_path(Digest.of(MODEL))
    if "both names" in row.name:
        remove(blob)
        remove(folder / row.file)
        return
    row.harm(folder / row.file if row.file else blob)


def is_all_whole(world: World) -> bool:
    sound = all(is_sound(one.path, one.digest) for one in list_pieces(world.repository))
    versions = {one.version for one in world.repository.list_versions("detector")}
    return sound and versions == {"1.0.0", "1.1.0"} and list_hurt(world.repository) == []


async def is_healed(world: World) -> bool:
    return await asyncio.to_thread(is_all_whole, world)


@pytest.mark.parametrize("name", ["previous", "pinned"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_kept_version_is_fetched_where_it_was_damaged_and_nothing_else_moves(
    world: World, row: Row, name: str
) -> None:
    await run_updates(world)
    if name == "pinned":
        world.repository.refs.pin("detector", "1.0.0")
        world.repository.refs.write("detector", "previous", None)
    previous = world.repository.refs.read("detector", "previous")
    async with world.run():
        await world.wait_state(State.ACTIVE, version="1.1.0")
        harm(world, row)
        await poll(lambda: is_healed(world))
        await poll(lambda: is_tidy(world))
        record = world.get_record()
        assert record is not None and (record.version, record.state) == ("1.1.0", State.ACTIVE)
    assert world.activator.switched == ["1.1.0"]
    assert world.repository.refs.read("detector", "previous") == previous
    assert world.origin.sent_bytes == row.fetches


async def is_tidy(world: World) -> bool:
    return world.list_leftovers() == []


LARGE = 5 * CHUNK_BYTES + 1000
LIST_BYTES = 6 * CHUNK_DIGEST_BYTES


def flip_ends(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


PIECES = [
    (flip, CHUNK_BYTES + LIST_BYTES),
    (flip_ends, CHUNK_BYTES + 1000 + LIST_BYTES),
    (cut, 1),
    (scribble, LARGE - len(b"rubbish") + CHUNK_BYTES + LIST_BYTES),
]


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
@pytest.mark.parametrize(("harm", "fetches"), PIECES, ids=[harm.__name__ for harm, _ in PIECES])
async def test_of_a_large_file_only_the_damaged_pieces_are_fetched_again(
    world: World, harm: Callable[[Path], None], fetches: int, version: str
) -> None:
    """Of what serves and of what is kept; where nothing of a piece is there any more, that piece."""
    await run_updates(world, LARGE)
    data = make_model_file("detector", version, LARGE)
    async with world.run():
        await world.wait_state(State.ACTIVE, version="1.1.0")
        harm(world.repository.blob_path(Digest.of(data)))
        await poll(lambda: is_healed(world))
        await poll(lambda: is_tidy(world))
    assert world.origin.sent_bytes == fetches


async def test_a_start_keeps_what_was_set_aside_until_it_is_repaired(world: World) -> None:
    await run_updates(world, LARGE)
    world.policy, _ = read_link_policy({"interfaces": {"eth0": "forbidden"}})
    async with world.run() as agent:
        flip(world.repository.blob_path(Digest.of(make_model_file("detector", "1.0.0", LARGE))))
        await poll(lambda: waits_for(agent, "link_forbidden"))
    world.interface = "wlan0"
    async with world.run():
        await poll(lambda: is_healed(world))
        await poll(lambda: is_tidy(world))
    assert world.origin.sent_bytes == CHUNK_BYTES + LIST_BYTES


async def test_what_was_set_aside_goes_with_the_version_that_it_was_of(world: World) -> None:
    await run_updates(world, LARGE)
    world.policy, _ = read_link_policy({"interfaces": {"eth0": "forbidden"}})
    async with world.run() as agent:
        flip(world.repository.blob_path(Digest.of(make_model_file("detector", "1.0.0", LARGE))))
        await poll(lambda: waits_for(agent, "link_forbidden"))
        world.repository.refs.write("detector", "previous", None)
        await agent.run_command("reload", None)
        await poll(lambda: is_tidy(world))


async def test_a_kept_version_keeps_to_the_policy_of_the_link(world: World) -> None:
    await run_updates(world)
    world.policy, _ = read_link_policy({"interfaces": {"eth0": "forbidden"}})
    async with world.run() as agent:
        harm(world, ROWS[0])
        await poll(lambda: waits_for(agent, "link_forbidden"))
        assert world.origin.sent_bytes == 0
        world.interface = "wlan0"
        await agent.run_command("reload", None)
        await poll(lambda: is_healed(world))
    assert world.origin.sent_bytes == SIZE


async def waits_for(agent: Agent, *codes: str) -> bool:
    """Whether what is kept waits, for one of these reasons."""
    faults = [one.fault for one in agent._keeper._records.values() if one.state is State.WAITING]
    return bool(faults) and all(fault is not None and fault.code in codes for fault in faults)


async def test_a_repository_that_has_it_no_more_is_asked_less_and_less_up_to_once_a_day(world: World) -> None:
    world.settings = replace(world.settings, retry_base_s=2.0, retry_max_s=900.0)
    await run_updates(world)
    world.manifests.failures = deque(ObjectMissing("not here") for _ in range(100))
    rests_s: list[float] = []
    async with world.run() as agent:
        harm(world, ROWS[0])
        while not rests_s or rests_s[-1] < 60_000:
            await poll(lambda: waits_for(agent, "object_missing"))
            [record] = agent._keeper._records.values()
            rests_s.append(record.retry_at - record.changed_at)
            world.clock_error_s += rests_s[-1] + 1
            calls = len(world.manifests.calls)
            agent._keeper.ring()
            await poll(partial(has_called, world, calls + 1))
    assert rests_s == sorted(rests_s) and len(rests_s) < 20
    assert world.get_record() is not None


async def has_called(world: World, times: int) -> bool:
    return len(world.manifests.calls) >= times


async def test_what_nobody_can_say_where_to_get_is_waited_for_without_a_look_at_the_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is due, and the twin names no signed version any more."""
    looks: list[float] = []
    monkeypatch.setattr(kept, "list_hurt", lambda repository: looks.append(0.0) or list_hurt(repository))
    await run_updates(world)
    world.manifests.failures = deque(ObjectMissing("not here") for _ in range(100))
    async with world.run() as agent:
        harm(world, ROWS[0])
        await poll(lambda: waits_for(agent, "object_missing"))
    world.settings = replace(world.settings, scrub_every_s=0.0)
    async with world.run() as agent:
        await poll(lambda: waits_for(agent, "object_missing"))
        agent._targets = {}
        world.clock_error_s += 7 * 86_400
        agent._keeper.ring()
        await poll(lambda: has_settled(looks))
    assert len(world.manifests.calls) < 20


async def has_settled(looks: list[float]) -> bool:
    """Whether nobody looks for a while: a loop would not stop within it."""
    before = len(looks)
    await asyncio.sleep(0.3)
    return len(looks) == before


async def test_a_kill_in_the_middle_loses_no_byte_that_came(world: World) -> None:
    size = 300_000
    await run_updates(world, size)
    remove(world.repository.blob_path(Digest.of(make_model_file("detector", "1.0.0", size))))
    remove(get_folder(world, "1.0.0") / "model.onnx")
    world.origin.block_delay_s = 0.01
    async with world.run():
        await poll(lambda: has_come(world, size // 2))
    world.origin.block_delay_s = 0
    async with world.run():
        await poll(lambda: is_healed(world))
        await poll(lambda: is_tidy(world))
    assert world.origin.sent_bytes < size + CHUNK_BYTES


async def has_come(world: World, size_bytes: int) -> bool:
    return world.origin.sent_bytes > size_bytes


async def test_a_loader_hands_nobody_the_version_that_it_made_whole(world: World) -> None:
    world.settings = replace(world.settings, role="loader")
    await run_updates(world)
    said = len(world.hub.outputs)
    async with world.run():
        harm(world, ROWS[0])
        await poll(lambda: is_healed(world))
    active = world.repository.refs.read("detector", "active")
    assert active is not None and active.version == "1.1.0"
    assert len(world.hub.outputs) == said


async def test_a_lower_priority_than_any_update_has_what_is_kept(world: World) -> None:
    """It gives way in the middle, and goes on afterwards without a byte twice."""
    size = 300_000
    await run_updates(world, size)
    newer = world.publish("1.2.0", size=100_000)
    remove(world.repository.blob_path(Digest.of(make_model_file("detector", "1.0.0", size))))
    remove(get_folder(world, "1.0.0") / "model.onnx")
    world.origin.block_delay_s = 0.01
    world.repository.refs.pin("detector", "1.0.0")
    async with world.run():
        await poll(lambda: has_come(world, size // 3))
        world.deploy("1.2.0", priority=-1000)
        await world.wait_state(State.ACTIVE, version="1.2.0")
        assert not await asyncio.to_thread(is_whole, world, "1.0.0")
        world.origin.block_delay_s = 0
        await poll(lambda: is_there(world, "1.0.0"))
    assert world.origin.sent_bytes < size + newer.files[0].size + 2 * CHUNK_BYTES


def is_whole(world: World, version: str) -> bool:
    return version in {one.version for one in world.repository.list_versions("detector")}


async def is_there(world: World, version: str) -> bool:
    return await asyncio.to_thread(is_whole, world, version)


async def test_an_unsigned_version_before_waits_for_its_next_update_without_asking_anybody(
    world: World, classic_zip: bytes
) -> None:
    with zipfile.ZipFile(io.BytesIO(classic_zip)) as bundle:
        model, text = bundle.read("gauge.onnx"), bundle.read("labels.txt")
    labels = {"gauge.zip": text, "gauge2.zip": text + b"\n"}
    async with world.run():
        for name, text in labels.items():
            world.deploy_classic(name, make_zip({"gauge.onnx": model, "labels.txt": text}))
            await poll(lambda name=name: is_active(world, name))
    before = world.repository.read_ref("default", "previous")
    assert before is not None
    world.origin.requests.clear()
    remove(before.folder / "labels.txt")
    remove(world.repository.blob_path(Digest.of(labels["gauge.zip"])))
    async with world.run() as agent:
        await world.wait_state(State.ACTIVE, model="default")
        await agent._keeper._heal_all()
        assert [one.version for one in list_hurt(world.repository)] == [before.version]
    assert world.origin.requests == []


async def is_active(world: World, file_name: str) -> bool:
    record = world.get_record("default")
    return record is not None and record.state is State.ACTIVE and record.file_name == file_name
