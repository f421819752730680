"""Our own detector (models/README.md): decoding and suppression are in the graph.

boxes [n, 4] (top, left, bottom, right in 0..1 of the input), scores [n], classes [n] whole numbers, best first.
Roles are found by `answer.outputs`, else by the names boxes, scores and classes, else by dtype and shape.

Rules:
- n differs from picture to picture, and is 0 when nothing is seen.
"""

from __future__ import annotations

from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.objects import Outputs, Tensor, make_detection_answer, make_refusal
from edgeferry.vision.preprocess import Placement

_ROLES = ("boxes", "scores", "classes")
_WANTED = "boxes [n, 4], scores [n] and classes [n] (whole numbers)"


def decode_ef_detector(
    stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]
) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    names = {role: stage.answer.outputs.get(role, role) for role in _ROLES}
    if all(name in outputs for name in names.values()):
        boxes, scores, classes = (outputs[names[role]] for role in _ROLES)
    else:
        boxes, scores, classes = _find_by_shape(outputs)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not scores.shape == classes.shape == boxes.shape[:1]:
        raise make_refusal(_WANTED, outputs)
    return make_detection_answer(placement.to_picture(boxes), scores, classes, stage=stage, labels=labels)


def _find_by_shape(outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
    boxes = [value for value in outputs.values() if value.ndim == 2]
    scores = [value for value in outputs.values() if value.ndim == 1 and value.dtype.kind == "f"]
    classes = [value for value in outputs.values() if value.ndim == 1 and value.dtype.kind in "iu"]
    if not len(boxes) == len(scores) == len(classes) == 1:
        raise make_refusal(_WANTED, outputs)
    return boxes[0], scores[0], classes[0]
