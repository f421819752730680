"""`edgeferry publish BUNDLE.zip`: what is in the bundle becomes the version, so devices fetch patches of its files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.publish.desk import LABELS, SPEC, make_model

from edgeferry.cli.main import cli

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command on a repository of this test."""
    environment = {"EDGEFERRY_KEYS": str(tmp_path / "keys"), "EDGEFERRY_TO": str(tmp_path / "site")}

    def call(*words: str | Path) -> Result:
        return CliRunner().invoke(cli, [str(word) for word in words], env=environment)

    assert call("repo", "init").exit_code == 0
    return call


def write_bundle(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def publish(run: Run, bundle: Path, *more: str | Path, version: str = "1.0.0") -> Any:
    result = run("publish", bundle, "--name", "gauge", "--version", version, *more, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


WHOLE = {"gauge.onnx": make_model(), "labels.txt": LABELS, "spec.toml": SPEC.encode()}


def test_model_labels_and_spec_come_from_the_bundle(run: Run, tmp_path: Path) -> None:
    report = publish(run, write_bundle(tmp_path / "gauge.zip", WHOLE))
    assert sorted(file["path"] for file in report["files"]) == ["gauge.onnx", "labels.txt"]
    with zipfile.ZipFile(tmp_path / "site" / report["classic"]["path"]) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == WHOLE


def test_a_bundle_is_the_same_version_as_its_files(run: Run, tmp_path: Path) -> None:
    publish(run, write_bundle(tmp_path / "gauge.zip", WHOLE))
    for name, data in WHOLE.items():
        (tmp_path / name).write_bytes(data)
    words = ("--labels", tmp_path / "labels.txt", "--spec", tmp_path / "spec.toml")
    assert publish(run, tmp_path / "gauge.onnx", *words)["unchanged"]


def test_a_bundle_is_told_by_its_content_and_not_by_its_name(run: Run, tmp_path: Path) -> None:
    assert len(publish(run, write_bundle(tmp_path / "gauge.bin", WHOLE))["files"]) == 2


def test_what_the_operator_names_wins_over_the_bundle(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"a\nb\nc\n")
    bundle = write_bundle(tmp_path / "gauge.zip", WHOLE)
    result = run("publish", bundle, "--name", "gauge", "--version", "1", "--labels", tmp_path / "mine.txt")
    assert result.exit_code == 0, result.output
    assert "left out of gauge.zip: labels.txt" in result.stderr
    assert "mine.txt" in result.stdout


def test_other_files_are_left_out_and_named(run: Run, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "gauge.zip", WHOLE | {"README.txt": b"hello", "picture.png": b"png"})
    result = run("publish", bundle, "--name", "gauge", "--version", "1")
    assert result.exit_code == 0, result.output
    assert "left out of gauge.zip: README.txt, picture.png" in result.stderr


def test_the_next_bundle_travels_as_patches_of_its_files(run: Run, tmp_path: Path) -> None:
    first = publish(run, write_bundle(tmp_path / "one.zip", WHOLE))
    model = bytearray(WHOLE["gauge.onnx"])
    at = model.index(b"gauge")  # the graph's name: no weight changes
    model[at : at + 5] = b"gauGe"
    second = publish(run, write_bundle(tmp_path / "two.zip", WHOLE | {"gauge.onnx": bytes(model)}), version="1.1.0")
    assert second["update_bytes"] < 200 < first["download_bytes"]


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"labels.txt": LABELS}, "bundle_incomplete"),
        ({"a.onnx": make_model(), "b.onnx": make_model()}, "bundle_incomplete"),
        ({"gauge.onnx": make_model(), "a.txt": LABELS, "b.txt": LABELS}, "bundle_incomplete"),
        ({"../gauge.onnx": make_model()}, "bundle_unsafe"),
        ({"in/gauge.onnx": make_model()}, "bundle_unsafe"),
        ({"gauge.onnx": bytes(9 << 20)}, "bundle_too_large"),
    ],
    ids=["no model", "two models", "two label files", "a way out", "a folder", "a bomb"],
)
def test_a_bundle_that_no_device_takes_is_refused(run: Run, tmp_path: Path, files: dict[str, bytes], code: str) -> None:
    bundle = write_bundle(tmp_path / "bad.zip", files)
    result = run("publish", bundle, "--name", "gauge", "--version", "1")
    assert result.exit_code == 4, result.output
    assert f"error {code}" in result.stderr


def test_a_damaged_bundle_is_refused(run: Run, tmp_path: Path) -> None:
    data = write_bundle(tmp_path / "gauge.zip", WHOLE).read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    (tmp_path / "bad.zip").write_bytes(data[:200] + bytes(40) + data[240:])
    for name in ("cut.zip", "bad.zip"):
        result = run("publish", tmp_path / name, "--name", "gauge", "--version", "1")
        assert result.exit_code == 4, result.output
        assert "error bundle_unreadable" in result.stderr


@pytest.mark.needs_shared
def test_the_guides_bundle_is_published_as_it_is(run: Run, shared_models: Path) -> None:
    bundle = shared_models / "classic" / "tensorflow001.zip"
    report = publish(run, bundle)
    assert sorted(file["path"] for file in report["files"]) == ["labelmap.txt", "ssd_mobilenet_v1_1_metadata_1.tflite"]
    assert report["download_bytes"] < 0.95 * bundle.stat().st_size
