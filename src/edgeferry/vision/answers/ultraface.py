"""UltraFace: scores [1, n, 2] (background, face; 0..1) and boxes [1, n, 4] -> faces.

Boxes are (left, top, right, bottom) in 0..1 of the input; the graph has decoded them, suppression is left to us.
Roles are found by `answer.outputs`, else by shape.

Source: Ultra-Light-Fast-Generic-Face-Detector-1MB, run_video_face_detect_onnx.py.

Rules:
- The background is no class: the face is class 0. More classes than one are taken in their order.
"""

from __future__ import annotations

import numpy as np

from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.objects import Outputs, Tensor, make_refusal
from edgeferry.vision.answers.suppression import make_suppressed_answer
from edgeferry.vision.preprocess import Placement

_WANTED = "scores [1, n, 2] and boxes [1, n, 4]"
_TOP_LEFT_FIRST = (1, 0, 3, 2)


def decode_ultraface(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    scores, boxes = _find_roles(stage, outputs)
    best = scores[:, 1:].max(axis=1)
    sure = np.flatnonzero(best >= stage.thresholds.score)
    classes = scores[sure, 1:].argmax(axis=1)
    placed = boxes[sure][:, _TOP_LEFT_FIRST].astype(np.float64)
    return make_suppressed_answer(placed, best[sure], classes, stage=stage, placement=placement, labels=labels)


def _find_roles(stage: Stage, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Scores [n, classes] and boxes [n, 4]."""
    declared = stage.answer.outputs
    lists = {name: value for name, value in outputs.items() if value.ndim == 3 and value.shape[0] == 1}
    boxes = [name for name, value in lists.items() if value.shape[2] == 4 and name == declared.get("boxes", name)]
    scores = [name for name, value in lists.items() if value.shape[2] >= 2 and name == declared.get("scores", name)]
    if len(scores) > 1:
        scores = [name for name in scores if name not in boxes]
    if len(boxes) != 1 or len(scores) != 1 or boxes == scores or lists[boxes[0]].shape[1] != lists[scores[0]].shape[1]:
        raise make_refusal(_WANTED, outputs)
    return lists[scores[0]][0], lists[boxes[0]][0]
