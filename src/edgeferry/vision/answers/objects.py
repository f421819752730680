"""Objects: candidate boxes, scores and classes -> found objects; the last step that all detection families share.

Rules:
- Candidates with a number that is not finite, without area inside the picture, or of no class (below 0, or from
  CLASSES_MAX on: no answer could hold it), are dropped; boxes are clipped.
- At or above the threshold counts. Best first; equal scores keep the model's order. At most `max_results`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeferry.errors import ModelUnsupported
from edgeferry.model.labels import find_label
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer, FoundObject

CLASSES_MAX = 1 << 31

Tensor = NDArray[Any]
Outputs = dict[str, Tensor]


def make_detection_answer(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    stage: Stage,
    labels: tuple[str, ...],
) -> DetectionAnswer:
    """Boxes [n, 4] (top, left, bottom, right; 0..1 of the picture), scores [n] and classes [n] -> the answer."""
    numbers = np.column_stack([boxes, scores, classes]).astype(np.float64)
    keep = np.isfinite(numbers).all(axis=1) & (numbers[:, 4] >= stage.thresholds.score)
    keep &= (numbers[:, 5] > -0.5) & (numbers[:, 5] < CLASSES_MAX)
    numbers = numbers[keep]
    numbers[:, :4] = numbers[:, :4].clip(0.0, 1.0)
    numbers = numbers[(numbers[:, 0] < numbers[:, 2]) & (numbers[:, 1] < numbers[:, 3])]
    order = np.argsort(-numbers[:, 4], kind="stable")[: stage.thresholds.max_results]
    return DetectionAnswer(objects=tuple(_make_object(row, stage, labels) for row in numbers[order].tolist()))


def _make_object(row: list[float], stage: Stage, labels: tuple[str, ...]) -> FoundObject:
    top, left, bottom, right, score, number = row
    index = round(number)
    label = find_label(labels, index, stage.labels.offset)
    return FoundObject(class_index=index, label=label, score=min(score, 1.0), box=(top, left, bottom, right))


def make_refusal(wanted: str, outputs: Outputs) -> ModelUnsupported:
    """The error for outputs that are not those of a family, naming what was found."""
    shapes = {name: list(value.shape) for name, value in outputs.items()}
    return ModelUnsupported(f"expected the outputs {wanted}, found {shapes!r:.300}")
