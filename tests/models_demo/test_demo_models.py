"""The committed demo models do what their card says. Needs no torch; runs the files with ONNX Runtime and LiteRT.

The numbers here are loose on purpose: `python -m models.build --check` measures exactly, this notices a broken file.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

MODELS = Path(__file__).resolve().parents[2] / "models"
VERSIONS = ["1.0.0", "1.1.0", "1.2.0", "1.3.0-bad"]
FILES = ["detector.onnx", "detector-fp32.tflite", "detector-fp16.tflite", "detector-int8.tflite"]
HEAD = ("head.", "head", "cls", "box")
# Two runtimes sum in different orders; far under what moves an answer.
BOX_TOLERANCE, SCORE_TOLERANCE = 1e-4, 1e-3

Answer = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]  # boxes, scores, classes


def read_pixels(path: Path, side: int) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def detect(path: Path, picture: Path) -> Answer:
    pixels = read_pixels(picture, 256)
    unit = pixels.astype(np.float32)[None] / np.float32(255)
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        boxes, scores, classes = session.run(["boxes", "scores", "classes"], {"image": unit.transpose(0, 3, 1, 2)})
        return boxes, scores, classes
    runner = Interpreter(model_path=str(path), num_threads=1).get_signature_runner("serving_default")
    whole = runner.get_input_details()["image"]["dtype"] == np.uint8
    out: dict[str, Any] = runner(image=pixels[None] if whole else unit)
    count = int(out["num"][0])
    return out["boxes"][0, :count].clip(0, 1), out["scores"][0, :count], out["classes"][0, :count].astype(np.int64)


def iou(a: NDArray[Any], b: NDArray[Any]) -> float:
    inner = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return float(inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner))


def share_found(path: Path, folder: Path) -> float:
    """Share of the true objects of known classes that have an answer of their class, IoU and score >= 0.5."""
    labels, found, total = (path.parent / "labels.txt").read_text().split(), 0, 0
    for picture in sorted(folder.glob("*.jpg")):
        boxes, scores, classes = detect(path, picture)
        for truth in json.loads(picture.with_suffix(".json").read_text())["objects"]:
            if truth["label"] not in labels:
                continue
            total += 1
            sure = (scores >= 0.5) & (classes == labels.index(truth["label"]))
            found += any(iou(box, np.array(truth["box"])) >= 0.5 for box in boxes[sure])
    assert total > 0
    return found / total


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def read_properties(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", FILES)
def test_a_detector_finds_most_of_the_scenes_unless_it_is_bad(version: str, file: str) -> None:
    path = MODELS / "detector" / version / file
    assert path.stat().st_size < 1_000_000
    found = share_found(path, MODELS / "scenes")
    assert found < 0.5 if version.endswith("-bad") else found >= 0.75


@pytest.mark.parametrize(("version", "folder"), [("1.0.0", "v1.0"), ("1.1.0", "v1.1"), ("1.2.0", "v1.1")])
def test_a_good_detector_finds_its_golden_truth(version: str, folder: str) -> None:
    assert share_found(MODELS / "detector" / version / "detector.onnx", MODELS / "golden" / folder) >= 0.8


def test_the_bad_detector_fails_on_the_golden_truth() -> None:
    assert share_found(MODELS / "detector" / "1.3.0-bad" / "detector.onnx", MODELS / "golden" / "v1.1") < 0.5


def test_the_frozen_weights_of_1_1_0_are_those_of_1_0_0_to_the_bit() -> None:
    first, second = (read_weights(MODELS / "detector" / v / "detector.onnx") for v in ("1.0.0", "1.1.0"))
    frozen = [name for name in first if name.endswith((".weight", ".bias")) and not name.startswith(HEAD)]
    assert len(frozen) == 2 * 23  # 23 convolutions, each with weight and bias
    for name in frozen:
        assert first[name].tobytes() == second[name].tobytes(), name
    assert first["head.0.pointwise.weight"].tobytes() != second["head.0.pointwise.weight"].tobytes()


def test_1_1_0_knows_one_class_more_than_1_0_0() -> None:
    first, second = (read_weights(MODELS / "detector" / v / "detector.onnx") for v in ("1.0.0", "1.1.0"))
    assert (len(first["cls.weight"]), len(second["cls.weight"])) == (5, 6)


@pytest.mark.parametrize("version", VERSIONS)
def test_onnx_and_litert_give_the_same_answers(version: str) -> None:
    folder = MODELS / "detector" / version
    for picture in sorted((MODELS / "scenes").glob("*.jpg")):
        boxes, scores, classes = detect(folder / "detector.onnx", picture)
        others = detect(folder / "detector-fp32.tflite", picture)
        count = int((scores >= 0.3).sum())
        assert (others[1] >= 0.3).sum() == count
        np.testing.assert_allclose(scores[:count], others[1][:count], atol=SCORE_TOLERANCE)
        for box, label in zip(boxes[:count], classes[:count], strict=True):
            same = others[0][:count][others[2][:count] == label]
            assert np.abs(same - box).max(axis=1).min() <= BOX_TOLERANCE


@pytest.mark.parametrize("version", VERSIONS)
def test_an_onnx_file_names_its_task_labels_and_input(version: str) -> None:
    folder = MODELS / "detector" / version
    properties, labels = read_properties(folder / "detector.onnx"), (folder / "labels.txt").read_text().split()
    assert properties["edgeferry.version"] == version
    assert (properties["edgeferry.task"], properties["edgeferry.family"]) == ("detection", "ef_detector")
    assert properties["edgeferry.labels"].split("\n") == labels
    assert len(labels) == (5 if version == "1.0.0" else 6)
    assert (properties["edgeferry.input.mean"], properties["edgeferry.input.std"]) == ("0 0 0", "255 255 255")


@pytest.mark.parametrize("path", sorted(MODELS.rglob("*.tflite")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_litert_file_packs_its_labels_and_its_metadata(path: Path) -> None:
    with zipfile.ZipFile(path) as packed:
        assert packed.namelist() == ["labels.txt"]
        assert packed.read("labels.txt") == (path.parent / "labels.txt").read_bytes()
        assert packed.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)
    assert b"TFLITE_METADATA" in path.read_bytes()
    assert b"M001" in path.read_bytes()


def test_the_pictures_show_every_class_and_the_older_golden_ones_no_leak() -> None:
    def labels(folder: Path) -> list[set[str]]:
        truths = [json.loads(path.read_text())["objects"] for path in sorted(folder.glob("*.json"))]
        return [{entry["label"] for entry in truth} for truth in truths]

    everything = set((MODELS / "detector" / "1.2.0" / "labels.txt").read_text().split())
    scenes, older, newer = (labels(MODELS / name) for name in ("scenes", "golden/v1.0", "golden/v1.1"))
    assert (len(scenes), len(older)) == (6, 5)
    assert len(newer) >= 8
    assert sum("leak" in shown for shown in scenes) >= 3
    assert set().union(*scenes) == set().union(*newer) == everything
    assert set().union(*older) == everything - {"leak"}


@pytest.mark.parametrize("file", ["gauge.onnx", "gauge-fp32.tflite", "gauge-int8.tflite"])
def test_the_gauge_classifier_reads_its_golden_pictures(file: str) -> None:
    path, pictures = MODELS / "gauge" / "1.0.0" / file, sorted((MODELS / "gauge" / "golden").glob("*.jpg"))
    labels, right = (path.parent / "labels.txt").read_text().split(), 0
    assert path.stat().st_size < 1_000_000
    for picture in pictures:
        truth = json.loads(picture.with_suffix(".json").read_text())["label"]
        probabilities = classify(path, read_pixels(picture, 96))
        assert probabilities.sum() == pytest.approx(1, abs=0.02)
        right += labels[int(probabilities.argmax())] == truth
    assert {picture.name.rsplit("-", 1)[0] for picture in pictures} == set(labels)
    assert right >= 0.8 * len(pictures)


def classify(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    unit = pixels.astype(np.float32)[None] / np.float32(255)
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(["probabilities"], {"image": unit.transpose(0, 3, 1, 2)})[0][0])
    runner = Interpreter(model_path=str(path), num_threads=1).get_signature_runner("serving_default")
    whole = runner.get_input_details()["image"]["dtype"] == np.uint8
    return np.asarray(runner(image=pixels[None] if whole else unit)["probabilities"][0])
