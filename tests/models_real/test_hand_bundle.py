"""Several models as one version, all the way: a folder or ZIP, published, classic, served by a real worker."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from edgeferry.agent.loose import list_files, make_loose_spec
from edgeferry.app.local_models import open_local_versions
from edgeferry.cli.main import cli
from edgeferry.model.manifest import read_manifest_bytes
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.engine import ChildEngine
from models_real.test_hand import PHOTOS, TOML

pytestmark = pytest.mark.needs_shared

LABELS = "keypoint_classifier_label.csv"


@pytest.fixture
def folder(shared_models: Path, tmp_path: Path) -> Path:
    """The three models, the labels and a spec.toml, as an operator keeps them."""
    copy = tmp_path / "hand"
    shutil.copytree(shared_models / "hand", copy)
    (copy / "spec.toml").write_text(TOML)
    return copy


def pack(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


def call(tmp_path: Path, *words: str | Path) -> Result:
    environment = {"EDGEFERRY_KEYS": str(tmp_path / "keys"), "EDGEFERRY_TO": str(tmp_path / "site")}
    return CliRunner().invoke(cli, [str(word) for word in words], env=environment)


def publish(tmp_path: Path, bundle: Path, version: str, *more: str | Path) -> Any:
    result = call(tmp_path, "publish", bundle, "--name", "hand", "--version", version, *more, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def predict(tmp_path: Path, model: Path, picture: Path) -> Any:
    result = call(tmp_path, "predict", model, picture, "--json")
    assert result.exit_code == 0, result.output
    (answer,) = json.loads(result.stdout)
    return answer["answer"]


def open_one(path: Path) -> StoredVersion:
    with open_local_versions([path]) as (version,):
        return version


@pytest.fixture(scope="module")
def site(shared_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the bundle `hand` is published as 1.0.0, with golden truth; `report.json` is what was said."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(shared_models / "hand", site / "hand")
    (site / "hand" / "spec.toml").write_text(TOML)
    golden = write_golden(site / "golden", shared_models, "right hand")
    assert call(site, "repo", "init").exit_code == 0
    (site / "report.json").write_text(json.dumps(publish(site, site / "hand", "1.0.0", "--golden", golden)))
    return site


def write_golden(folder: Path, shared_models: Path, label: str) -> Path:
    folder.mkdir()
    shutil.copy(shared_models / "images" / PHOTOS[0], folder)
    (folder / "hand_call.json").write_text(json.dumps({"objects": [{"label": label}]}))
    return folder


def test_folder_zip_and_published_bundle_answer_alike(shared_models: Path, site: Path) -> None:
    picture, report = shared_models / "images" / PHOTOS[0], json.loads((site / "report.json").read_text())
    assert len(report["files"]) == 4
    (found,) = predict(site, site / "hand", picture)["objects"]
    assert found["label"] == "right hand"
    assert len(found["points"]) == 21
    assert {gesture["label"] for gesture in found["attributes"]} == {"Open", "Close", "Pointer", "OK"}
    for bundle in (pack(site / "hand"), site / "site" / report["classic"]["path"]):
        assert predict(site, bundle, picture)["objects"] == [found]


def test_the_manifest_and_a_classic_device_come_to_the_same_spec(site: Path, tmp_path: Path) -> None:
    report = json.loads((site / "report.json").read_text())
    (path,) = (site / "site").rglob("1.0.0/*.manifest.json")
    manifest = read_manifest_bytes(path.read_bytes())
    with zipfile.ZipFile(site / "site" / report["classic"]["path"]) as archive:
        archive.extractall(tmp_path)
    assert make_loose_spec(list_files(tmp_path)) == manifest.spec == open_one(site / "hand").spec


def test_a_version_with_one_stage_changed_travels_as_that_stage(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site / "hand", tmp_path / "hand")
    (tmp_path / "hand" / LABELS).write_text("open\nclosed\npointing\nfine\n")
    report = publish(site, tmp_path / "hand", "1.1.0")
    assert report["update_bytes"] < 10_000 < report["download_bytes"]


async def test_versions_share_a_worker_when_only_labels_differ_and_not_when_a_stage_does(folder: Path) -> None:
    engine, one = ChildEngine(), open_one(folder)
    key = await engine.read_share_key(one)
    *others, last = one.spec.stages
    renamed = msgspec.structs.replace(last, labels=msgspec.structs.replace(last.labels, names=("a", "b", "c", "d")))
    for stages, shares in (((*others, renamed), True), (tuple(others), False), ((*others[::-1], last), False)):
        other = msgspec.structs.replace(one.spec, stages=stages)
        found = StoredVersion(one.model, "2", "other", one.folder, other)
        assert (await engine.read_share_key(found) == key) is shares


def test_the_version_of_a_folder_changes_with_any_of_its_models(folder: Path, shared_models: Path) -> None:
    before = open_one(folder).version
    with (folder / "keypoint_classifier.tflite").open("ab") as file:
        file.write(b"\0")
    assert open_one(folder).version != before


@pytest.mark.parametrize(
    ("left_out", "more", "says"),
    [
        ("hand_landmark_lite.tflite", (), "hand_landmark_lite.tflite"),
        (LABELS, (), LABELS),
        ("spec.toml", (), "[[stages]]"),
        ("", ("--labels", LABELS), "--labels"),
    ],
)
def test_what_a_pipeline_lacks_is_named_before_anything_is_published(
    folder: Path, tmp_path: Path, left_out: str, more: tuple[str, ...], says: str
) -> None:
    assert call(tmp_path, "repo", "init").exit_code == 0
    if left_out:
        (folder / left_out).unlink()
    words = [folder / word if word == LABELS else word for word in more]
    result = call(tmp_path, "publish", folder, "--name", "hand", "--version", "1", *words)
    assert result.exit_code in (2, 4)
    assert says in result.stderr
    assert not (tmp_path / "site" / "classic").exists()


@pytest.mark.parametrize("label", ["palm", "Open", "hand"])
def test_golden_truth_of_a_pipeline_names_what_its_answers_are_called(
    folder: Path, shared_models: Path, tmp_path: Path, label: str
) -> None:
    assert call(tmp_path, "repo", "init").exit_code == 0
    golden = write_golden(tmp_path / "golden", shared_models, label)
    result = call(tmp_path, "publish", folder, "--name", "hand", "--version", "1", "--golden", golden)
    assert result.exit_code == 2
    assert "cannot answer" in result.stderr


def test_stages_in_an_order_that_nobody_walks_are_refused(folder: Path, tmp_path: Path) -> None:
    assert call(tmp_path, "repo", "init").exit_code == 0
    first, second, third = TOML.strip().split("[[stages]]")[1:]
    (folder / "spec.toml").write_text("[[stages]]".join(["", second, first, third]))
    result = call(tmp_path, "publish", folder, "--name", "hand", "--version", "1")
    assert result.exit_code == 4
    assert "hand_landmarks -> palm -> gesture" in result.stderr
