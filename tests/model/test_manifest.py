from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import ManifestInvalid
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import (
    MANIFEST_MAX_BYTES,
    FileEntry,
    Golden,
    Manifest,
    Source,
    Tolerance,
    TruthObject,
    make_manifest_bytes,
    read_manifest_bytes,
)
from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, ModelSpec, Stage

D = str(Digest.of(b"model"))
STAGE = Stage(
    file="m.onnx",
    task="detection",
    input=InputSpec(width=8, height=8, layout="nchw", dtype="float32"),
    answer=AnswerSpec(family="ef_detector", parameters={"anchors": (1.0, 2.5)}),
    labels=LabelSpec(file="labels.txt"),
)
ENTRY = FileEntry(
    path="m.onnx", sha256=D, md5="", size=5, sources=(Source(kind="full", codec="zstd", blob=D, size=4, memory=9),)
)
LABELS = FileEntry(path="labels.txt", sha256=D, md5="", size=5)
MANIFEST = Manifest(
    model="detector",
    version="1.0.0",
    spec=ModelSpec(stages=(STAGE,)),
    files=(ENTRY, LABELS),
    golden=(Golden(input=D, size=3, truth=(TruthObject(label="leak", box=(0.0, 0.1, 0.2, 0.3)),)),),
    created=1_795_000_000,
)

_digests = st.binary(max_size=8).map(lambda data: str(Digest.of(data)))
_sources = st.builds(
    Source,
    kind=st.just("patch"),
    codec=st.text(max_size=5),
    blob=_digests,
    size=st.integers(0, 1 << 40),
    base=_digests,
    chunks=_digests,
)
_golden = st.builds(
    Golden,
    input=_digests,
    size=st.integers(0, 1 << 30),
    truth=st.lists(st.builds(TruthObject, label=st.text(max_size=5)), max_size=3).map(tuple),
    tolerance=st.builds(Tolerance, iou=st.floats(0.01, 1), share=st.floats(0.01, 1)),
)


@settings(max_examples=50)
@given(st.lists(_sources, max_size=3), st.lists(_golden, max_size=3), st.integers(0, 1 << 40))
def test_a_manifest_comes_back_from_its_bytes_and_gives_them_again(
    sources: list[Source], golden: list[Golden], created: int
) -> None:
    files = (msgspec.structs.replace(ENTRY, sources=tuple(sources)), LABELS)
    manifest = msgspec.structs.replace(MANIFEST, files=files, golden=tuple(golden), created=created)
    data = make_manifest_bytes(manifest)
    assert read_manifest_bytes(data) == manifest
    assert make_manifest_bytes(read_manifest_bytes(data)) == data


def test_the_bytes_are_canonical_json() -> None:
    data = make_manifest_bytes(MANIFEST)
    plain = json.loads(data)
    assert data == json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    assert plain["schema"] == 1
    assert "min_runtime" not in plain


def test_a_file_is_found_by_its_path() -> None:
    assert MANIFEST.find_file("m.onnx") is ENTRY
    assert MANIFEST.find_file("other") is None


def _change(path: str, value: object) -> bytes:
    plain = json.loads(make_manifest_bytes(MANIFEST))
    *parents, last = path.split(".")
    place = plain
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(plain).encode()


BAD = {
    "another schema": ("schema", 2),
    "a model name with a separator": ("model", "../x"),
    "a version with two dots": ("version", "1..0"),
    "a file that leaves its folder": ("files.1.path", "../labels.txt"),
    "a file with a backslash": ("files.1.path", "a\\b"),
    "the manifest's own name": ("files.1.path", "manifest.json"),
    "the same file twice": ("files.1.path", "m.onnx"),
    "no files": ("files", []),
    "a digest of another kind": ("files.0.sha256", "md5:00"),
    "a digest in upper case": ("files.0.sha256", D.upper()),
    "a negative size": ("files.0.size", -1),
    "a size as text": ("files.0.size", "5"),
    "a size as a fraction": ("files.0.size", 5.5),
    "a source of unknown kind": ("files.0.sources.0.kind", "torrent"),
    "a source with a bad blob": ("files.0.sources.0.blob", "sha256:zz"),
    "a source of negative size": ("files.0.sources.0.size", -4),
    "a source that wants all memory": ("files.0.sources.0.memory", 1 << 40),
    "a patch without base": ("files.0.sources.0.kind", "patch"),
    "a full source with a base": ("files.0.sources.0.base", D),
    "a chunk list that is no digest": ("files.0.sources.0.chunks", "x"),
    "a golden input that is no digest": ("golden.0.input", "cat.jpg"),
    "a golden input of negative size": ("golden.0.size", -1),
    "a golden tolerance of zero": ("golden.0.tolerance", {"share": 0.0}),
    "a golden tolerance above one": ("golden.0.tolerance", {"iou": 1.5}),
    "a box of three numbers": ("golden.0.truth.0.box", [0, 0, 1]),
    "an unknown field": ("surprise", 1),
    "an unknown field deep inside": ("spec.stages.0.input.scale", 1),
    "a stage whose file is not there": ("spec.stages.0.file", "other.onnx"),
    "labels that are not there": ("spec.stages.0.labels.file", "other.txt"),
    "an input of no width": ("spec.stages.0.input.width", 0),
    "no stages": ("spec.stages", []),
}


@pytest.mark.parametrize("name", BAD)
def test_a_manifest_is_refused_for(name: str) -> None:
    with pytest.raises(ManifestInvalid):
        read_manifest_bytes(_change(*BAD[name]))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"schema":1', b"[" * 100_000])
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        read_manifest_bytes(data)


def test_a_manifest_longer_than_the_limit_is_not_even_parsed() -> None:
    with pytest.raises(ManifestInvalid, match="at most"):
        read_manifest_bytes(b" " * (MANIFEST_MAX_BYTES + 1))


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_manifest_is_refused_or_still_sane(data: st.DataObject) -> None:
    raw = bytearray(make_manifest_bytes(MANIFEST))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        manifest = read_manifest_bytes(bytes(raw))
    except ManifestInvalid:
        return
    assert read_manifest_bytes(make_manifest_bytes(manifest)) == manifest
