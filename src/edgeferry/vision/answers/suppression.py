"""Suppression: of boxes that show the same object only the surest stays; the last step of families that do it outside
their graph.

Boxes are [n, 4] (top, left, bottom, right), all in one unit.

Rules:
- Only boxes of one class suppress each other, and only where they overlap by more than `thresholds.iou`.
- Families sort out low scores before they make boxes: what comes here is little. Of more than CANDIDATES_MAX the best
  are looked at.
- What has no area, or a number that is not finite, suppresses nothing: it is dropped first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.objects import Tensor, make_detection_answer
from edgeferry.vision.preprocess import Placement

CANDIDATES_MAX = 1_000
"""They are compared each with each: a million pairs take some 10 ms."""

Places = NDArray[np.intp]


def make_suppressed_answer(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    stage: Stage,
    placement: Placement,
    labels: tuple[str, ...],
) -> DetectionAnswer:
    """Boxes in 0..1 of the input, scores [n] and classes [n] of all candidates -> the answer."""
    order = rank(boxes, scores, least=stage.thresholds.score)
    if order.size == 0:
        return DetectionAnswer(objects=())
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    kept = suppress(boxes, classes, iou=stage.thresholds.iou, most=stage.thresholds.max_results)
    return make_detection_answer(
        placement.to_picture(boxes[kept]), scores[kept], classes[kept], stage=stage, labels=labels
    )


def rank(boxes: Tensor, scores: Tensor, *, least: float) -> Places:
    """Places of the candidates that can be answered at all, best first; equal ones keep the model's order."""
    scores = scores.astype(np.float64)  # whole numbers without a sign would turn round when negated
    solid = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3]) & np.isfinite(boxes).all(axis=1)
    places = np.flatnonzero(solid & (scores >= least) & np.isfinite(scores))
    order: Places = places[np.argsort(-scores[places], kind="stable")][:CANDIDATES_MAX]
    return order


def suppress(boxes: Tensor, classes: Tensor, *, iou: float, most: int) -> list[int]:
    """Places of the boxes that stay, at most `most`; `boxes` stand best first."""
    if len(boxes) == 1:
        return [0]
    apart = ~(find_overlaps(boxes, iou=iou) & (classes[:, None] == classes))
    left = np.ones(len(boxes), np.bool_)
    kept: list[int] = []
    for place in range(len(boxes)):
        if left[place]:
            kept.append(place)
            left &= apart[place]
        if len(kept) == most:
            break
    return kept


def find_overlaps(boxes: Tensor, *, iou: float) -> NDArray[np.bool_]:
    """[n, n]: which boxes overlap by more than `iou` (intersection over union)."""
    top, left, bottom, right = boxes.astype(np.float64).T
    areas = (bottom - top) * (right - left)
    high = _get_common(top, bottom)
    wide = _get_common(left, right)
    common = high * wide
    found: NDArray[np.bool_] = common > iou * (areas[:, None] + areas - common)
    return found


def _get_common(start: NDArray[Any], end: NDArray[Any]) -> NDArray[Any]:
    """[n, n]: the length that two spans share."""
    shared: NDArray[Any] = np.minimum(end[:, None], end) - np.maximum(start[:, None], start)
    return shared.clip(0.0)
