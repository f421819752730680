"""Patches between versions: which are made, which are left out, and what devices fetch with them."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.publish.desk import NOW, make_desk, make_model, make_picture, make_request, say_nothing

from edgeferry.delta.apply import apply_patch
from edgeferry.delta.tensors import find_tensors
from edgeferry.errors import ConfigInvalid
from edgeferry.link.route import list_digests, pick_route
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest, Source, read_manifest_bytes
from edgeferry.publish import patches
from edgeferry.publish.patches import (
    DEFAULT_BASES,
    DEFAULT_BUDGET,
    MAX_BASES,
    SOURCE_BYTES,
    Bundled,
    count_download,
    pick_bases,
    read_bundled,
)
from edgeferry.publish.publisher import publish
from edgeferry.publish.report import PublishReport
from edgeferry.trust import signer
from edgeferry.trust.bundle_object import SMALL_MAX_BYTES, get_bundle_path
from edgeferry.trust.draft import Listed, open_draft
from edgeferry.trust.signer import Desk, refresh
from edgeferry.trust.verifier import Verifier

FIRST = make_model()
SECOND, THIRD = make_model(changed=200), make_model(changed=300)
"""Each is the first with some of its rows moved: the second and the third differ in 300 rows."""
MANY_LABELS = b"high\nlow\n" + random.Random(5).randbytes(SMALL_MAX_BYTES // 2).hex().encode() + b"\n"
"""Too long to come along in the bundle object."""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return make_desk(tmp_path)


def put(desk: Desk, version: str, model: bytes, **changes: object) -> PublishReport:
    return publish(make_request(version, model_data=model, **changes), desk, say=say_nothing)


def read(desk: Desk, path: str) -> bytes:
    found = desk.store.find(path, 100 << 20)
    assert found is not None, path
    return found[0]


def read_manifest(desk: Desk, version: str) -> Manifest:
    listed = open_draft(desk.store, desk.keys).find_version("gauge", version)
    assert listed is not None
    return read_manifest_bytes(read(desk, f"targets/gauge/{version}/{listed.digest.hex}.manifest.json"))


def list_patches(manifest: Manifest) -> list[Source]:
    return [source for source in manifest.files[0].sources if source.kind == "patch"]


def fetch_as_device(desk: Desk, folder: Path, version: str) -> tuple[Manifest, ...]:
    """What a device's verifier gives it: the version's manifest, then those that came along."""
    verifier = Verifier(folder, desk.keys.read_root(), lambda path, _: read(desk, path), NOW.timestamp)
    digest = open_draft(desk.store, desk.keys).find_version("gauge", version)
    assert digest is not None
    delivery = verifier.fetch_manifests("gauge", version, digest.digest)
    return tuple(map(read_manifest_bytes, (delivery.manifest, *delivery.others)))


def read_along(desk: Desk) -> Bundled:
    """What devices get along with the newest manifest."""
    return read_bundled(desk.store, open_draft(desk.store, desk.keys).list_versions("gauge"))


def test_a_patch_from_the_version_before_is_published_and_gives_the_new_file(desk: Desk) -> None:
    put(desk, "1.0.0", FIRST)
    report = put(desk, "1.1.0", SECOND)
    [patch] = list_patches(read_manifest(desk, "1.1.0"))
    data = read(desk, Digest.from_str(patch.blob).blob_path)
    assert (Digest.of(data), len(data)) == (Digest.from_str(patch.blob), patch.size)
    target = bytearray(len(SECOND))
    apply_patch(FIRST, data, memoryview(target))
    assert target == SECOND
    [told] = report.patches
    assert (told.base, told.path, told.size, told.memory) == ("1.0.0", "gauge.onnx", patch.size, patch.memory)
    assert told.way
    assert report.update_bytes == patch.size < report.download_bytes / 5
    assert [(one.base, one.bytes, one.downloads) for one in report.updates] == [("1.0.0", patch.size, 1)]


def test_patches_are_made_from_the_last_versions_and_the_labels_travel_whole(desk: Desk) -> None:
    models = [make_model(changed=100 * number) for number in range(DEFAULT_BASES + 2)]
    for number, model in enumerate(models[:-1]):
        put(desk, f"1.{number}", model, patch_budget=0)
    report = put(desk, "2.0", models[-1], labels_data=MANY_LABELS)
    assert [patch.base for patch in report.patches] == ["1.3", "1.2", "1.1"]
    assert {patch.path for patch in report.patches} == {"gauge.onnx"}
    assert [update.base for update in report.updates] == ["1.3", "1.2", "1.1"]
    sizes = {patch.base: patch.size for patch in report.patches}
    assert {one.base: one.bytes for one in report.updates} == {
        base: size + report.files[1].coded_size for base, size in sizes.items()
    }


def test_named_bases_are_taken_in_their_order_and_an_unknown_one_is_refused(desk: Desk) -> None:
    put(desk, "1.0", FIRST)
    put(desk, "1.1", SECOND, patch_budget=0)
    with pytest.raises(ConfigInvalid, match=r"'0\.9'.*1\.1, 1\.0"):
        put(desk, "1.2", THIRD, bases=("0.9",))
    report = put(desk, "1.2", THIRD, bases=("1.0",))
    assert [patch.base for patch in report.patches] == ["1.0"]


def test_the_budget_goes_to_the_version_that_most_devices_run(desk: Desk) -> None:
    put(desk, "1.0", FIRST)
    put(desk, "1.1", SECOND, patch_budget=0)
    running = {"1.0": 90, "1.1": 10, "0.8": 500}
    alone = put(make_desk_beside(desk), "1.2", THIRD, running=running)
    assert [patch.base for patch in alone.patches] == ["1.0", "1.1"]
    report = put(desk, "1.2", THIRD, running=running, patch_budget=alone.patches[0].size + 1)
    assert [patch.base for patch in report.patches] == ["1.0"]
    assert any("from 1.1" in note and "over the budget" in note for note in report.notes)


def test_no_budget_makes_no_patch_and_says_so(desk: Desk) -> None:
    put(desk, "1.0", FIRST)
    said: list[str] = []
    report = publish(make_request("1.1", model_data=SECOND, patch_budget=0), desk, say=said.append)
    assert (report.patches, list_patches(read_manifest(desk, "1.1"))) == ((), [])
    assert any("the budget for patches is spent" in note for note in report.notes)
    assert not any("patch" in line for line in said)


def make_desk_beside(desk: Desk) -> Desk:
    """A copy of the desk: what is published on it stays out of the other."""
    store = CopyOnWrite(desk.store)
    return dataclasses.replace(desk, store=store)  # type: ignore[arg-type]


class CopyOnWrite:
    def __init__(self, store: object) -> None:
        self.store, self.written = store, dict[str, bytes]()

    def find(self, path: str, max_bytes: int) -> tuple[bytes, str] | None:
        return (self.written[path], "") if path in self.written else self.store.find(path, max_bytes)  # type: ignore[attr-defined, no-any-return]

    def put(self, path: str, data: bytes, sent: object = None) -> None:
        self.written[path] = data

    def put_blob(self, path: str, data: bytes, sent: object) -> None:
        self.written[path] = data

    def put_new(self, path: str, data: bytes) -> bool:
        self.written[path] = data
        return True

    def put_if(self, path: str, data: bytes, etag: str) -> None:
        self.written[path] = data

    def list_paths(self, prefix: str) -> Iterable[str]:
        return iter(())


def test_without_a_word_all_patches_together_take_a_few_times_the_full_download_at_most(desk: Desk) -> None:
    for number in range(8):
        put(desk, f"1.{number}", make_model(seed=1, changed=2900 + number * 20), patch_budget=0)
    bases = tuple(f"1.{number}" for number in range(8))
    report = put(desk, "2.0", make_model(seed=1, changed=3000), bases=bases)
    full_bytes = sum(file.coded_size for file in report.files)
    assert 0 < sum(patch.size for patch in report.patches) <= DEFAULT_BUDGET * full_bytes


def test_a_patch_that_saves_less_than_its_line_in_the_manifest_costs_is_left_out_and_that_is_said(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(desk, "1.0", FIRST)
    saved = put(make_desk_beside(desk), "1.1", SECOND)
    full, patch = saved.files[0].coded_size, saved.patches[0].size
    monkeypatch.setattr(patches, "SOURCE_BYTES", full - patch)
    report = put(desk, "1.1", SECOND)
    assert report.patches == ()
    assert any(f"from 1.0 was left out: {patch:,} bytes, {full:,} without it" in note for note in report.notes)
    assert list_patches(read_manifest(desk, "1.1")) == []
    assert report.update_bytes == full


def test_a_file_that_did_not_change_needs_no_patch(desk: Desk) -> None:
    put(desk, "1.0", FIRST)
    report = put(desk, "1.1", FIRST, labels_data=MANY_LABELS)
    assert report.patches == ()
    assert report.update_bytes == report.files[1].coded_size


def test_two_versions_with_the_same_file_need_one_patch(desk: Desk) -> None:
    put(desk, "1.0", FIRST, labels_data=MANY_LABELS)
    put(desk, "1.0.1", FIRST)
    report = put(desk, "1.1", SECOND, labels_data=MANY_LABELS)
    assert [patch.base for patch in report.patches] == ["1.0.1"]
    assert [update.downloads for update in report.updates] == [2, 1]


def test_a_model_file_under_another_name_is_patched_all_the_same(desk: Desk) -> None:
    put(desk, "1.0", FIRST)
    report = put(desk, "1.1", SECOND, model_file="dial.onnx")
    assert [(patch.base, patch.path) for patch in report.patches] == [("1.0", "dial.onnx")]


def test_a_base_whose_file_is_gone_from_the_store_is_passed_over_and_that_is_said(desk: Desk, tmp_path: Path) -> None:
    put(desk, "1.0", FIRST)
    blob = Digest.from_str(read_manifest(desk, "1.0").files[0].sources[0].blob)
    path = tmp_path / "repo" / blob.blob_path
    for damage in (lambda: path.write_bytes(b"something else"), path.unlink):
        damage()
        report = put(make_desk_beside(desk), "1.1", SECOND)
        assert report.patches == ()
        assert any("from 1.0 was not made" in note for note in report.notes)


# --- chains -----------------------------------------------------------------------------------------------------------
def test_a_direct_patch_that_two_short_ones_beat_is_left_out_and_devices_chain(desk: Desk, tmp_path: Path) -> None:
    put(desk, "1.0", FIRST)
    put(desk, "1.1", make_model(changed=40))
    report = put(desk, "1.2", make_model(changed=80), bases=("1.1", "1.0"))
    manifest, *others = fetch_as_device(desk, tmp_path / "trust", "1.2")
    assert {one.version for one in others} == {"1.0", "1.1"}
    have = list_digests(read_manifest(desk, "1.0"))
    route = pick_route(manifest.files[0], have, also=[entry for one in others for entry in one.files])
    told = {one.base: (one.bytes, one.downloads) for one in report.updates}
    assert told["1.0"] == (route.download_bytes, len(route.steps)) == count_download(manifest, have, read_along(desk))
    chain = sum(patch.size for version in ("1.1", "1.2") for patch in list_patches(read_manifest(desk, version))[:1])
    direct = [patch.size for patch in report.patches if patch.base == "1.0"]
    assert told["1.0"][0] == min([chain, *direct])
    assert not direct or direct[0] + SOURCE_BYTES < chain
    assert direct or any("from 1.0 was left out" in note for note in report.notes)


@pytest.mark.parametrize("manifests", [1, 2, 3])
def test_chains_are_counted_on_only_over_manifests_that_devices_get(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifests: int
) -> None:
    put(desk, "1.0", FIRST)
    put(desk, "1.1", change_rows(FIRST, 100))
    newest = change_rows(change_rows(FIRST, 100), 800)
    monkeypatch.setattr(patches, "SOURCE_BYTES", 1000)  # more than one patch for both changes saves
    sizes = [measure_bundle(desk, newest, monkeypatch, count) for count in (1, 2, 3)]
    assert sizes == sorted(set(sizes))
    wanted = [(one + next_one) // 2 for one, next_one in pairwise([*sizes, 2 * sizes[-1]])]
    monkeypatch.setattr(signer, "BUNDLE_WANTED_BYTES", wanted[manifests - 1])
    report = put(desk, "1.2", newest, bases=("1.1", "1.0"))
    manifest, *others = fetch_as_device(desk, tmp_path / "trust", "1.2")
    assert len(others) == manifests - 1
    assert [patch.base for patch in report.patches] == (["1.1", "1.0"] if manifests == 1 else ["1.1"])
    told = {one.base: (one.bytes, one.downloads) for one in report.updates}
    for base in ("1.0", "1.1"):
        assert told[base] == count_download(manifest, list_digests(read_manifest(desk, base)), read_along(desk))
        assert told[base][0] < report.download_bytes / 2


def measure_bundle(desk: Desk, newest: bytes, monkeypatch: pytest.MonkeyPatch, manifests: int) -> int:
    """Bytes of the bundle when it brings just so many manifests along."""
    with monkeypatch.context() as patched:
        patched.setattr(signer, "BUNDLE_MAX_MANIFESTS", manifests)
        return put(make_desk_beside(desk), "1.2", newest, bases=("1.1",)).bundle_bytes


def change_rows(model: bytes, first: int) -> bytes:
    """The model with numbers of 100 rows from `first` on drawn anew: changes that no shorter patch does at once."""
    [weights] = [one for one in find_tensors(model) if one.elements > 1000]
    numbers = np.frombuffer(model[weights.start : weights.end], "<f4").copy()
    at = slice(first * 3, (first + 100) * 3)
    numbers[at] += np.random.default_rng(first).standard_normal(300).astype("<f4")
    return model[: weights.start] + numbers.tobytes() + model[weights.end :]


def test_signing_again_keeps_the_manifests_that_patches_were_chosen_by(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(desk, "1.0", FIRST)
    put(desk, "1.1", make_model(changed=40))
    put(desk, "1.2", make_model(changed=80), bases=("1.1", "1.0"))
    listed = open_draft(desk.store, desk.keys).list_versions("gauge")
    assert len(read_bundled(desk.store, listed).manifests) == 3
    monkeypatch.setattr(signer, "BUNDLE_WANTED_BYTES", 1)
    refresh(desk)
    assert len(read_bundled(desk.store, listed).manifests) == 3


def test_publishing_again_tells_the_same_bytes(desk: Desk) -> None:
    put(desk, "1.0", FIRST)
    first, again = put(desk, "1.1", SECOND), put(desk, "1.1", SECOND)
    assert (first.unchanged, again.unchanged) == (False, True)
    assert (first.update_bytes, first.updates) == (again.update_bytes, again.updates)


def test_only_manifests_that_are_signed_count_as_known(desk: Desk) -> None:
    put(desk, "1.0", FIRST)
    put(desk, "1.1", SECOND)
    listed = open_draft(desk.store, desk.keys).list_versions("gauge")
    assert [one.version for one in read_bundled(desk.store, listed).manifests] == ["1.0", "1.1"]
    wrong = [make_other(listed[0]), listed[1]]
    assert [one.version for one in read_bundled(desk.store, wrong).manifests] == ["1.1"]
    desk.store.put(get_bundle_path("gauge"), b"no bundle at all")
    assert read_bundled(desk.store, listed) == Bundled(len(b"no bundle at all"))
    assert put(desk, "1.2", THIRD).patches


def make_other(listed: Listed) -> Listed:
    return dataclasses.replace(listed, digest=Digest.of(b"another"))


def test_golden_pictures_count_beside_patches(desk: Desk) -> None:
    put(desk, "1.0", FIRST)
    picture = make_picture()
    report = put(desk, "1.1", SECOND, golden_files={"one.png": picture, "one.json": b'{"label": "low"}'})
    assert report.update_bytes == report.patches[0].size + len(picture)


# --- which bases ------------------------------------------------------------------------------------------------------
def list_versions(names: Iterable[str]) -> list[Listed]:
    return [Listed("gauge", name, Digest.of(name.encode()), 1, at) for at, name in enumerate(names)]


@given(
    st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8),
    st.dictionaries(st.sampled_from("abcdxyz"), st.integers(0, 5)),
)
def test_what_most_devices_run_comes_first_and_nothing_that_nobody_runs(
    names: list[str], running: dict[str, int]
) -> None:
    picked = [one.version for one in pick_bases(list_versions(names), asked=None, running=running)]
    used = Counter({name: count for name, count in running.items() if count and name in names})
    if used:
        assert sorted(picked) == sorted(used)
        order = [(-used[name], -names.index(name)) for name in picked]
        assert order == sorted(order)
    else:
        assert picked == list(reversed(names))[:DEFAULT_BASES]


def test_of_many_versions_the_most_used_are_bases_and_the_others_are_named(desk: Desk) -> None:
    names = [f"1.{number}" for number in range(MAX_BASES + 2)]
    for name in names:
        put(desk, name, FIRST, patch_budget=0, labels_data=f"high\nlow\n{name}\n".encode())
    running = {name: 10 + at for at, name in enumerate(names)}
    report = put(desk, "2.0", SECOND, running=running)
    assert [one.base for one in report.updates] == names[:1:-1]
    [note] = [note for note in report.notes if note.startswith("no patches from")]
    assert "1.0, 1.1, which 21 devices run" in note
    assert not any(
        note.startswith("no patches") for note in put(desk, "2.1", THIRD, bases=("1.0",), running=running).notes
    )


def test_named_bases_need_no_hub() -> None:
    listed = list_versions("abc")
    picked = pick_bases(listed, asked=("a", "c", "a"), running={"b": 9})
    assert [one.version for one in picked] == ["a", "c"]


def test_a_report_is_json(desk: Desk) -> None:
    put(desk, "1.0", FIRST)
    plain = msgspec.json.decode(msgspec.json.encode(put(desk, "1.1", SECOND)))
    assert set(plain["patches"][0]) == {"base", "path", "size", "way", "memory"}
    assert set(plain["updates"][0]) == {"base", "bytes", "downloads"}
