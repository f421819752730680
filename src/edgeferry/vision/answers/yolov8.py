"""YOLOv8, and what came after it in the same layouts (YOLOv9, YOLOv10, YOLO11, ...) -> objects.

`answer.parameters["layout"]`, for n candidates:
- "columns": [1, 4 + classes, n], a candidate down each column: centre x, centre y, width, height, classes (0..1);
- "rows": [1, n, 4 + classes], the same turned;
- "suppressed": [1, n, 6], left, top, right, bottom, score, class; suppression is in the graph, zeros fill it up.
`answer.parameters["units"]`: "pixels" of the input (default; as ONNX is exported), or "fractions" of it (as LiteRT is).

Source: Ultralytics 8.3, engine/exporter.py and nn/modules/head.py: Detect.

Rules:
- The layout must be declared: with two classes, rows and suppressed look alike.
"""

from __future__ import annotations

import numpy as np

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.objects import Outputs, Tensor, make_detection_answer, make_refusal
from edgeferry.vision.answers.rows import get_unit, make_boxes
from edgeferry.vision.answers.suppression import make_suppressed_answer
from edgeferry.vision.preprocess import Placement

_SUPPRESSED_NUMBERS = 6
_LEAST_NUMBERS = 5


def decode_yolov8(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the output is not that of this family."""
    (table,) = outputs.values() if len(outputs) == 1 else (None,)
    if table is None or table.ndim != 3 or table.shape[0] != 1:
        raise make_refusal("one table [1, 4 + classes, n], [1, n, 4 + classes] or [1, n, 6]", outputs)
    layout = stage.answer.parameters.get("layout")
    if layout == "suppressed":
        return _read_suppressed(stage, table[0], placement, labels)
    if layout not in ("columns", "rows"):
        raise ModelUnsupported(
            f"expected answer.parameters.layout columns, rows or suppressed, found {layout or 'none'!r:.40}"
        )
    columns: Tensor = table[0] if layout == "columns" else table[0].T
    if len(columns) < _LEAST_NUMBERS:
        raise make_refusal(f"a table of {layout}, each of 4 + classes", outputs)
    return _read_columns(stage, columns, placement, labels)


def _read_columns(stage: Stage, columns: Tensor, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    places = np.flatnonzero(columns[4:].max(axis=0) >= stage.thresholds.score)
    x, y, width, height, *_ = picked = columns[:, places].astype(np.float64)
    classes, scores = picked[4:].argmax(axis=0), picked[4:].max(axis=0)
    across, down = get_unit(stage)
    boxes = make_boxes(x / across, y / down, width / across, height / down)
    return make_suppressed_answer(boxes, scores, classes, stage=stage, placement=placement, labels=labels)


def _read_suppressed(stage: Stage, rows: Tensor, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    if rows.shape[1] != _SUPPRESSED_NUMBERS:
        raise make_refusal("rows [1, n, 6]", {"the only one": rows})
    across, down = get_unit(stage)
    boxes = rows[:, (1, 0, 3, 2)].astype(np.float64) / (down, across, down, across)
    return make_detection_answer(placement.to_picture(boxes), rows[:, 4], rows[:, 5], stage=stage, labels=labels)
