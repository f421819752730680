"""MediaPipe's hand tracking on a still picture, written from its documentation and nothing of ours: plain loops.

Palm detection graph: a square input, the picture centred on black, pixels 0..1; anchors of strides 8, 16, 16, 16 with
two boxes of side 1 each; sigmoid; weighted suppression at IoU 0.3. Its box becomes a square: turned so that the line
from wrist to middle finger points up, moved half its height that way, 2.6 times its longer side. Landmark graph: the
square as 224 x 224 pixels 0..1; z divided by 0.4. Gesture classifier: x, y relative to the wrist, over the farthest.
Its image-to-tensor step samples bilinearly without filtering; `filtered` averages the palm detector's picture instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

Pair = tuple[float, float]
SIDE = 192
CROP = 224


@dataclass(frozen=True)
class PlainHand:
    """All in pixels of the picture; `box` is left, top, right, bottom; `points` x, y, z."""

    box: tuple[float, float, float, float]
    palm_score: float
    presence: float
    right: float
    points: list[tuple[float, float, float]]
    gestures: list[float]


def find_plain_hands(folder: Path, picture: Path, *, filtered: bool) -> list[PlainHand]:
    """Every hand of a picture, by the three models in `folder`."""
    image = Image.open(picture).convert("RGB")
    hands = []
    for score, pairs in suppress(read_palms(folder, image, filtered)):
        crop, to_picture = cut_square(image, pairs)
        points, presence, right = run(folder / "hand_landmark_lite.tflite", to_floats(crop))[:3]
        rows = points.reshape(21, 3).tolist()
        spots = [to_picture(x / CROP, y / CROP) for x, y, _ in rows]
        width = math.dist(to_picture(0, 0), to_picture(1, 0))
        vector = [[c - w for c, w in zip(spot, spots[0], strict=True)] for spot in spots]
        farthest = max(abs(c) for pair in vector for c in pair)
        (gestures,) = run(
            folder / "keypoint_classifier.tflite",
            np.array([[c / farthest for pair in vector for c in pair]], "float32"),
        )
        depths = [z / CROP / 0.4 * width for _, _, z in rows]
        placed = [(x, y, z) for (x, y), z in zip(spots, depths, strict=True)]
        box = (*pairs[0], *pairs[1])
        hands.append(PlainHand(box, score, float(presence[0, 0]), float(right[0, 0]), placed, gestures[0].tolist()))
    return hands


def read_palms(folder: Path, image: Image.Image, filtered: bool) -> list[tuple[float, list[Pair]]]:
    """(score, [top left, bottom right, seven points]) in pixels, of every anchor at 0.5 or above."""
    longest = max(image.size)
    left, top = (longest - image.width) / 2, (longest - image.height) / 2
    step = longest / SIDE
    if filtered:
        square = ImageOps.pad(image, (SIDE, SIDE), Image.Resampling.BILINEAR)
    else:
        matrix = (step, 0, -left, 0, step, -top)
        square = image.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    numbers, logits = run(folder / "palm_detection_lite.tflite", to_floats(square))
    palms = []
    rows = zip(numbers[0].tolist(), logits[0, :, 0].tolist(), list_anchors(), strict=True)
    for row, logit, (anchor_x, anchor_y) in rows:
        score = 1 / (1 + math.exp(-max(-100.0, min(100.0, logit))))
        if score < 0.5:
            continue
        x, y, width, height = row[0] + anchor_x, row[1] + anchor_y, row[2], row[3]
        pairs = [(x - width / 2, y - height / 2), (x + width / 2, y + height / 2)]
        pairs += [(row[at] + anchor_x, row[at + 1] + anchor_y) for at in range(4, 18, 2)]
        palms.append((score, [(x * step - left, y * step - top) for x, y in pairs]))
    return palms


def list_anchors() -> list[Pair]:
    """Centres in pixels of the input."""
    layers = [(8, 2), (16, 6)]  # strides 16, 16, 16 share one grid
    return [
        ((column + 0.5) * stride, (row + 0.5) * stride)
        for stride, boxes in layers
        for row in range(SIDE // stride)
        for column in range(SIDE // stride)
        for _ in range(boxes)
    ]


def suppress(palms: list[tuple[float, list[Pair]]]) -> list[tuple[float, list[Pair]]]:
    rest, kept = sorted(palms, key=lambda palm: -palm[0]), []
    while rest:
        same = [palm for palm in rest if palm is rest[0] or get_overlap(palm[1], rest[0][1]) > 0.3]
        total = sum(score for score, _ in same)
        mean = [
            tuple(sum(score * pairs[at][axis] for score, pairs in same) / total for axis in (0, 1)) for at in range(9)
        ]
        kept.append((rest[0][0], mean))
        rest = [palm for palm in rest if palm not in same]
    return kept  # type: ignore[return-value]


def get_overlap(one: list[Pair], other: list[Pair]) -> float:
    sides = [max(0.0, min(one[1][axis], other[1][axis]) - max(one[0][axis], other[0][axis])) for axis in (0, 1)]
    areas = [(pairs[1][0] - pairs[0][0]) * (pairs[1][1] - pairs[0][1]) for pairs in (one, other)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def cut_square(image: Image.Image, pairs: list[Pair]) -> tuple[Image.Image, Any]:
    """The crop, and a function from 0..1 of it to pixels of the picture."""
    (left, top), (right, bottom), wrist, _, finger = pairs[:5]
    turn = math.pi / 2 - math.atan2(-(finger[1] - wrist[1]), finger[0] - wrist[0])
    width, height = right - left, bottom - top
    x = (left + right) / 2 + height * 0.5 * math.sin(turn)
    y = (top + bottom) / 2 - height * 0.5 * math.cos(turn)
    side = 2.6 * max(width, height)

    def to_picture(across: float, down: float) -> Pair:
        a, d = (across - 0.5) * side, (down - 0.5) * side
        return x + a * math.cos(turn) - d * math.sin(turn), y + a * math.sin(turn) + d * math.cos(turn)

    (x0, y0), (x1, y1), (x2, y2) = to_picture(0, 0), to_picture(1, 0), to_picture(0, 1)
    matrix = ((x1 - x0) / CROP, (x2 - x0) / CROP, x0, (y1 - y0) / CROP, (y2 - y0) / CROP, y0)
    return image.transform((CROP, CROP), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR), to_picture


def to_floats(image: Image.Image) -> Any:
    return (np.asarray(image, "float32") / 255)[None]


def run(path: Path, tensor: Any) -> list[Any]:
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], tensor)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
