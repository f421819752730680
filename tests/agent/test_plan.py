"""What shall run here and what has to be fetched for it, as pure decisions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.agent_world import SPEC
from edgeferry.agent.plan import make_wanted, plan_artifacts
from edgeferry.errors import ManifestInvalid
from edgeferry.link.policy import LinkPolicy
from edgeferry.link.route import list_digests
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import FileEntry, Golden, Manifest, Source
from edgeferry.twin.contract import read_desired

MD5 = "wPJ4M5M4BVAkuk6fdJYODg=="
CLASSIC = {"FileName": "tensorflow001.zip", "DownloadUrl": "https://store/c/tensorflow001.zip?sig=1", "ContentMD5": MD5}
SECTION = {
    "repo": "https://store/r",
    "sas": "sv=1",
    "models": {"detector": {"version": "1.0.0", "manifest": "sha256:" + "a" * 64}},
}


def want(desired: dict[str, Any], *, accept_classic: bool = True) -> Any:
    return make_wanted(read_desired(desired), LinkPolicy(), accept_classic=accept_classic)


def test_our_section_names_model_version_and_digest() -> None:
    target = want({"edgeferry": SECTION}).targets["detector"]
    assert (target.kind, target.version, target.repo, target.sas) == ("signed", "1.0.0", "https://store/r", "sv=1")
    assert target.identity == "sha256:" + "a" * 64


def test_a_renewed_sas_keeps_the_key_and_a_raised_try_changes_it() -> None:
    first = want({"edgeferry": SECTION}).targets["detector"]
    renewed = want({"edgeferry": {**SECTION, "sas": "sv=2"}}).targets["detector"]
    again = {"detector": {**SECTION["models"]["detector"], "try": 2}}  # type: ignore[index]
    assert renewed != first
    assert renewed.key == first.key
    assert want({"edgeferry": {**SECTION, "models": again}}).targets["detector"].key != first.key


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("DownloadUrl", "https://store/c/tensorflow001.zip?sig=2", True),
        ("DownloadUrl", "https://other/c/tensorflow001.zip?sig=1", False),
        ("ContentMD5", "AAAAAAAAAAAAAAAAAAAAAA==", False),
        ("FileName", "tensorflow002.zip", False),
    ],
)
def test_a_classic_update_is_its_name_md5_and_url_without_query(field: str, value: str, same: bool) -> None:
    first = want(CLASSIC).targets["default"]
    other = want({**CLASSIC, field: value}).targets["default"]
    assert (first.key == other.key) == same
    assert (first.version == other.version) == same
    assert "sig=" not in first.key


def test_a_classic_version_is_a_plain_folder_name_whatever_the_file_is_called() -> None:
    names = ["mein modell (1).zip", "..zip..zip", "模型.zip", "-x.zip", "a" * 200 + ".zip"]
    versions = [want({**CLASSIC, "FileName": name}).targets["default"].version for name in names]
    assert all(version and "/" not in version and ".." not in version and len(version) <= 64 for version in versions)
    assert len(set(versions)) == len(names)


@pytest.mark.parametrize(
    "name", ["edgeferry.zip", "edgeferry-inferencer.zip", "EdgeFerry.zip", "noextension", "a/b.zip", ".."]
)
def test_a_file_name_that_would_hit_our_folder_or_has_no_folder_of_its_own_is_refused(name: str) -> None:
    wanted = want({**CLASSIC, "FileName": name})
    assert not wanted.targets
    assert len(wanted.problems) == 1


def test_where_both_are_present_ours_wins_and_that_is_a_problem() -> None:
    wanted = want({**CLASSIC, "edgeferry": SECTION})
    assert set(wanted.targets) == {"detector"}
    assert [problem.error.code for problem in wanted.problems] == ["classic_refused"]


def test_classic_fields_are_not_followed_where_the_device_refuses_them() -> None:
    wanted = want(CLASSIC, accept_classic=False)
    assert not wanted.targets
    assert [problem.error.code for problem in wanted.problems] == ["classic_refused"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from(["FileName", "DownloadUrl", "ContentMD5", "edgeferry", "$version", "other"])


@settings(max_examples=150)
@given(st.dictionaries(KEYS, JSON | st.fixed_dictionaries({"repo": JSON, "models": JSON, "sas": JSON})))
def test_nothing_that_a_cloud_may_send_raises(desired: dict[str, Any]) -> None:
    wanted = want(desired)
    assert all("/" not in target.version for target in wanted.targets.values())


# --- artifacts --------------------------------------------------------------------------------------------------------
def make_entry(path: str, content: str, *sources: Source) -> FileEntry:
    return FileEntry(path=path, sha256=str(Digest.of(content.encode())), md5=MD5, size=100, sources=sources)


def make_source(codec: str, size: int) -> Source:
    return Source(kind="full", codec=codec, blob=str(Digest.of(codec.encode())), size=size)


def make_manifest(*files: FileEntry, golden: tuple[Golden, ...] = ()) -> Manifest:
    return Manifest(model="m", version="1", spec=SPEC, files=files, golden=golden)


def test_the_cheapest_source_is_planned_and_what_is_here_is_not() -> None:
    entry = make_entry("model.onnx", "model", make_source("none", 100), make_source("zstd", 60))
    here = make_entry("labels.txt", "labels", make_source("none", 9))
    golden = Golden(input=str(Digest.of(b"picture")), size=7, truth=())
    manifest = make_manifest(entry, here, golden=(golden, golden))
    planned = plan_artifacts(manifest, {Digest.of(b"labels")})
    assert [(one.codec, one.size, one.target) for one in planned] == [
        ("zstd", 60, entry.sha256),
        ("none", 7, golden.input),
    ]
    assert plan_artifacts(manifest, list_digests(manifest)) == ()


def test_two_files_of_the_same_content_are_fetched_once() -> None:
    one, two = (make_entry(name, "same", make_source("none", 100)) for name in ("a.txt", "b.txt"))
    assert len(plan_artifacts(make_manifest(one, two), frozenset())) == 1


def test_a_file_that_no_codec_of_ours_makes_is_refused() -> None:
    entry = make_entry("model.onnx", "model", Source(kind="full", codec="brotli", blob="sha256:" + "b" * 64, size=1))
    with pytest.raises(ManifestInvalid):
        plan_artifacts(make_manifest(entry), frozenset())
