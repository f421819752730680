"""Damage at rest: each stored file, damaged in each way, is a row. It is found, and only that part is fetched.

Not a byte of it is ever loaded: the world's activator looks at every byte of what it is asked to prove.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.agent_world import FAST, PICTURE, World, make_model_file, open_origin
from edgeferry.agent.machine import State
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest, read_manifest_bytes
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.blobs import is_sound
from edgeferry.storage.mending import list_pieces
from polling import poll

LABELS = b"worker\nfire\n"
Harm = Callable[[Path], None]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)  # the same inode: what links to it is damaged as well


def cut(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])


def scribble(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"rubbish")


def remove(path: Path) -> None:
    path.unlink()


# --- places -----------------------------------------------------------------------------------------------------------
def get_manifest(world: World, version: str) -> Manifest:
    return read_manifest_bytes(world.manifests.known["detector", version])


def get_blob(world: World, data: bytes) -> Path:
    return world.repository.blob_path(Digest.of(data))


def get_folder(world: World, version: str) -> Path:
    return world.root / "edgeferry" / "models" / "detector" / "versions" / version


def get_model_data(version: str) -> bytes:
    return make_model_file("detector", version, 20_000)


def everywhere(data: bytes, *names: str) -> Callable[[World], list[Path]]:
    return lambda world: [get_blob(world, data), *(get_folder(world, "1.1.0") / name for name in names)]


def beside(*names: str) -> Callable[[World], list[Path]]:
    return lambda world: [world.root / "edgeferry" / name for name in names]


def in_version(name: str) -> Callable[[World], list[Path]]:
    return lambda world: [get_folder(world, "1.1.0") / name]


def kept_manifest(world: World) -> list[Path]:
    return [get_blob(world, world.manifests.known["detector", "1.1.0"])]


# --- rows -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Row:
    """`fetches`: what may be asked of the server, `patch` or bytes; `begins`: what serves while that is under way."""

    name: str
    harm: Harm
    places: Callable[[World], list[Path]]
    fetches: str | int = 0
    begins: str = "1.1.0"


MODEL = get_model_data("1.1.0")
CONTENT = [
    Row("a byte of the model is flipped", flip, lambda world: [get_blob(world, MODEL)], "patch", "1.0.0"),
    Row("the model is cut short", cut, lambda world: [get_blob(world, MODEL)], "patch", "1.0.0"),
    Row("the model is gone under both names", remove, everywhere(MODEL, "model.onnx"), "patch", "1.0.0"),
    Row("the version's file is gone", remove, in_version("model.onnx")),
    Row("the content is gone, the version's file is there", remove, lambda world: [get_blob(world, MODEL)]),
    Row("a byte of the labels is flipped, which both versions share", flip, in_version("labels.txt"), len(LABELS), ""),
    Row("a golden picture is damaged, which both versions share", flip, everywhere(PICTURE), len(PICTURE), ""),
    Row("the manifest is damaged", flip, in_version("manifest.json")),
    Row("the manifest is gone", remove, in_version("manifest.json")),
    Row("the identity is damaged", flip, in_version("identity:")),
    Row("the identity is gone", remove, in_version("identity:")),
]
KEPT = Row("the manifest that an update kept is damaged", flip, kept_manifest)
WORDS = [
    Row("the ref is damaged", flip, beside("models/detector/active"), begins="1.0.0"),
    Row("the ref is gone", remove, beside("models/detector/active"), begins="1.0.0"),
    Row("the ref to the version before is rubbish", scribble, beside("models/detector/previous")),
    Row("the history is rubbish", scribble, beside("models/detector/history")),
    Row("a pin is scribbled on", scribble, beside("models/detector/pins/1.0.0")),
    Row("the journal is rubbish", scribble, beside("journal.db")),
    Row("the journal is gone", remove, beside("journal.db")),
]


@pytest.fixture(scope="module")
def updated(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A device that has run: 1.1.0 is active, made from 1.0.0 by a patch; 1.0.0 is pinned."""
    return asyncio.run(run_updates(tmp_path_factory.mktemp("updated") / "storage"))


async def run_updates(storage: Path) -> World:
    async with open_origin() as origin:
        world = World(storage, FAST, origin)
        world.publish("1.0.0")
        world.publish("1.1.0", bases=("1.0.0",))
        async with world.run():
            for version in ("1.0.0", "1.1.0"):
                world.deploy(version)
                await world.wait_state(State.ACTIVE, version=version)
    world.repository.refs.pin("detector", "1.0.0")
    return world


