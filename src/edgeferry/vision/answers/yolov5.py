"""YOLOv5, and YOLOv7 without its suppression -> objects.

`answer.parameters["layout"]`:
- "rows" (default): [1, n, 5 + classes]: centre x, centre y, width, height, objectness (0..1), classes (0..1); the graph
  has decoded it. score = objectness x class;
- "suppressed": suppression is in the graph: boxes [1, n, 4] (left, top, right, bottom), scores [1, n], classes [1, n]
  and count [1], roles as in `ssd.py`.
`answer.parameters["units"]`: "pixels" of the input (default; as ONNX is exported), or "fractions" of it (as LiteRT is).

Source: YOLOv5 7.0, export.py, models/yolo.py: Detect.forward, and models/tf.py: TFModel.predict.
"""

from __future__ import annotations

import numpy as np

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.objects import Outputs, make_detection_answer, make_refusal
from edgeferry.vision.answers.rows import get_unit, make_boxes, pick_sure_rows
from edgeferry.vision.answers.ssd import read_counted
from edgeferry.vision.answers.suppression import make_suppressed_answer
from edgeferry.vision.preprocess import Placement


def decode_yolov5(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the output is not that of this family."""
    layout = stage.answer.parameters.get("layout", "rows")
    if layout not in ("rows", "suppressed"):
        raise ModelUnsupported(f"expected answer.parameters.layout rows or suppressed, found {layout!r:.40}")
    read = _read_rows if layout == "rows" else _read_suppressed
    return read(stage, outputs, placement, labels)


def _read_rows(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    (rows,) = outputs.values() if len(outputs) == 1 else (None,)
    if rows is None or rows.ndim != 3 or rows.shape[0] != 1 or rows.shape[2] < 6:
        raise make_refusal("one list of rows [1, n, 5 + classes]", outputs)
    picked, scores, classes, _ = pick_sure_rows(rows[0], stage.thresholds.score)
    x, y, width, height = picked[:, :4].T
    across, down = get_unit(stage)
    boxes = make_boxes(x / across, y / down, width / across, height / down)
    return make_suppressed_answer(boxes, scores, classes, stage=stage, placement=placement, labels=labels)


def _read_suppressed(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    boxes, scores, classes = read_counted(stage, outputs)
    across, down = get_unit(stage)
    boxes = boxes[:, (1, 0, 3, 2)].astype(np.float64) / (down, across, down, across)
    return make_detection_answer(placement.to_picture(boxes), scores, classes, stage=stage, labels=labels)
