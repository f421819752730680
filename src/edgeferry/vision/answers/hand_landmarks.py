"""Hand landmarks: MediaPipe's model of one hand, cut out of its picture with the fingers upwards.

points [1, 63] (21 times x, y, z; pixels of the input), presence [1, 1] and side [1, 1] (0..1), and points in metres
[1, 63], which nobody asks for. Roles are found by `answer.outputs`, else by the order in which the model has them.

Rules:
- `side` tells how sure the model is of a right hand, in a picture that is not mirrored: class 0 is left, 1 is right.
- z counts from the wrist, negative towards the camera; divided by 0.4 as MediaPipe's graph has it, to be in the scale
  of x.
- Alone, on a picture that shows little else than one hand, the box of the answer spans its points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeferry.errors import ModelUnsupported
from edgeferry.model.labels import find_label
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import FoundObject, LandmarksAnswer, Point
from edgeferry.vision.answers.objects import Outputs, Tensor, make_refusal
from edgeferry.vision.preprocess import Placement

POINT_NAMES = (
    "wrist",
    *(f"thumb_{joint}" for joint in ("cmc", "mcp", "ip", "tip")),
    *(f"{finger}_{joint}" for finger in ("index", "middle", "ring", "pinky") for joint in ("mcp", "pip", "dip", "tip")),
)

_DEPTH_SCALE = 0.4


@dataclass(frozen=True, slots=True)
class Hand:
    """`points` [21, 3]: x, y in 0..1 of the input, z in widths of it. `side`: 0 left, 1 right."""

    points: NDArray[np.float64]
    presence: float
    side: int


def decode_hand_landmarks(
    stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]
) -> LandmarksAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    hand = read_hand(stage, outputs)
    if hand is None:
        return LandmarksAnswer(objects=())
    y, x = hand.points[:, 1], hand.points[:, 0]
    placed = placement.to_picture(np.stack([y, x, y, x], axis=1))[:, 1::-1]
    (left, top), (right, bottom) = placed.min(axis=0).clip(0, 1).tolist(), placed.max(axis=0).clip(0, 1).tolist()
    if top >= bottom or left >= right:
        return LandmarksAnswer(objects=())
    found = FoundObject(
        class_index=hand.side,
        label=find_label(labels, hand.side, stage.labels.offset),
        score=hand.presence,
        box=(top, left, bottom, right),
        points=make_points(placed, hand.points[:, 2] / placement.width),
    )
    return LandmarksAnswer(objects=(found,))


def read_hand(stage: Stage, outputs: Outputs) -> Hand | None:
    """The hand in the model's own input; None below the threshold, or where a number is not finite."""
    points, presence, side = _find_roles(outputs, stage.answer.outputs)
    if stage.input is None:
        raise ModelUnsupported(f"expected a picture input in the stage of {stage.file!r:.80}, found none")
    scale = (stage.input.width, stage.input.height, stage.input.width * _DEPTH_SCALE)
    placed = points.astype(np.float64).reshape(-1, 3) / scale
    score = float(presence.reshape(-1)[0])
    if not (np.isfinite(placed).all() and score >= stage.thresholds.score):
        return None
    return Hand(placed, min(score, 1.0), int(side.reshape(-1)[0] > 0.5))


def make_points(spots: NDArray[np.float64], depths: NDArray[np.float64]) -> tuple[Point, ...]:
    """Named points of `spots` [21, 2] (x, y) and `depths` [21]."""
    rows = zip(POINT_NAMES, spots.tolist(), depths.tolist(), strict=True)
    return tuple(Point(name=name, x=x, y=y, z=z) for name, (x, y), z in rows)


def _find_roles(outputs: Outputs, declared: dict[str, str]) -> tuple[Tensor, Tensor, Tensor]:
    """(points, presence, side)."""
    rows = [each for each in outputs.values() if each.shape == (1, 3 * len(POINT_NAMES))]
    singles = [each for each in outputs.values() if each.shape == (1, 1)]
    if all(declared.get(role) in outputs for role in ("points", "presence", "side")):
        points, presence, side = (outputs[declared[role]] for role in ("points", "presence", "side"))
    elif rows and len(singles) == 2:
        points, presence, side = rows[0], *singles
    else:
        raise make_refusal("points [1, 63], presence [1, 1] and side [1, 1]", outputs)
    if points.size != 3 * len(POINT_NAMES) or presence.size != 1 or side.size != 1:
        raise make_refusal("points [1, 63], presence [1, 1] and side [1, 1]", outputs)
    return points, presence, side