@pytest.fixture
def damaged_world(world: World, updated: World) -> World:
    """That device's folder once more, hard links and all, and the same things published."""
    subprocess.run(["cp", "-a", str(updated.root), str(world.root)], check=True)
    world.origin.files = dict(updated.origin.files)
    world.manifests.known = dict(updated.manifests.known)
    world.deploy("1.1.0")
    return world


def count_allowed(world: World, row: Row) -> int:
    if isinstance(row.fetches, int):
        return row.fetches
    return next(one.size for one in get_manifest(world, "1.1.0").files[0].sources if one.kind == "patch")


def is_all_sound(world: World) -> bool:
    active = world.repository.read_ref("detector", "active")
    sound = all(is_sound(one.path, one.digest) for one in list_pieces(world.repository))
    return sound and active is not None and active.version == "1.1.0"


async def is_healed(world: World) -> bool:
    record = world.get_record()
    return record is not None and record.state is State.ACTIVE and is_all_sound(world)


@pytest.mark.parametrize("row", [*CONTENT, *WORDS], ids=lambda row: row.name)
async def test_what_is_damaged_while_the_device_is_off_is_found_at_the_start(damaged_world: World, row: Row) -> None:
    world = damaged_world
    for path in row.places(world):
        row.harm(path)
    async with world.run():
        await poll(lambda: is_healed(world))
        assert world.activator.switched[0] == (row.begins or "1.1.0")
        assert world.activator.serving["detector"].version == "1.1.0"
    assert world.origin.sent_bytes == count_allowed(world, row)
    assert world.repository.refs.list_pins("detector") == {"1.0.0"}
    assert world.list_leftovers() == []


@pytest.mark.parametrize("row", [*CONTENT, KEPT], ids=lambda row: row.name)
async def test_what_is_damaged_while_the_device_serves_is_found_by_the_scrub(damaged_world: World, row: Row) -> None:
    world = damaged_world
    world.settings = replace(world.settings, scrub_every_s=0.05)
    async with world.run():
        await world.wait_state(State.ACTIVE)
        for path in row.places(world):
            row.harm(path)
        await poll(lambda: is_healed(world))
        assert "1.0.0" not in world.activator.switched, "the worker that runs serves on"
    assert world.origin.sent_bytes == count_allowed(world, row)


async def test_without_a_link_a_damaged_version_gives_way_to_the_one_before_and_is_never_loaded(
    damaged_world: World,
) -> None:
    world = damaged_world
    flip(get_blob(world, MODEL))
    world.hub.down = True
    world.origin.statuses.extend([503] * 1000)
    async with world.run():
        await world.wait_state(State.WAITING, version="1.1.0")
        assert world.activator.serving["detector"].version == "1.0.0"
    assert world.activator.switched == ["1.0.0"]


async def test_a_row_of_the_journal_that_is_damaged_is_forgotten_and_found_out_again(damaged_world: World) -> None:
    world = damaged_world
    with sqlite3.connect(world.repository.journal_path) as database:
        database.execute("UPDATE record SET body = X'7b7b' WHERE state = 'ACTIVE'")
    database.close()
    async with world.run():
        await poll(lambda: is_healed(world))
    assert world.origin.sent_bytes == 0


async def test_damage_in_a_download_is_found_by_its_digest(world: World) -> None:
    world.publish("1.0.0", size=300_000)
    world.origin.block_delay_s = 0.01
    async with world.run():
        world.deploy("1.0.0")
        async with asyncio.timeout(10):
            while world.origin.sent_bytes < 100_000:
                await asyncio.sleep(0.005)
    (partial,) = world.repository.partial_folder.iterdir()
    flip(partial)
    world.origin.block_delay_s = 0
    async with world.run():
        await world.wait_state(State.ACTIVE)
    assert world.list_leftovers() == []


# --- the manifest that an update keeps --------------------------------------------------------------------------------
def lose_manifest(world: World, version: str, harm: Harm) -> None:
    harm(get_blob(world, world.manifests.known["detector", version]))


