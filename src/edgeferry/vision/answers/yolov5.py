"""YOLOv5, and YOLOv7 without its suppression: rows [1, n, 5 + classes] -> objects.

A row: centre x, centre y, width, height, objectness (0..1), classes (0..1); the graph has decoded it.
score = objectness x class. `answer.parameters["units"]`: "pixels" of the input (default; as ONNX is exported), or
"fractions" of it (as LiteRT is).

Source: YOLOv5 7.0, export.py and models/yolo.py: Detect.forward.
"""

from __future__ import annotations

from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.objects import Outputs, make_refusal
from edgeferry.vision.answers.rows import get_unit, make_boxes, pick_sure_rows
from edgeferry.vision.answers.suppression import make_suppressed_answer
from edgeferry.vision.preprocess import Placement


def decode_yolov5(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the output is not that of this family."""
    (rows,) = outputs.values() if len(outputs) == 1 else (None,)
    if rows is None or rows.ndim != 3 or rows.shape[0] != 1 or rows.shape[2] < 6:
        raise make_refusal("one list of rows [1, n, 5 + classes]", outputs)
    picked, scores, classes, _ = pick_sure_rows(rows[0], stage.thresholds.score)
    x, y, width, height = picked[:, :4].T
    across, down = get_unit(stage)
    boxes = make_boxes(x / across, y / down, width / across, height / down)
    return make_suppressed_answer(boxes, scores, classes, stage=stage, placement=placement, labels=labels)
