"""Tiny YOLOv3 as the ONNX model zoo publishes it: suppression is in the graph, indices point into boxes and scores.

boxes [1, n, 4] (top, left, bottom, right in pixels of the original picture), scores [1, classes, n], indices [m, 3] or
[1, m, 3], whole numbers (batch, class, box). Roles are found by `answer.outputs`, else by dtype and shape.

Rules:
- Boxes need no Placement: the graph undoes the letterbox with its second input (height, width).
- Indices that point outside (padding with -1, damage) are dropped.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.objects import Outputs, Tensor, make_detection_answer, make_refusal
from edgeferry.vision.preprocess import Placement

_WANTED = "boxes [1, n, 4], scores [1, classes, n] and whole-numbered indices [m, 3]"


def decode_tiny_yolov3(
    stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]
) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    boxes, scores, indices = _find_roles(outputs, stage.answer.outputs)
    _, classes, places = indices.reshape(-1, 3).astype(np.int64).T
    inside = (classes >= 0) & (classes < scores.shape[1]) & (places >= 0) & (places < boxes.shape[1])
    classes, places = classes[inside], places[inside]
    size = np.array([placement.picture_height, placement.picture_width] * 2, np.float64)
    shares = boxes[0, places].astype(np.float64) / size
    return make_detection_answer(shares, scores[0, classes, places], classes, stage=stage, labels=labels)


def _find_roles(outputs: Outputs, declared: dict[str, str]) -> tuple[Tensor, Tensor, Tensor]:
    """(boxes, scores, indices), in the shapes above."""
    if all(declared.get(role) in outputs for role in ("boxes", "scores", "indices")):
        named = outputs[declared["boxes"]], outputs[declared["scores"]], outputs[declared["indices"]]
        if _fit(*named[:2]) and _are_indices(named[2]):
            return named
        raise make_refusal(_WANTED, outputs)
    indices = [value for value in outputs.values() if _are_indices(value)]
    floats = [value for value in outputs.values() if value.dtype.kind == "f"]
    pairs = [pair for pair in permutations(floats, 2) if _fit(*pair)]
    if len(indices) != 1 or not pairs:
        raise make_refusal(_WANTED, outputs)
    return *pairs[0], indices[0]


def _fit(boxes: Tensor, scores: Tensor) -> bool:
    fits = boxes.ndim == scores.ndim == 3 and boxes.shape[2] == 4 and scores.shape[2] == boxes.shape[1]
    return fits and boxes.shape[0] == scores.shape[0] == 1


def _are_indices(value: Tensor) -> bool:
    return value.dtype.kind in "iu" and value.ndim in (2, 3) and value.shape[-1] == 3
