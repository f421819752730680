"""Models from a person's disk: what becomes a version, what it is called, and what is left behind."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from tests.e2e.tiny_models import make_quadrant_model, write_odd_model

from edgeferry.app.local_models import make_model_name, open_local_versions
from edgeferry.errors import BundleIncomplete, ConfigInvalid, ManifestInvalid, SpecIncomplete
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import FileEntry, Manifest, make_manifest_bytes
from edgeferry.model.stage_labels import load_labels
from edgeferry.model.stored import StoredVersion


@pytest.fixture
def detector(demo_models: Path) -> Path:
    return demo_models / "detector" / "1.1.0"


def _open_one(path: Path, **options: Path) -> StoredVersion:
    with open_local_versions([path], **options) as (version,):
        return version


def _read_labels(version: StoredVersion) -> tuple[str, ...]:
    return load_labels(version.spec.stages[0], lambda name: (version.folder / name).read_bytes())


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("detector.onnx", "detector"),
        ("My Model.v2.onnx", "my-model-v2"),
        ("__x__.tflite", "x"),
        ("Größe 1.tflite", "gr-e-1"),
        ("模型.onnx", "model"),
        ("a" * 100 + ".onnx", "a" * 63),
    ],
)
def test_a_model_is_named_after_its_file(file: str, name: str) -> None:
    assert make_model_name(Path("/somewhere") / file) == name


def test_the_version_of_a_file_is_the_start_of_its_digest(detector: Path) -> None:
    path = detector / "detector-fp32.tflite"
    version = _open_one(path)
    assert version.version == Digest.of(path.read_bytes()).hex[:12]
    assert version.folder == detector
    assert version.spec.stages[0].file == "detector-fp32.tflite"


def test_given_labels_travel_with_the_version_wherever_they_lie(detector: Path, tmp_path: Path) -> None:
    labels = tmp_path / "other-names.txt"
    labels.write_text("\n".join(f"thing-{number}" for number in range(6)))
    version = _open_one(detector / "detector-fp32.tflite", labels=labels)
    assert _read_labels(version)[0] == "thing-0"


def test_labels_beside_a_lone_file_are_not_guessed(shared_models: Path) -> None:
    with pytest.raises(SpecIncomplete, match="--labels"):
        _open_one(shared_models / "detection" / "tiny_yolov3_interface_standin.onnx")


def test_a_folder_and_a_zip_are_bundles(detector: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("detector.onnx", "labels.txt"):
        shutil.copy(detector / name, folder)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for name in ("detector.onnx", "labels.txt"):
            archive.write(folder / name, name)
    with open_local_versions([folder, tmp_path / "packed.zip"]) as (loose, packed):
        assert (loose.model, packed.model) == ("bundle", "packed")
        assert loose.spec == packed.spec
        assert loose.spec.stages[0].labels.file == "labels.txt"
        assert _read_labels(loose) == _read_labels(packed)
        unpacked = packed.folder
        assert unpacked.is_dir()
    assert not unpacked.exists()


def test_a_given_spec_is_laid_over_what_a_folder_tells(detector: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copy(detector / "detector.onnx", folder)
    spec = tmp_path / "spec.toml"
    spec.write_text("[thresholds]\nscore = 0.25\n")
    assert _open_one(folder, spec=spec).spec.stages[0].thresholds.score == 0.25


def test_a_folder_with_a_manifest_is_the_version_it_says(detector: Path, tmp_path: Path) -> None:
    path = detector / "detector-fp32.tflite"
    shutil.copy(path, tmp_path)
    entry = FileEntry(path=path.name, sha256=str(Digest.of(path.read_bytes())), md5="", size=path.stat().st_size)
    manifest = Manifest(model="platform", version="7.0.0", spec=_open_one(path).spec, files=(entry,))
    (tmp_path / "manifest.json").write_bytes(make_manifest_bytes(manifest))
    assert str(_open_one(tmp_path)) == "platform@7.0.0"
    (tmp_path / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ManifestInvalid):
        _open_one(tmp_path)


def test_what_cannot_be_one_model_is_refused(detector: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleIncomplete, match="several"):
        _open_one(detector)
    with pytest.raises(ConfigInvalid, match="found ''"):
        _open_one(tmp_path)
    with pytest.raises(ConfigInvalid, match="found nothing"):
        _open_one(tmp_path / "nowhere.onnx")
    with pytest.raises(ConfigInvalid, match="different names"), open_local_versions([detector / "detector.onnx"] * 2):
        pass
    with (
        pytest.raises(ConfigInvalid, match="one model"),
        open_local_versions(
            [detector / "detector.onnx", detector / "detector-fp32.tflite"], labels=detector / "labels.txt"
        ),
    ):
        pass


def test_a_model_of_no_known_family_is_plain_tensors_where_somebody_is_told(tmp_path: Path) -> None:
    path, said = write_odd_model(tmp_path), list[str]()
    with open_local_versions([path], say=said.append) as (version,):
        (stage,) = version.spec.stages
    assert (stage.task, stage.answer.family, stage.input) == ("tensors", "tensors", None)
    assert len(said) == 1
    for words in ("odd.onnx", "only /v2", "doubled[5]", "--spec"):
        assert words in said[0]
    with pytest.raises(SpecIncomplete):
        _open_one(path)


def test_a_known_family_that_lacks_something_is_never_plain_tensors(tmp_path: Path) -> None:
    lonely = tmp_path / "quadrants.onnx"
    lonely.write_bytes(make_quadrant_model())
    with pytest.raises(SpecIncomplete), open_local_versions([lonely], say=print):
        pass


def test_a_lone_classifier_of_42_numbers_is_not_taken_for_one_of_hands(tmp_path: Path) -> None:
    path, said = write_odd_model(tmp_path, [1, 42]), list[str]()
    with open_local_versions([path], say=said.append) as (version,):
        assert version.spec.stages[0].task == "tensors"
    assert "only /v2" in said[0]


def test_a_model_with_a_spec_or_labels_is_meant_for_a_family(tmp_path: Path) -> None:
    path = write_odd_model(tmp_path)
    for name, text in (("labels", "a\nb\n"), ("spec", "thresholds.score = 0.4\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(SpecIncomplete), open_local_versions([path], say=print, **{name: tmp_path / name}):
            pass


def test_the_family_tensors_may_be_declared(tmp_path: Path) -> None:
    path, spec = write_odd_model(tmp_path), tmp_path / "spec.toml"
    for text in ('answer.family = "tensors"', 'task = "tensors"'):
        spec.write_text(text)
        assert _open_one(path, spec=spec).spec.stages[0].task == "tensors"
