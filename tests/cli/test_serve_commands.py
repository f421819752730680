"""`edgeferry serve` and `edgeferry predict` as a person runs them: real processes, real models."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.tiny_models import write_odd_model

_EDGEFERRY = [sys.executable, "-m", "edgeferry.cli.main"]


def _run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_EDGEFERRY, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


@contextmanager
def _serving(*arguments: str | Path, **environment: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """A running `edgeferry serve --json --port 0`, and what it printed."""
    command = [*_EDGEFERRY, "serve", *map(str, arguments), "--json", "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield json.loads(line), process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def _post(url: str, picture: Path) -> Any:
    request = urllib.request.Request(url, picture.read_bytes(), {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


@pytest.fixture
def detector(demo_models: Path) -> Path:
    return demo_models / "detector" / "1.1.0"


@pytest.fixture
def scene(demo_models: Path) -> Path:
    return sorted((demo_models / "scenes").glob("*.jpg"))[0]


def test_predict_prints_a_table(detector: Path, scene: Path) -> None:
    done = _run("predict", detector / "detector.onnx", scene, "--labels", detector / "labels.txt")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert re.match(r".*\.jpg  512x512  detector@[0-9a-f]{12}  [\d.]+ ms$", head)
    assert rows
    assert all(re.match(r"  [01]\.\d{3}  \w+ +top \d\.\d{3}  left ", row) for row in rows)


def test_predict_answers_alike_on_both_engines(detector: Path, scene: Path) -> None:
    labels = {}
    for file in ("detector.onnx", "detector-fp32.tflite"):
        done = _run("predict", detector / file, scene, "--json", "--labels", detector / "labels.txt")
        assert done.returncode == 0, done.stderr
        (answer,) = json.loads(done.stdout)
        assert answer["image"] == str(scene)
        labels[file] = sorted(found["label"] for found in answer["answer"]["objects"])
    assert labels["detector.onnx"] == labels["detector-fp32.tflite"] != []


def test_predict_draws_one_picture_into_a_file_and_several_into_a_folder(
    detector: Path, demo_models: Path, tmp_path: Path
) -> None:
    scenes = sorted((demo_models / "scenes").glob("*.jpg"))[:2]
    one = _run("predict", detector / "detector-fp32.tflite", scenes[0], "--draw", tmp_path / "one.jpg")
    two = _run("predict", detector / "detector-fp32.tflite", *scenes, "--draw", tmp_path / "two")
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert (tmp_path / "one.jpg").read_bytes().startswith(b"\xff\xd8")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [f"{scene.stem}.png" for scene in scenes]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "two").iterdir())


def test_a_bad_picture_is_reported_and_the_others_are_answered(detector: Path, scene: Path, tmp_path: Path) -> None:
    cut, empty = tmp_path / "cut.jpg", tmp_path / "empty.jpg"
    cut.write_bytes(scene.read_bytes()[:300])
    empty.write_bytes(b"")
    done = _run("predict", detector / "detector-fp32.tflite", cut, scene, empty, tmp_path / "none.jpg", "--json")
    assert done.returncode == 2
    assert [answer["image"] for answer in json.loads(done.stdout)] == [str(scene)]
    assert done.stderr.count("error picture_unreadable: ") == 2
    assert done.stderr.count("error config_invalid: ") == 1
    assert "Traceback" not in done.stderr


def test_what_the_model_does_not_tell_is_asked_for(shared_models: Path) -> None:
    model, cat = (
        shared_models / "detection" / "tiny_yolov3_interface_standin.onnx",
        shared_models / "images" / "cat.jpg",
    )
    done = _run("predict", model, cat)
    assert done.returncode == 2
    assert "error spec_incomplete: " in done.stderr
    assert "--labels" in done.stderr
    done = _run("predict", model, cat, "--labels", shared_models / "detection" / "coco80.names")
    assert done.returncode == 0, done.stderr
    assert "  cat  " in done.stdout


def test_the_guides_own_bundle_sees_a_cat_as_a_cat(shared_models: Path) -> None:
    bundle = shared_models / "classic" / "tensorflow001.zip"
    done = _run("predict", bundle, shared_models / "images" / "cat.jpg", "--json")
    assert done.returncode == 0, done.stderr
    ((found,),) = (answer["answer"]["objects"] for answer in json.loads(done.stdout))
    assert found["label"] == "cat"
    assert found["score"] >= 0.6


@pytest.mark.parametrize(
    ("content", "name", "error"),
    [
        (b"", "empty.onnx", (4, "model_unreadable")),
        (b"no model at all", "text.tflite", (4, "model_unreadable")),
        (b"PK", "broken.zip", (4, "bundle_unreadable")),
        (b"x", "picture.jpg", (2, "config_invalid")),
        (None, "missing.onnx", (2, "config_invalid")),
    ],
)
def test_what_is_no_model_is_refused_with_code_and_advice(
    tmp_path: Path, scene: Path, content: bytes | None, name: str, error: tuple[int, str]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    exit_code, code = error
    for done in (_run("predict", path, scene), _run("serve", path, "--port", "0")):
        assert done.returncode == exit_code, done.stderr
        assert f"error {code}: " in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_serve_answers_until_it_is_told_to_end(detector: Path, scene: Path) -> None:
    arguments = (detector / "detector.onnx", "--labels", detector / "labels.txt")
    with _serving(*arguments) as (facts, process):
        assert [model["model"] for model in facts["models"]] == ["detector"]
        assert _post(facts["url"] + "/score", scene)
        answer = _post(facts["url"] + "/v1/models/detector/predict", scene)
        assert {"decode", "infer", "queue", "total"} <= set(answer["timings_ms"])
        process.send_signal(signal.SIGTERM)
        _, printed = process.communicate(timeout=20)
    assert process.returncode == 0, printed
    assert "Traceback" not in printed


def test_several_models_are_served_side_by_side(detector: Path, demo_models: Path, scene: Path) -> None:
    gauge = demo_models / "gauge" / "1.0.0" / "gauge-fp32.tflite"
    with _serving(detector / "detector-fp32.tflite", gauge, "--default-model", "gauge-fp32") as (facts, _):
        assert [model["model"] for model in facts["models"]] == ["detector-fp32", "gauge-fp32"]
        found = _post(facts["url"] + "/score", scene)
        assert {one["Class"] for one in found} == {"low", "normal", "high", "no_gauge"}
        assert [one["Location"] for one in found] == [[0, 0, 1, 1]] * 4
        answer = _post(facts["url"] + "/v1/models/detector-fp32/predict", scene)
        assert answer["answer"]["task"] == "detection"


def test_folders_and_zips_are_served_as_they_are(detector: Path, tmp_path: Path, scene: Path) -> None:
    folder = tmp_path / "My Detector"
    folder.mkdir()
    for name in ("detector.onnx", "labels.txt"):
        shutil.copy(detector / name, folder / name)
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    done = _run("predict", folder, scene, "--json")
    zipped = _run("predict", tmp_path / "bundle.zip", scene, "--json")
    assert (done.returncode, zipped.returncode) == (0, 0), done.stderr + zipped.stderr
    (one,), (other,) = json.loads(done.stdout), json.loads(zipped.stdout)
    assert (one["model"], other["model"]) == ("my-detector", "bundle")
    assert one["answer"] == other["answer"]
    assert sorted(path.name for path in folder.iterdir()) == ["detector.onnx", "labels.txt"]


def test_a_zip_with_paths_is_refused_and_leaves_nothing(detector: Path, tmp_path: Path, scene: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.write(detector / "detector.onnx", "../../detector.onnx")
    done = _run("predict", tmp_path / "evil.zip", scene, TMPDIR=str(tmp_path))
    assert done.returncode == 4
    assert "error bundle_unsafe: " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]


def test_labels_and_spec_go_with_one_model_only(detector: Path) -> None:
    done = _run("serve", detector / "detector.onnx", detector / "detector-fp32.tflite", "--labels", "x.txt")
    assert done.returncode == 2
    assert "error config_invalid: " in done.stderr


def test_a_spec_file_overrides_what_the_model_tells(detector: Path, tmp_path: Path, scene: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text("[thresholds]\nscore = 1.0\n")
    model = detector / "detector-fp32.tflite"
    done = _run("predict", model, scene, "--spec", spec)
    assert done.returncode == 0, done.stderr
    assert "nothing found" in done.stdout
    spec.write_text("[thresholds]\nscore = 'high'\n")
    assert _run("predict", model, scene, "--spec", spec).returncode == 2
    spec.write_text("[[[")
    assert _run("predict", model, scene, "--spec", spec).returncode == 2


def test_off_loopback_serve_starts_only_guarded(detector: Path) -> None:
    done = _run("serve", detector / "detector-fp32.tflite", "--host", "0.0.0.0", "--port", "0", EDGEFERRY_TOKEN="")
    assert done.returncode == 2
    assert "EDGEFERRY_TOKEN or --allow-networks" in done.stderr
    for option, value in (("--allow-networks", "everyone"), ("--picture-hosts", "http://camera/")):
        done = _run("serve", detector / "detector-fp32.tflite", option, value, "--port", "0")
        assert done.returncode == 2
        assert option.strip("-").replace("-", "_") in done.stderr


def test_the_token_comes_from_the_environment_and_is_never_printed(detector: Path, scene: Path) -> None:
    with _serving(detector / "detector-fp32.tflite", EDGEFERRY_TOKEN="very-secret-token") as (facts, process):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            _post(facts["url"] + "/score", scene)
        assert _post(facts["url"] + "/score?api_key=very-secret-token", scene)
        process.terminate()
        printed = "".join(process.communicate(timeout=20))
    assert "very-secret-token" not in printed + str(facts)


def test_the_main_process_never_loads_numpy_or_an_engine() -> None:
    heavy = "numpy", "onnxruntime", "ai_edge_litert", "PIL", "simplejpeg", "torch"
    code = (
        "import sys, edgeferry.cli.serve_commands, edgeferry.serve.engine, edgeferry.app.serving;"
        f"sys.exit(repr([name for name in {heavy!r} if name in sys.modules]) if"
        f" any(name in sys.modules for name in {heavy!r}) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_serving_main_process_has_no_engine_mapped(detector: Path, scene: Path) -> None:
    with _serving(detector / "detector.onnx", "--labels", detector / "labels.txt") as (facts, process):
        assert _post(facts["url"] + "/score?format=classic", scene)
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
    assert "libpython" in mapped or "python" in mapped
    assert not re.search(r"onnxruntime|litert|/numpy/", mapped)


def test_a_model_of_no_known_family_is_served_as_tensors_and_says_so(tmp_path: Path, scene: Path) -> None:
    path = write_odd_model(tmp_path)
    with _serving(path) as (facts, process):
        assert facts["models"][0]["task"] == "tensors"
        tensor = {"name": "numbers", "shape": [5], "datatype": "FP32", "data": [1, 2, 3, 4, 5]}
        request = urllib.request.Request(
            f"{facts['url']}/v2/models/odd/infer", json.dumps({"inputs": [tensor]}).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)["outputs"][0]["data"] == [2, 4, 6, 8, 10]
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            _post(f"{facts['url']}/score", scene)
        assert "/v2/models/odd/infer" in json.load(refused.value)["error"]["message"]
        process.terminate()
        said = process.communicate(timeout=20)[1]
    assert "no answer family is recognised, so only /v2 serves it" in said
    assert "doubled[5]" in said


def test_predict_refuses_a_model_of_no_known_family_and_one_of_tensors(tmp_path: Path, scene: Path) -> None:
    path, spec = write_odd_model(tmp_path), tmp_path / "spec.toml"
    done = _run("predict", path, scene)
    assert done.returncode == 2
    assert "no answer family is recognised" in done.stderr
    spec.write_text('answer.family = "tensors"')
    done = _run("predict", path, scene, "--spec", spec, "--draw", tmp_path / "out.png")
    assert done.returncode != 0
    assert "takes tensors" in done.stderr
    assert not (tmp_path / "out.png").exists()
