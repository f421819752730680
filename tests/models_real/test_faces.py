"""Face detectors on photos, against what their own documentation says, in plain loops.

Tolerances: as in test_detectors.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from models_real.oracle import keep_best, open_onnx, overlap, sigmoid
from models_real.serving import Seen, answer_photo, assert_alike, open_rgb

pytestmark = pytest.mark.needs_shared
CLOSE = {"score": 0.002, "place": 0.002}
PHOTOS = {"face.jpg": 4, "grace_hopper.jpg": 1, "hand_rock.jpg": 1}
"""Photo -> how many faces UltraFace sees in it (MODELS.md)."""


def see_by_ultraface(model: Path, photo: Path) -> list[Seen]:
    """run_video_face_detect_onnx.py: 320 x 240, (RGB - 127) / 128; faces from 0.7 on, apart by IoU 0.5."""
    pixels = (np.asarray(open_rgb(photo).resize((320, 240), 2), np.float32) - 127) / 128
    session = open_onnx(model)
    scores, boxes = session.run(["scores", "boxes"], {"input": pixels.transpose(2, 0, 1)[None]})
    pairs = zip(scores[0, :, 1].tolist(), boxes[0].tolist(), strict=True)
    found = [Seen("face", score, (box[1], box[0], box[3], box[2])) for score, box in pairs if score >= 0.7]
    return keep_best(found, 0.5)


@pytest.mark.parametrize("photo", PHOTOS)
def test_ultraface_sees_what_its_own_example_sees(shared_models: Path, photo: str) -> None:
    model, path = shared_models / "face/version-RFB-320.onnx", shared_models / "images" / photo
    wanted = see_by_ultraface(model, path)
    assert len(wanted) == PHOTOS[photo]
    assert_alike(answer_photo(model, path), wanted, **CLOSE)


def see_by_blazeface(model: Path, photo: Path) -> list[Seen]:
    """MediaPipe's face_detection_short_range: centred on black, RGB -1..1; 512 anchors on 16 x 16, 384 on 8 x 8."""
    image = open_rgb(photo)
    scale = min(128 / image.width, 128 / image.height)
    wide, high = round(image.width * scale), round(image.height * scale)
    left, top = (128 - wide) // 2, (128 - high) // 2
    canvas = np.zeros((128, 128, 3), np.float32)
    canvas[top : top + high, left : left + wide] = np.asarray(image.resize((wide, high), 2))
    boxes, scores = run_litert(model, canvas / 127.5 - 1, (16, 1))
    anchors = [(x, y, 8) for y in range(16) for x in range(16) for _ in range(2)]
    anchors += [(x, y, 16) for y in range(8) for x in range(8) for _ in range(6)]
    found = []
    for (column, row, stride), numbers, (logit,) in zip(anchors, boxes.tolist(), scores.tolist(), strict=True):
        score = sigmoid(max(-100.0, min(100.0, logit)))
        if score >= 0.5:
            spots = [
                ((numbers[at] + (column + 0.5) * stride), (numbers[at + 1] + (row + 0.5) * stride))
                for at in (0, *range(4, 16, 2))
            ]
            (x, y), half_w, half_h = spots[0], numbers[2] / 2, numbers[3] / 2
            corners = [(x - half_w, y - half_h), (x + half_w, y + half_h), *spots[1:]]
            found.append((score, [((x - left) / wide, (y - top) / high) for x, y in corners]))
    return merge(found, 0.3)


def run_litert(model: Path, pixels: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    """The outputs [n, width] of a model, by the length of their rows."""
    engine = Interpreter(str(model), num_threads=1)
    engine.allocate_tensors()
    engine.set_tensor(engine.get_input_details()[0]["index"], pixels.astype(np.float32)[None])
    engine.invoke()
    outputs = [engine.get_tensor(each["index"])[0] for each in engine.get_output_details()]
    return [next(each for each in outputs if each.shape[1] == width) for width in widths]


def merge(found: list[tuple[float, list[tuple[float, float]]]], iou: float) -> list[Seen]:
    """Weighted suppression: what overlaps the best becomes its mean, weighted by score."""
    left = sorted(found, reverse=True)
    seen = []
    while left:
        box = make_box(left[0][1])
        same = [one for one in left if overlap(make_box(one[1]), box) > iou]
        total = sum(score for score, _ in same)
        mean = [
            tuple(sum(score * corners[at][axis] for score, corners in same) / total for axis in (0, 1))
            for at in range(8)
        ]
        seen.append(Seen("face", left[0][0], make_box(mean), tuple(mean[2:])))
        left = [one for one in left if one not in same]
    return seen


def make_box(corners: Sequence[tuple[float, ...]]) -> tuple[float, float, float, float]:
    return (corners[0][1], corners[0][0], corners[1][1], corners[1][0])


@pytest.mark.parametrize("photo", ["face.jpg", "grace_hopper.jpg"])
def test_blazeface_sees_what_its_graph_sees(shared_models: Path, photo: str) -> None:
    model, path = shared_models / "face/face_detection_short_range.tflite", shared_models / "images" / photo
    wanted = see_by_blazeface(model, path)
    assert wanted
    answer = answer_photo(model, path)
    assert_alike(answer, wanted, **CLOSE)


def test_the_six_points_of_a_face_lie_where_they_are_called(shared_models: Path) -> None:
    answer = answer_photo(
        shared_models / "face/face_detection_short_range.tflite", shared_models / "images/grace_hopper.jpg"
    )
    (face,) = answer.objects
    points = {point.name: point for point in face.points}
    assert points["right_eye"].x < points["nose_tip"].x < points["left_eye"].x
    assert points["right_ear_tragion"].x < points["right_eye"].x
    assert points["right_eye"].y < points["nose_tip"].y < points["mouth_centre"].y
