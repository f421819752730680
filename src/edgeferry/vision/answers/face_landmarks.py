"""Face landmarks: the face mesh of MediaPipe, 468 points of one face that fills the picture -> landmarks.

Outputs, by `answer.outputs` or by their sizes: `points`, 468 x (x, y, z) in pixels of the input, z with the scale of x;
`presence`, one number.

Rules:
- `answer.parameters["activation"]`: "sigmoid" (default: presence is a logit, as MediaPipe's graph takes it) or "none".
- A face is answered when its presence reaches the threshold; its box spans the points, clipped to the picture.
- Points are named by their number in the canonical face mesh.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import FoundObject, LandmarksAnswer, Point
from edgeferry.vision.answers.objects import Outputs, make_refusal
from edgeferry.vision.answers.points import get_span, name_object, place_points
from edgeferry.vision.preprocess import Placement

POINTS = 468
_WANTED = f"points of {3 * POINTS} numbers and presence of one"
_FACE = "face"


def decode_face_landmarks(
    stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]
) -> LandmarksAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    points, presence = _find_roles(stage, outputs)
    score = _activate(presence, stage)
    places = place_points(points[:, :2], placement)
    box = get_span(places)
    if score < stage.thresholds.score or box is None or not np.isfinite(points).all():
        return LandmarksAnswer(objects=())
    depths = points[:, 2] / placement.width
    found = tuple(
        Point(name=str(number), x=x, y=y, z=z)
        for number, ((x, y), z) in enumerate(zip(places.tolist(), depths.tolist(), strict=True))
    )
    label = name_object(stage, labels, _FACE)
    return LandmarksAnswer(objects=(FoundObject(class_index=0, label=label, score=score, box=box, points=found),))


def _find_roles(stage: Stage, outputs: Outputs) -> tuple[NDArray[np.float64], float]:
    """Points [468, 3] in 0..1 of the input (z by its width), and the presence as the model gives it."""
    named = stage.answer.outputs
    points = [
        value for name, value in outputs.items() if value.size == 3 * POINTS and named.get("points", name) == name
    ]
    presence = [value for name, value in outputs.items() if value.size == 1 and named.get("presence", name) == name]
    if len(points) != 1 or len(presence) != 1 or stage.input is None:
        raise make_refusal(_WANTED, outputs)
    side = np.array([stage.input.width, stage.input.height, stage.input.width], np.float64)
    return points[0].reshape(-1, 3).astype(np.float64) / side, float(presence[0].reshape(-1)[0])


def _activate(presence: float, stage: Stage) -> float:
    kind = stage.answer.parameters.get("activation", "sigmoid")
    if kind not in ("none", "sigmoid"):
        raise ModelUnsupported(f"expected answer.parameters.activation none or sigmoid, found {kind!r:.40}")
    if not math.isfinite(presence):
        return 0.0
    return min(max(presence, 0.0), 1.0) if kind == "none" else 1 / (1 + math.exp(-min(max(presence, -80.0), 80.0)))