@pytest.mark.parametrize("harm", [remove, flip], ids=lambda harm: harm.__name__)
async def test_a_kept_manifest_that_is_lost_under_an_update_is_fetched_again(world: World, harm: Harm) -> None:
    world.publish("1.0.0", size=300_000)
    world.origin.block_delay_s = 0.005
    async with world.run():
        world.deploy("1.0.0")
        await poll(lambda: has_begun(world))
        lose_manifest(world, "1.0.0", harm)
        await world.wait_state(State.ACTIVE, version="1.0.0")
    assert world.origin.sent_bytes < 320_000, "what came of the content is not fetched twice"
    assert world.list_leftovers() == []


async def has_begun(world: World) -> bool:
    return world.origin.sent_bytes > 4096


@pytest.mark.parametrize("harm", [remove, flip], ids=lambda harm: harm.__name__)
async def test_a_kept_manifest_that_is_lost_before_a_patch_fails_is_fetched_again(world: World, harm: Harm) -> None:
    world.publish("1.0.0", size=100_000)
    patch = world.publish("1.1.0", size=100_000, bases=("1.0.0",)).files[0].sources[-1]
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.origin.statuses.extend([503] * 4)
        world.deploy("1.1.0")
        await world.wait_state(State.WAITING, version="1.1.0")
        lose_manifest(world, "1.1.0", harm)
        flip(get_blob(world, make_model_file("detector", "1.0.0", 100_000)))
        record = await world.wait_state(State.ACTIVE, State.REJECTED, version="1.1.0")
    assert record.state is State.ACTIVE
    assert patch.kind == "patch" and world.list_leftovers() == []


async def test_a_device_starts_with_a_kept_manifest_that_has_rotted(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.origin.statuses.extend([503] * 1000)
        world.deploy("1.1.0")
        await world.wait_state(State.WAITING, version="1.1.0")
    lose_manifest(world, "1.1.0", flip)
    world.origin.statuses.clear()
    async with world.run():
        await world.wait_state(State.ACTIVE, version="1.1.0")


# --- any file at all --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(12))
async def test_any_byte_of_any_file_may_rot_and_the_device_comes_back_whole(damaged_world: World, seed: int) -> None:
    world = damaged_world
    world.settings = replace(world.settings, scrub_every_s=0.05)
    pick = random.Random(seed)
    files = sorted(path for path in (world.root / "edgeferry").rglob("*") if path.is_file() and path.stat().st_size)
    path = pick.choice(files)
    data = bytearray(path.read_bytes())
    at = pick.randrange(len(data))
    data[at] ^= 1 << pick.randrange(8)
    path.chmod(0o644)
    path.write_bytes(data)
    print(f"bit of byte {at} of {path}")
    async with world.run():
        await poll(lambda: is_healed(world))
        assert world.activator.serving["detector"].version == "1.1.0"
    assert world.origin.sent_bytes <= len(data)


# --- unsigned versions: the bundle is the smallest part that can be had -----------------------------------------------
@dataclass(frozen=True)
class ClassicRow:
    name: str
    harm: Harm
    file: str
    fetches: bool = True


CLASSIC = [
    ClassicRow("its model is damaged", flip, "gauge.onnx"),
    ClassicRow("its labels are gone under one of their two names", remove, "labels.txt", fetches=False),
    ClassicRow("what we noted of it is damaged", flip, "manifest.json"),
    ClassicRow("its identity is damaged", flip, "identity:"),
]


@pytest.mark.parametrize("row", CLASSIC, ids=lambda row: row.name)
async def test_a_damaged_unsigned_version_is_fetched_as_the_bundle_it_came_in(
    world: World, classic_zip: bytes, row: ClassicRow
) -> None:
    async with world.run():
        world.deploy_classic("gauge.zip", classic_zip)
        await world.wait_state(State.ACTIVE, model="default")
    active = world.repository.read_ref("default", "active")
    assert active is not None
    row.harm(active.folder / row.file)
    world.origin.sent_bytes = 0
    async with world.run():
        await world.wait_state(State.ACTIVE, model="default")
        await poll(lambda: is_as_before(world, active))
        assert world.activator.serving["default"] == active
    assert world.origin.sent_bytes == (len(classic_zip) if row.fetches else 0)
    assert world.list_leftovers() == ["gauge"]


async def is_as_before(world: World, active: StoredVersion) -> bool:
    return world.repository.read_ref("default", "active") == active
