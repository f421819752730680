"""Updates by patch, by patch over patch, and by the full file once a patch has failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from agent.agent_world import CrashingJournal, World, make_model_file
from edgeferry.agent.machine import State
from edgeferry.agent.places import keep_manifest, list_needed, remove_base
from edgeferry.agent.plan import plan_artifacts
from edgeferry.agent.record import Artifact, UpdateRecord, make_signed_key, read_record_bytes, write_record_bytes
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest, Source, make_manifest_bytes, read_manifest_bytes
from edgeferry.storage.journal import Journal, open_journal
from edgeferry.storage.tidying import gc
from polling import poll

VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")


@pytest.fixture
def chain(world: World) -> World:
    """Four versions, each with a patch from the one before."""
    for version, bases in zip(VERSIONS, ((), *((one,) for one in VERSIONS)), strict=False):
        world.publish(version, bases=bases)
    return world


def get_manifest(world: World, version: str) -> Manifest:
    return read_manifest_bytes(world.manifests.known["detector", version])


def get_source(world: World, version: str, kind: str) -> Source:
    return next(one for one in get_manifest(world, version).files[0].sources if one.kind == kind)


def get_path(source: Source) -> str:
    return f"/repo/{Digest.from_str(source.blob).blob_path}"


def has_model_of(world: World, version: str) -> bool:
    return world.repository.has_blob(Digest.from_str(get_manifest(world, version).files[0].sha256))


async def begin(world: World) -> None:
    """1.0.0 is active; what was fetched for it is forgotten."""
    world.deploy("1.0.0")
    await world.wait_state(State.ACTIVE, version="1.0.0")
    world.origin.requests.clear()
    world.origin.sent_bytes = 0


def list_fetched(world: World) -> list[str]:
    return [path for path, _ in world.origin.requests]


def check_serves(world: World, version: str) -> None:
    stored = world.activator.serving["detector"]
    assert stored.version == version
    entry = get_manifest(world, version).files[0]
    assert Digest.of((stored.folder / entry.path).read_bytes()) == Digest.from_str(entry.sha256)


async def test_a_patch_is_fetched_and_nothing_else(chain: World) -> None:
    async with chain.run():
        await begin(chain)
        chain.deploy("1.1.0")
        record = await chain.wait_state(State.ACTIVE, version="1.1.0")
        assert [one.kind for one in record.artifacts] == ["patch"]
        patch = get_source(chain, "1.1.0", "patch")
        assert list_fetched(chain) == [get_path(patch)]
        assert chain.origin.sent_bytes == patch.size < 200
        check_serves(chain, "1.1.0")
        assert chain.list_leftovers() == []


async def test_a_device_three_versions_behind_takes_patch_over_patch(chain: World) -> None:
    async with chain.run():
        await begin(chain)
        chain.deploy("1.3.0")
        record = await chain.wait_state(State.ACTIVE, version="1.3.0")
        assert list_fetched(chain) == [get_path(get_source(chain, version, "patch")) for version in VERSIONS[1:]]
        assert [one.kind for one in record.artifacts] == ["patch"] * 3
        check_serves(chain, "1.3.0")
        await poll(lambda: is_true(chain.list_leftovers() == []))
        assert [has_model_of(chain, version) for version in VERSIONS] == [True, False, False, True]


async def is_true(found: bool) -> bool:
    return found


async def test_a_file_between_two_patches_goes_as_soon_as_the_second_is_applied(chain: World) -> None:
    async with chain.run():
        await begin(chain)
        chain.origin.files = CountingFiles(chain.origin.files, get_path(get_source(chain, "1.3.0", "patch")))
        chain.origin.files.look = lambda: [has_model_of(chain, version) for version in VERSIONS]  # type: ignore[attr-defined]
        chain.deploy("1.3.0")
        await chain.wait_state(State.ACTIVE, version="1.3.0")
        assert chain.origin.files.seen == [[True, False, True, False]]  # type: ignore[attr-defined]


class CountingFiles(dict[str, bytes]):
    """Looks around when one of the files is asked for."""

    def __init__(self, files: dict[str, bytes], path: str) -> None:
        super().__init__(files)
        self.path, self.seen = path, list[Any]()
        self.look: Callable[[], Any] = lambda: None

    def get(self, path: str, default: Any = None) -> Any:
        if path == self.path:
            self.seen.append(self.look())
        return super().get(path, default)


async def test_without_the_manifests_between_the_full_file_is_fetched(chain: World) -> None:
    chain.manifests.known = {key: chain.manifests.known[key] for key in chain.manifests.known if key[1] != "1.1.0"}
    async with chain.run():
        await begin(chain)
        chain.deploy("1.2.0")
        await chain.wait_state(State.ACTIVE, version="1.2.0")
        assert list_fetched(chain) == [get_path(get_source(chain, "1.2.0", "full"))]


async def test_a_file_between_two_patches_stays_when_the_new_version_holds_it_too(chain: World) -> None:
    manifest, between = get_manifest(chain, "1.2.0"), get_manifest(chain, "1.1.0").files[0]
    kept = msgspec.structs.replace(between, path="older.onnx")
    files = (*manifest.files, kept)
    chain.manifests.known["detector", "1.2.0"] = make_manifest_bytes(msgspec.structs.replace(manifest, files=files))
    async with chain.run():
        await begin(chain)
        chain.deploy("1.2.0")
        await chain.wait_state(State.ACTIVE, version="1.2.0")
        assert list_fetched(chain) == [get_path(get_source(chain, version, "patch")) for version in ("1.1.0", "1.2.0")]
        stored = chain.activator.serving["detector"]
        assert Digest.of((stored.folder / "older.onnx").read_bytes()) == Digest.from_str(between.sha256)


def publish_twin(world: World, version: str) -> Manifest:
    """Another model, whose only version holds the very files of the detector's `version`."""
    twin = msgspec.structs.replace(get_manifest(world, version), model="twin", version="1.0.0")
    world.manifests.known["twin", "1.0.0"] = make_manifest_bytes(twin)
    return twin


