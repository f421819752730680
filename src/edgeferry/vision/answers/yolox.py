"""YOLOX: rows [1, n, 5 + classes] -> objects, one row for each cell of three grids (strides 8, 16, 32; P6: 64 too).

A row: x, y, width, height, objectness (0..1), classes (0..1). With the cell's column and row, in pixels of the input:
x = (column + x) x stride,  y = (row + y) x stride,  width = exp(width) x stride,  height = exp(height) x stride;
`answer.parameters["decoded"] = true` where the graph has done that already. score = objectness x class.

Source: YOLOX, yolox/utils/demo_utils.py and yolox/models/yolo_head.py at 0.3.0.

Rules:
- n must be what the input's size makes it: a sum that no set of strides gives is refused.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from edgeferry.model.spec import InputSpec, Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.objects import Outputs, Tensor, make_refusal
from edgeferry.vision.answers.rows import Floats, make_boxes, pick_sure_rows
from edgeferry.vision.answers.suppression import make_suppressed_answer
from edgeferry.vision.preprocess import Placement

_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
_EXPONENT_MAX = 50.0
"""A box 10^21 times its stride: far beyond any picture, and still a number."""


def decode_yolox(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the output is not that of this family."""
    rows, size = _find_rows(stage.input, outputs)
    picked, scores, classes, places = pick_sure_rows(rows, stage.thresholds.score)
    x, y, width, height = picked[:, :4].T
    if not stage.answer.parameters.get("decoded"):
        column, row, stride = make_cells(*size, len(rows))[:, places]
        x, y = (x + column) * stride, (y + row) * stride
        width, height = (np.exp(np.minimum(side, _EXPONENT_MAX)) * stride for side in (width, height))
    boxes = make_boxes(x / size[0], y / size[1], width / size[0], height / size[1])
    return make_suppressed_answer(boxes, scores, classes, stage=stage, placement=placement, labels=labels)


def _find_rows(spec: InputSpec | None, outputs: Outputs) -> tuple[Tensor, tuple[int, int]]:
    """The rows [n, 5 + classes], and (width, height) of the input in pixels."""
    (rows,) = outputs.values() if len(outputs) == 1 else (None,)
    fits = rows is not None and rows.ndim == 3 and rows.shape[0] == 1 and rows.shape[2] >= 6
    if spec is None or rows is None or not fits or make_cells(spec.width, spec.height, rows.shape[1]).size == 0:
        wanted = f"for an input of {spec.width}x{spec.height} " if spec else ""
        raise make_refusal(f"one list of rows [1, cells, 5 + classes] {wanted}", outputs)
    return rows[0], (spec.width, spec.height)


@lru_cache(maxsize=16)
def make_cells(width: int, height: int, n: int) -> Floats:
    """[3, n]: column, row and stride of each cell of an input of `width` x `height` pixels; [3, 0] where n is wrong."""
    for strides in _STRIDES:
        sides = [(width // stride, height // stride, stride) for stride in strides]
        if sum(across * down for across, down, _ in sides) == n:
            grids = [
                (np.tile(np.arange(across), down), np.repeat(np.arange(down), across), np.full(across * down, stride))
                for across, down, stride in sides
            ]
            cells = np.concatenate([np.stack(grid) for grid in grids], axis=1).astype(np.float64)
            cells.flags.writeable = False
            return cells
    return np.empty((3, 0))
