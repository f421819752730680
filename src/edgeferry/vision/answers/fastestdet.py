"""FastestDet: one grid [1, 5 + classes, rows, columns] -> objects.

In each cell: objectness (0..1), x, y, width, height, then the classes (0..1, they add up to 1). With the cell's column
and row:  x = (column + tanh x) / columns,  y = (row + tanh y) / rows,  width = sigmoid width,  height = sigmoid height,
all in 0..1 of the input;  score = objectness ** 0.6 x class ** 0.4.

Source: FastestDet, example/onnx-runtime/runtime.py and utils/tool.py at 97df0a8 (the first release had another score:
objectness x class).

Rules:
- Only cells whose objectness can reach the threshold are looked at.
"""

from __future__ import annotations

import numpy as np

from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.objects import Outputs, Tensor, make_refusal
from edgeferry.vision.answers.rows import make_boxes
from edgeferry.vision.answers.suppression import make_suppressed_answer
from edgeferry.vision.preprocess import Placement

_OBJECTNESS_POWER, _CLASS_POWER = 0.6, 0.4


def decode_fastestdet(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the output is not that of this family."""
    grid = _find_grid(outputs)
    rows, columns = grid.shape[1:]
    flat = grid.reshape(len(grid), -1)
    cells = np.flatnonzero(flat[0] >= stage.thresholds.score ** (1 / _OBJECTNESS_POWER))
    sure, x, y, width, height, *_ = found = flat[:, cells].astype(np.float64)
    classes = found[5:].argmax(axis=0)
    best = found[5:].max(axis=0).clip(0.0, 1.0)
    scores = sure.clip(0.0, 1.0) ** _OBJECTNESS_POWER * best**_CLASS_POWER
    boxes = make_boxes(
        (cells % columns + np.tanh(x)) / columns,
        (cells // columns + np.tanh(y)) / rows,
        0.5 + 0.5 * np.tanh(width / 2),  # the sigmoid, without overflow
        0.5 + 0.5 * np.tanh(height / 2),
    )
    return make_suppressed_answer(boxes, scores, classes, stage=stage, placement=placement, labels=labels)


def _find_grid(outputs: Outputs) -> Tensor:
    (grid,) = outputs.values() if len(outputs) == 1 else (None,)
    if grid is None or grid.ndim != 4 or grid.shape[0] != 1 or grid.shape[1] < 6 or grid.size == 0:
        raise make_refusal("one grid [1, 5 + classes, rows, columns]", outputs)
    whole: Tensor = grid[0]
    return whole