def make_stopped(manifest: Manifest, state: State, *artifacts: Artifact, index: int = 0) -> UpdateRecord:
    identity = Digest.of(make_manifest_bytes(manifest))
    return UpdateRecord(
        kind="signed",
        model=manifest.model,
        version=manifest.version,
        key=make_signed_key(manifest.model, identity, 1),
        identity=str(identity),
        state=state,
        artifacts=artifacts,
        index=index,
    )


def keep(world: World, manifest: Manifest) -> None:
    data = make_manifest_bytes(manifest)
    keep_manifest(world.repository, Digest.of(data), data)


def put_file(world: World, version: str) -> Digest:
    data = make_model_file("detector", version, get_manifest(world, version).files[0].size)
    path = world.repository.partial_folder / "given"
    path.write_bytes(data)
    world.repository.adopt_blob(Digest.of(data), path)
    return Digest.of(data)


async def test_a_file_between_two_patches_stays_while_another_model_counts_on_it(chain: World) -> None:
    chain.repository.prepare()
    twin, newest = publish_twin(chain, "1.1.0"), get_manifest(chain, "1.2.0")
    have = frozenset({Digest.from_str(get_manifest(chain, "1.0.0").files[0].sha256)})
    patches = plan_artifacts(newest, have, others=[get_manifest(chain, "1.1.0")])[:2]
    assert [one.kind for one in patches] == ["patch", "patch"]
    keep(chain, twin)
    keep(chain, newest)
    between = put_file(chain, "1.1.0")
    walking = make_stopped(newest, State.STORING, *patches, index=1)
    for state, stays in ((State.STORING, True), (State.WAITING, True), (State.REJECTED, False)):
        remove_base(chain.repository, walking, [make_stopped(twin, state)])
        assert chain.repository.has_blob(between) is stays


async def test_what_another_update_let_go_of_is_fetched_after_all(chain: World) -> None:
    """Both were resolved before either was written down: nothing was missing for the twin, now its model file is."""
    chain.repository.prepare()
    twin = publish_twin(chain, "1.1.0")
    keep(chain, twin)
    chain.deploy("1.0.0", model="twin")
    async with open_journal(chain.repository.journal_path) as journal:
        record = make_stopped(twin, State.STORING)
        await journal.save_record(record.key, model="twin", state=record.state, body=write_record_bytes(record))
        await journal.set_value("desired", msgspec.json.encode(chain.hub.desired))
    async with chain.run():
        record = await chain.wait_state(State.ACTIVE, State.REJECTED, model="twin")
        assert (record.state, record.index, len(record.artifacts)) == (State.ACTIVE, 2, 3)  # model, labels, picture
        stored = chain.activator.serving["twin"]
        assert (stored.folder / "model.onnx").read_bytes() == make_model_file("detector", "1.1.0", 20_000)


async def test_tidying_up_keeps_what_an_update_under_way_found_here(chain: World) -> None:
    chain.repository.prepare()
    twin = publish_twin(chain, "1.3.0")
    keep(chain, twin)
    found = put_file(chain, "1.3.0")
    for state, stays in ((State.STORING, True), (State.ACTIVE, False)):
        gc(chain.repository, keep_blobs=list_needed(chain.repository, make_stopped(twin, state)))
        assert chain.repository.has_blob(found) is stays


