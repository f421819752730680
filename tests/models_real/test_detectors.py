"""Detectors on photos, against what their own documentation says, in plain loops.

Tolerances: pictures are decoded by two different libraries and arithmetic is in other types: scores may differ by 0.002
(0.01 where they are quantised in steps of 0.004). Places may differ by 0.2 % of the photo's side: a letterboxed photo
has whole pixels, and half a pixel of 416 is 0.12 %. What is looked at are objects at 0.5 or more, overlapping by 0.45
at most.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from edgeferry.model.bundle_spec import make_bundle_spec
from edgeferry.model.stage_labels import load_labels
from edgeferry.vision.answer import list_objects
from edgeferry.vision.answers.table import decode
from edgeferry.vision.preprocess import Placement
from models_real.oracle import keep_best, open_onnx, sigmoid
from models_real.serving import Seen, answer_photo, assert_alike, open_rgb
from runtime.versions import COCO_NUMBERS, COCO_OTHER_NAMES

pytestmark = pytest.mark.needs_shared
PHOTOS = ("dog_bicycle_car.jpg", "person_dog_horse.jpg", "cat.jpg")
CLOSE = {"score": 0.002, "place": 0.002}


def run_onnx(model: Path, pixels: np.ndarray) -> list[np.ndarray]:
    """Pixels [h, w, 3] as floats -> the outputs of a model with one NCHW input."""
    session = open_onnx(model)
    tensor = pixels.astype(np.float32).transpose(2, 0, 1)[None]
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: tensor})
    return outputs


def see_by_fastestdet(model: Path, photo: Path, names: list[str]) -> list[Seen]:
    """FastestDet, example/onnx-runtime/runtime.py: stretched, BGR, 0..1; one grid with strides of 16 pixels."""
    pixels = np.asarray(open_rgb(photo).resize((352, 352), 2))
    grid = run_onnx(model, pixels[:, :, ::-1] / 255.0)[0][0]
    found = []
    for row in range(22):
        for column in range(22):
            sure, x, y, wide, high, *classes = (float(value) for value in grid[:, row, column])
            score = sure**0.6 * max(classes) ** 0.4
            if score >= 0.5:
                x, y = (column + math.tanh(x)) / 22, (row + math.tanh(y)) / 22
                half_w, half_h = sigmoid(wide) / 2, sigmoid(high) / 2
                box = (y - half_h, x - half_w, y + half_h, x + half_w)
                found.append(Seen(names[classes.index(max(classes))], score, box))
    return keep_best(found, 0.45)


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_fastestdet_sees_what_its_own_example_sees(shared_models: Path, version: str, photo: str) -> None:
    model = shared_models / "pairs/fastestdet_fp32_retrain" / f"{version}.onnx"
    names = shared_models / "detection/coco80.names"
    wanted = see_by_fastestdet(model, shared_models / "images" / photo, names.read_text().split("\n"))
    assert wanted
    assert_alike(answer_photo(model, shared_models / "images" / photo, labels=names), wanted, **CLOSE)


def see_by_yolox(model: Path, photo: Path, names: list[str], least: float = 0.5) -> list[Seen]:
    """YOLOX, demo/ONNXRuntime: BGR 0..255, at the top left of a canvas of grey 114; three grids."""
    image = open_rgb(photo)
    scale = min(416 / image.width, 416 / image.height)
    canvas = np.full((416, 416, 3), 114, np.uint8)
    small = np.asarray(image.resize((round(image.width * scale), round(image.height * scale)), 2))
    canvas[: small.shape[0], : small.shape[1]] = small
    rows = iter(run_onnx(model, canvas[:, :, ::-1])[0][0].tolist())
    found = []
    for stride in (8, 16, 32):
        for row in range(416 // stride):
            for column in range(416 // stride):
                x, y, wide, high, sure, *classes = next(rows)
                if sure * max(classes) >= least:
                    x, y = (x + column) * stride, (y + row) * stride
                    half_w, half_h = math.exp(wide) * stride / 2, math.exp(high) * stride / 2
                    box = (y - half_h, x - half_w, y + half_h, x + half_w)
                    top, left, bottom, right = (side / scale for side in box)
                    box = (top / image.height, left / image.width, bottom / image.height, right / image.width)
                    found.append(Seen(names[classes.index(max(classes))], sure * max(classes), box))
    assert next(rows, None) is None
    return keep_best(found, 0.45)


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("model", ["detection/yolox_nano.onnx", "pairs/yolox_fp32_finetune/v1.onnx"])
def test_yolox_sees_what_its_own_demo_sees(shared_models: Path, model: str, photo: str) -> None:
    names = shared_models / "detection/coco80.names"
    path = shared_models / "images" / photo
    wanted = see_by_yolox(shared_models / model, path, names.read_text().split("\n"))
    assert wanted
    assert_alike(answer_photo(shared_models / model, path, labels=names), wanted, **CLOSE)


def test_yolox_fine_tuned_to_three_classes_sees_the_little_that_it_sees(shared_models: Path, tmp_path: Path) -> None:
    """None of the photos shows what it was trained on: what is compared are false objects, at 0.04 and more."""
    model, photo = shared_models / "pairs/yolox_fp32_finetune/v2.onnx", shared_models / "images/cat.jpg"
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    wanted = see_by_yolox(model, photo, ["a", "b", "c"], 0.04)
    assert wanted
    assert_alike(answer_photo(model, photo, labels=names, thresholds={"score": 0.04}), wanted, **CLOSE)


# --- SSD --------------------------------------------------------------------------------------------------------------
def run_ssd(model: Path, photo: Path) -> tuple[np.ndarray, ...]:
    """The documented order of TFLite_Detection_PostProcess: boxes, classes, scores, count; pixels 0..255, stretched."""
    engine = Interpreter(str(model), num_threads=1)
    engine.allocate_tensors()
    pixels = np.asarray(open_rgb(photo).resize((300, 300), 2))
    engine.set_tensor(engine.get_input_details()[0]["index"], pixels[None])
    engine.invoke()
    return tuple(engine.get_tensor(each["index"])[0] for each in engine.get_output_details())


@pytest.mark.parametrize("photo", PHOTOS)
def test_ssd_sees_what_its_operator_answers(shared_models: Path, photo: str) -> None:
    model = shared_models / "detection/ssd_mobilenet_v1_1_metadata_1.tflite"
    path = shared_models / "images" / photo
    lines = (shared_models / "detection/labelmap.txt").read_text().split("\n")
    boxes, classes, scores, count = run_ssd(model, path)
    wanted = [
        Seen(lines[int(classes[at]) + 1], float(scores[at]), tuple(boxes[at].tolist()))
        for at in range(int(count)) if scores[at] >= 0.5
    ]  # fmt: skip
    assert wanted
    assert_alike(answer_photo(model, path), wanted, score=0.01, place=0.002)


def test_all_80_classes_of_the_guides_bundle_get_the_right_label(shared_models: Path) -> None:
    names = (shared_models / "detection/coco80.names").read_text().split("\n")[:80]
    with zipfile.ZipFile(shared_models / "classic/tensorflow001.zip") as archive:
        (stage,) = make_bundle_spec(archive.namelist(), archive.read).stages
        labels = load_labels(stage, archive.read)
    whole = np.array([[[0.0, 0.0, 1.0, 1.0]]], np.float32)
    for name, number in zip(names, COCO_NUMBERS, strict=True):
        values = (whole, np.array([[number - 1.0]]), np.array([[0.9]]), np.array([1.0]))
        outputs = dict(zip((stage.answer.outputs[role] for role in ROLES), values, strict=True))
        (found,) = list_objects(decode(stage, outputs, Placement(0.0, 0.0, 1.0, 1.0, 640, 480), labels))
        assert found.label == COCO_OTHER_NAMES.get(name, name)


ROLES = ("boxes", "classes", "scores", "count")


# --- Tiny YOLOv3 ------------------------------------------------------------------------------------------------------
def see_by_tiny_yolov3(model: Path, photo: Path, names: list[str]) -> list[Seen]:
    """ONNX model zoo, tiny-yolov3: letterbox on grey 128, bicubic, 0..1, the original (height, width) beside it."""
    image = open_rgb(photo)
    scale = min(416 / image.width, 416 / image.height)
    wide, high = round(image.width * scale), round(image.height * scale)
    canvas = Image.new("RGB", (416, 416), (128, 128, 128))
    canvas.paste(image.resize((wide, high), Image.Resampling.BICUBIC), ((416 - wide) // 2, (416 - high) // 2))
    session = open_onnx(model)
    pixels = (np.asarray(canvas, np.float32) / 255).transpose(2, 0, 1)[None]
    size = np.array([[image.height, image.width]], np.float32)
    boxes, scores, indices = session.run(None, {"input_1": pixels, "image_shape": size})
    found = []
    for _, number, place in indices.reshape(-1, 3).tolist():
        top, left, bottom, right = boxes[0, place].tolist()
        box = (top / image.height, left / image.width, bottom / image.height, right / image.width)
        found.append(Seen(names[number], float(scores[0, number, place]), box))
    return found


@pytest.mark.parametrize("photo", PHOTOS)
def test_tiny_yolov3_sees_what_its_graph_chose(shared_models: Path, photo: str) -> None:
    model = shared_models / "detection/tiny_yolov3_interface_standin.onnx"
    names = shared_models / "detection/coco80.names"
    path = shared_models / "images" / photo
    wanted = see_by_tiny_yolov3(model, path, names.read_text().split("\n"))
    assert wanted
    assert_alike(answer_photo(model, path, labels=names), wanted, **CLOSE)
