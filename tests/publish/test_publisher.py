"""Publishing a version: what stands in the store afterwards, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path

import msgspec
import pytest
from tests.e2e.tiny_models import write_odd_model
from tests.publish.desk import LABELS, NOW, SPEC, make_desk, make_model, make_picture, make_request, say_nothing

from edgeferry.delta.apply import decode_full
from edgeferry.errors import (
    ConfigInvalid,
    Conflict,
    ModelUnreadable,
    ModelUnsupported,
    NameInvalid,
    SpecIncomplete,
    StoreRefused,
)
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest, read_manifest_bytes
from edgeferry.publish.publisher import publish
from edgeferry.trust.draft import open_draft
from edgeferry.trust.signer import Desk
from edgeferry.trust.verifier import Verifier
from fixtures_azurite import Azurite
from fixtures_s3 import S3

PICTURE = make_picture()
GOLDEN = {"one.jpg": PICTURE, "one.json": b'{"label": "low"}'}


@pytest.fixture(
    params=[
        "folder",
        pytest.param("azurite", marks=pytest.mark.needs_azurite),
        pytest.param("s3", marks=pytest.mark.needs_s3),
    ]
)
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    if request.param == "folder":
        return make_desk(tmp_path)
    if request.param == "s3":
        s3: S3 = request.getfixturevalue("s3")
        return make_desk(tmp_path, f"s3://{s3.make_bucket()}/site", s3.environ)
    azurite: Azurite = request.getfixturevalue("azurite")
    return make_desk(tmp_path, azurite.make_container(), azurite.environ)


def read(desk: Desk, path: str) -> bytes:
    found = desk.store.find(path, 100 << 20)
    assert found is not None, path
    return found[0]


def read_manifest(desk: Desk, version: str) -> Manifest:
    listed = open_draft(desk.store, desk.keys).find_version("gauge", version)
    assert listed is not None
    return read_manifest_bytes(read(desk, f"targets/gauge/{version}/{listed.digest.hex}.manifest.json"))


def test_a_device_gets_back_what_the_operator_gave(desk: Desk, tmp_path: Path) -> None:
    report = publish(make_request(golden_files=GOLDEN), desk, say=say_nothing)
    verifier = Verifier(tmp_path / "trust", desk.keys.read_root(), lambda path, _: read(desk, path), NOW.timestamp)
    manifest = read_manifest_bytes(
        verifier.fetch_manifests("gauge", "1.0.0", Digest.from_str(report.manifest)).manifest
    )
    assert [entry.path for entry in manifest.files] == ["gauge.onnx", "labels.txt"]
    for entry, data in zip(manifest.files, (make_model(), LABELS), strict=True):
        [source] = entry.sources
        blob = read(desk, Digest.from_str(source.blob).blob_path)
        assert Digest.of(blob) == Digest.from_str(source.blob)
        assert len(blob) == source.size
        decoded = bytearray(entry.size)
        decode_full(blob, source.codec, memoryview(decoded))
        assert decoded == data
        assert Digest.of(data) == Digest.from_str(entry.sha256)
        assert base64.b64encode(hashlib.md5(data).digest()).decode() == entry.md5
    [golden] = manifest.golden
    assert read(desk, Digest.from_str(golden.input).blob_path) == PICTURE
    [stage] = manifest.spec.stages
    assert (stage.labels.file, stage.input.width) == ("labels.txt", 32)


def test_the_report_says_what_travels(desk: Desk) -> None:
    report = publish(make_request(), desk, say=say_nothing)
    model = report.files[0]
    assert model.codec == "efd1"
    assert model.coded_size == min(model.sizes_by_codec.values())
    assert set(model.sizes_by_codec) == {"none", "zstd", "efd1"}
    assert report.download_bytes == report.update_bytes == model.coded_size  # the labels come along with the manifest
    assert report.golden_bytes == 0
    assert json.loads(msgspec.json.encode(report))["classic"]["md5"] == report.classic.md5


def test_the_report_counts_golden_pictures_and_what_the_version_before_brought(tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    first = publish(make_request(golden_files=GOLDEN), desk, say=say_nothing)
    files = first.files[0].coded_size
    assert first.golden_bytes == len(PICTURE)
    assert first.download_bytes == first.update_bytes == files + len(PICTURE)
    new = make_picture(7)
    golden = GOLDEN | {"two.png": new, "two.json": b'{"label": "high"}'}
    request = make_request("1.1.0", model_data=make_model(2), golden_files=golden, patch_budget=0)
    for _ in range(2):  # the second time it is published already
        second = publish(request, desk, say=say_nothing)
        assert second.golden_bytes == len(PICTURE) + len(new)
        assert second.download_bytes == second.files[0].coded_size + second.golden_bytes
        assert second.update_bytes == second.files[0].coded_size + len(new)
    labels = b"high\nlow\n" + b"odd" * 200 + b"\n"  # too many to come along
    relabelled = make_request("1.2.0", model_data=make_model(2), labels_data=labels, golden_files=golden)
    report = publish(relabelled, desk, say=say_nothing)
    assert report.update_bytes == report.files[1].coded_size > 0


def test_uploaded_bytes_are_told_up_to_the_last(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    publish(
        make_request(), make_desk(tmp_path), say=say_nothing, progress=lambda done, total: told.append((done, total))
    )
    counts = [done for done, _ in told]
    assert counts == sorted(counts)
    assert {total for _, total in told} == {counts[-1]}
    blobs = sum(path.stat().st_size for path in (tmp_path / "repo" / "blobs").rglob("*") if path.is_file())
    assert counts[-1] == blobs + (tmp_path / "repo" / "classic" / "gauge-1.0.0.zip").stat().st_size


def test_the_classic_zip_needs_nothing_else(desk: Desk) -> None:
    report = publish(make_request(), desk, say=say_nothing)
    data = read(desk, "classic/gauge-1.0.0.zip")
    assert base64.b64encode(hashlib.md5(data).digest()).decode() == report.classic.md5
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "gauge.onnx": make_model(),
            "labels.txt": LABELS,
            "spec.toml": SPEC.encode(),
        }
    listed = open_draft(desk.store, desk.keys).find_version("gauge", "1.0.0")
    assert listed is not None
    assert listed.classic_md5 == report.classic.md5


def test_golden_truth_is_inherited_from_the_version_before(desk: Desk) -> None:
    publish(make_request(golden_files=GOLDEN), desk, say=say_nothing)
    report = publish(make_request("1.1.0", model_data=make_model(2)), desk, say=say_nothing)
    assert (report.golden, report.golden_inherited) == (1, True)
    assert read_manifest(desk, "1.1.0").golden == read_manifest(desk, "1.0.0").golden


def test_inherited_golden_truth_must_fit_the_new_labels_too(desk: Desk) -> None:
    publish(make_request(golden_files=GOLDEN), desk, say=say_nothing)
    with pytest.raises(ConfigInvalid, match="low"):
        publish(make_request("1.1.0", labels_data=b"high\nmiddle\nnormal\n"), desk, say=say_nothing)


def test_golden_truth_of_an_unknown_label_is_refused(desk: Desk) -> None:
    golden = {"one.jpg": PICTURE, "one.json": b'{"label": "leak"}'}
    with pytest.raises(ConfigInvalid, match="leak"):
        publish(make_request(golden_files=golden), desk, say=say_nothing)


def test_the_same_version_again_is_nothing_to_do(desk: Desk) -> None:
    first = publish(make_request(golden_files=GOLDEN), desk, say=say_nothing)
    before = read(desk, "metadata/timestamp.json")
    for golden_files in (GOLDEN, None):
        later = dataclasses.replace(desk, now=NOW.replace(hour=20))
        again = publish(make_request(golden_files=golden_files), later, say=say_nothing)
        assert (again.unchanged, again.manifest, again.golden) == (True, first.manifest, 1)
    assert read(desk, "metadata/timestamp.json") == before


@pytest.mark.parametrize(
    "change",
    [
        {"model_data": make_model(2)},
        {"labels_data": b"a\nb\nc\n"},
        {"golden_files": {"one.jpg": make_picture(9), "one.json": b'{"label": "low"}'}},
        {"spec_text": SPEC.replace("255.0", "128.0")},
    ],
    ids=["model", "labels", "golden", "spec"],
)
def test_the_same_version_with_other_content_is_a_conflict(desk: Desk, change: dict[str, object]) -> None:
    publish(make_request(golden_files=GOLDEN), desk, say=say_nothing)
    with pytest.raises(Conflict):
        publish(make_request(**change), desk, say=say_nothing)
    assert read_manifest(desk, "1.0.0").files[0].sha256 == str(Digest.of(make_model()))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"spec_text": ""}, SpecIncomplete),
        ({"spec_text": SPEC.replace('family = "classification"', 'family = "palm_reading"')}, ModelUnsupported),
        ({"model_data": b"not a model"}, ModelUnreadable),
        ({"model_file": "../gauge.onnx"}, NameInvalid),
        ({"labels_file": "a/labels.txt"}, NameInvalid),
        ({"labels_file": "gauge.onnx"}, ConfigInvalid),
        ({"model": "Gauge"}, NameInvalid),
        ({"model": "root"}, NameInvalid),
        ({"version": "1/0"}, NameInvalid),
        ({"golden_files": {}}, ConfigInvalid),
        ({"golden_files": GOLDEN | {"one.jpg": b"no picture"}}, ConfigInvalid),
        ({"golden_files": GOLDEN | {"one.jpg": PICTURE[:-30]}}, ConfigInvalid),
        ({"golden_files": GOLDEN | {"one.json": b'{"label": "leak"}'}}, ConfigInvalid),
    ],
)
def test_what_cannot_be_published_leaves_no_trace(
    tmp_path: Path, change: dict[str, object], error: type[Exception]
) -> None:
    desk = make_desk(tmp_path)
    before = sorted(path for path in (tmp_path / "repo").rglob("*") if path.is_file())
    with pytest.raises(error):
        publish(make_request(**change), desk, say=say_nothing)
    assert sorted(path for path in (tmp_path / "repo").rglob("*") if path.is_file()) == before


def test_what_is_missing_from_the_spec_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecIncomplete, match=r"--spec"):
        publish(make_request(spec_text=""), make_desk(tmp_path), say=say_nothing)


def test_a_model_of_no_known_family_is_published_where_tensors_are_declared(tmp_path: Path) -> None:
    desk, data = make_desk(tmp_path), write_odd_model(tmp_path).read_bytes()
    terms = {"model": "odd", "model_file": "odd.onnx", "model_data": data, "labels_file": "", "labels_data": b""}
    with pytest.raises(SpecIncomplete, match="no answer family"):
        publish(make_request(**terms, spec_text=""), desk, say=say_nothing)
    terms["spec_text"] = 'answer.family = "tensors"'
    assert publish(make_request(**terms), desk, say=say_nothing).version == "1.0.0"
    with pytest.raises(ConfigInvalid, match="cannot answer"):
        publish(make_request("1.1.0", **terms, golden_files=GOLDEN), desk, say=say_nothing)


def test_a_publisher_that_loses_its_store_half_way_changes_nothing_for_readers(tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    publish(make_request(), desk, say=say_nothing)
    before = read(desk, "metadata/timestamp.json")

    class Refusing:
        def __getattr__(self, name: str) -> object:
            return getattr(desk.store, name)

        def put(self, path: str, data: bytes, sent: object) -> None:
            raise StoreRefused("no")

    request = make_request("1.1.0", model_data=make_model(2))
    with pytest.raises(StoreRefused):
        publish(request, dataclasses.replace(desk, store=Refusing()), say=say_nothing)  # type: ignore[arg-type]
    assert read(desk, "metadata/timestamp.json") == before
    assert publish(request, desk, say=say_nothing).version == "1.1.0"


def test_our_demo_models_publish_without_a_spec(tmp_path: Path, demo_models: Path) -> None:
    desk = make_desk(tmp_path)
    for path in sorted((demo_models / "detector" / "1.0.0").glob("detector*.*")):
        terms = {"model": path.stem, "model_file": path.name, "model_data": path.read_bytes()}
        request = make_request(**terms, labels_file="", labels_data=b"", spec_text="")
        assert publish(request, desk, say=say_nothing).download_bytes < path.stat().st_size