@pytest.mark.parametrize(("quota_bytes", "stays"), [(0, True), (70_000, False)], ids=["no quota", "room for three"])
async def test_what_was_active_before_stays_until_it_must_give_way_to_a_wanted_version(
    chain: World, quota_bytes: int, stays: bool
) -> None:
    chain.quota_bytes = quota_bytes
    async with chain.run():
        await begin(chain)
        for version in VERSIONS[1:]:
            chain.deploy(version)
            await chain.wait_state(State.ACTIVE, version=version)
        await poll(lambda: is_true([has_model_of(chain, one) for one in VERSIONS] == [stays, True, True, True]))


async def test_an_older_version_that_stayed_comes_back_without_a_byte(chain: World) -> None:
    async with chain.run():
        await begin(chain)
        for version in VERSIONS[1:]:
            chain.deploy(version)
            await chain.wait_state(State.ACTIVE, version=version)
        before = chain.origin.sent_bytes
        chain.deploy("1.0.0", **{"try": 2})
        await chain.wait_state(State.ACTIVE, version="1.0.0")
        assert chain.origin.sent_bytes == before


# --- a patch that fails -----------------------------------------------------------------------------------------------
def lie(world: World, version: str, data: bytes) -> Source:
    """Puts `data` in the place of the version's patch, under a digest that is right."""
    manifest = get_manifest(world, version)
    entry = manifest.files[0]
    full, patch = entry.sources
    lying = msgspec.structs.replace(patch, blob=world.put_blob(data), size=len(data))
    entry = msgspec.structs.replace(entry, sources=(full, lying))
    files = (entry, *manifest.files[1:])
    world.manifests.known["detector", version] = make_manifest_bytes(msgspec.structs.replace(manifest, files=files))
    return lying


def make_lie(world: World, version: str, what: str) -> bytes:
    good = world.origin.files[get_path(get_source(world, version, "patch"))]
    others = {"junk": b"no patch at all", "cut": good[:-3], "for another base": make_other(world, version)}
    return others[what]


def make_other(world: World, version: str) -> bytes:
    """A sound patch to the same file, from a base that this device does not have."""
    other = next(one for one in VERSIONS if one != version and VERSIONS.index(one) != VERSIONS.index(version) - 1)
    data = world.publish(version, bases=(other,))
    return world.origin.files[get_path(data.files[0].sources[1])]


@pytest.mark.parametrize("what", ["junk", "cut", "for another base"])
async def test_a_patch_that_fails_is_followed_by_the_full_file_once(chain: World, what: str) -> None:
    before = chain.manifests.known["detector", "1.1.0"]
    data = make_lie(chain, "1.1.0", what)
    chain.manifests.known["detector", "1.1.0"] = before
    lying = lie(chain, "1.1.0", data)
    async with chain.run():
        await begin(chain)
        chain.deploy("1.1.0")
        record = await chain.wait_state(State.ACTIVE, version="1.1.0")
        assert list_fetched(chain) == [get_path(lying), get_path(get_source(chain, "1.1.0", "full"))]
        assert (record.whole, [one.kind for one in record.artifacts]) == (True, ["full"])
        check_serves(chain, "1.1.0")
        await poll(lambda: is_true(chain.list_leftovers() == []))


async def test_a_chain_that_breaks_in_the_middle_is_followed_by_the_full_file(chain: World) -> None:
    lying = lie(chain, "1.2.0", b"no patch at all")
    async with chain.run():
        await begin(chain)
        chain.deploy("1.3.0")
        await chain.wait_state(State.ACTIVE, version="1.3.0")
        first, full = get_source(chain, "1.1.0", "patch"), get_source(chain, "1.3.0", "full")
        assert list_fetched(chain) == [get_path(first), get_path(lying), get_path(full)]
        check_serves(chain, "1.3.0")
        await poll(lambda: is_true([has_model_of(chain, one) for one in VERSIONS] == [True, False, False, True]))
        assert chain.list_leftovers() == []


async def test_a_base_that_is_gone_from_the_disk_costs_the_full_file_and_no_version(chain: World) -> None:
    chain.settings = replace(chain.settings, retry_base_s=1.0, retry_max_s=1.0)
    async with chain.run():
        await begin(chain)
        chain.origin.statuses.append(503)  # planned, and nothing fetched yet
        chain.deploy("1.1.0")
        await chain.wait_state(State.WAITING, version="1.1.0")
        chain.repository.blob_path(Digest.from_str(get_manifest(chain, "1.0.0").files[0].sha256)).unlink()
        record = await chain.wait_state(State.ACTIVE, version="1.1.0")
        assert record.whole
        assert list_fetched(chain)[-1] == get_path(get_source(chain, "1.1.0", "full"))


