"""Detectors on photos, against what their own documentation says, in plain loops.

Tolerances: pictures are decoded by two different libraries and arithmetic is in other types; scores may differ by 0.02,
places by 1 % of the photo's side. What is looked at are objects at 0.5 or more, overlapping by 0.45 at most.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from models_real.oracle import keep_best, sigmoid
from models_real.serving import Seen, answer_photo, assert_alike, open_rgb

pytestmark = pytest.mark.needs_shared
PHOTOS = ("dog_bicycle_car.jpg", "person_dog_horse.jpg", "cat.jpg")
CLOSE = {"score": 0.02, "place": 0.01}


def run_onnx(model: Path, pixels: np.ndarray) -> list[np.ndarray]:
    """Pixels [h, w, 3] as floats -> the outputs of a model with one NCHW input."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
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


def see_by_yolox(model: Path, photo: Path, names: list[str]) -> list[Seen]:
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
                if sure * max(classes) >= 0.5:
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