async def test_a_version_whose_patch_has_failed_is_never_patched_again_even_when_it_is_resolved_anew(
    chain: World,
) -> None:
    lie(chain, "1.1.0", b"no patch at all")
    async with chain.run():
        await begin(chain)
        chain.origin.block_delay_s = 0.2
        chain.deploy("1.1.0")
        await poll(lambda: is_whole(chain))
    chain.origin.requests.clear()
    async with open_rows(chain) as rows:
        [(key, record)] = [(key, one) for key, one in rows.items() if one.version == "1.1.0"]
        resolving = msgspec.structs.replace(record, state=State.RESOLVING, artifacts=(), index=0)
        rows[key] = resolving
    async with chain.run():
        await chain.wait_state(State.ACTIVE, version="1.1.0")
        assert set(list_fetched(chain)) == {get_path(get_source(chain, "1.1.0", "full"))}


async def is_whole(world: World) -> bool:
    record = world.get_record()
    return record is not None and record.whole


class open_rows:  # noqa: N801 - reads as a function
    """The journal's records while no agent runs; what is changed in them is written."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def __aenter__(self) -> dict[str, UpdateRecord]:
        from edgeferry.storage.journal import open_journal

        self.opened = open_journal(self.world.repository.journal_path)
        self.journal: Journal = await self.opened.__aenter__()
        self.rows = {key: read_record_bytes(body) for key, body in await self.journal.load_records()}
        return self.rows

    async def __aexit__(self, *_: object) -> None:
        for key, record in self.rows.items():
            body = msgspec.json.encode(record)
            await self.journal.save_record(key, model=record.model, state=record.state, body=body)
        await self.opened.__aexit__(None, None, None)


# --- kills ------------------------------------------------------------------------------------------------------------
class CrashingOnTheWay(CrashingJournal):
    """A kill when the artifact at `index` is in `state`."""

    def __init__(self, journal: Journal, state: State, *, index: int, after: bool) -> None:
        super().__init__(journal, state, after=after)
        self.index = index

    async def save_record(self, key: str, *, model: str, state: str, body: bytes) -> None:
        if not self.crashed and read_record_bytes(body).index != self.index:
            await self._journal.save_record(key, model=model, state=state, body=body)
        else:
            await super().save_record(key, model=model, state=state, body=body)


@pytest.mark.parametrize("after", [False, True], ids=["before it is written", "after it is written"])
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("state", [State.DOWNLOADING, State.VERIFYING, State.PATCHING, State.STORING])
async def test_a_kill_at_any_state_of_a_chain_goes_on_and_fetches_nothing_twice(
    chain: World, state: State, index: int, after: bool
) -> None:
    async with chain.run():
        await begin(chain)
    crashing: list[CrashingOnTheWay] = []
    chain.wrap = lambda journal: (
        crashing.append(CrashingOnTheWay(journal, state, index=index, after=after)) or crashing[0]
    )
    async with chain.run():
        chain.deploy("1.3.0")
        await poll(lambda: is_true(crashing[0].crashed))
    chain.wrap = lambda journal: journal
    async with chain.run():
        await chain.wait_state(State.ACTIVE, version="1.3.0")
        assert list_fetched(chain) == [get_path(get_source(chain, version, "patch")) for version in VERSIONS[1:]]
        check_serves(chain, "1.3.0")
        await poll(lambda: is_true([has_model_of(chain, one) for one in VERSIONS] == [True, False, False, True]))
        assert chain.list_leftovers() == []


# --- the plan ---------------------------------------------------------------------------------------------------------
def test_a_plan_counts_what_two_files_share_once_and_golden_pictures_last(chain: World) -> None:
    manifest = get_manifest(chain, "1.1.0")
    twice = msgspec.structs.replace(manifest.files[0], path="twin.onnx")
    both = msgspec.structs.replace(manifest, files=(*manifest.files, twice))
    have = {Digest.from_str(get_manifest(chain, "1.0.0").files[0].sha256)}
    planned = plan_artifacts(both, have)
    assert [one.kind for one in planned] == ["patch", "full", "full"]
    assert planned[-1].blob == manifest.golden[0].input
    assert [one.kind for one in plan_artifacts(both, have, whole=True)] == ["full", "full", "full"]
