"""Rows: what the YOLO families share: the numbers of many anchors -> the few rows that count, and boxes from them.

A row is [x, y, width, height, ...]: the centre of a box and its size.

Rules:
- Scores come first: boxes are made of the rows at or above the threshold only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import Stage
from edgeferry.vision.answers.objects import Tensor

Floats = NDArray[np.float64]


def pick_sure_rows(rows: Tensor, threshold: float) -> tuple[Floats, Floats, NDArray[np.intp], NDArray[np.intp]]:
    """Rows [n, 5 + classes] with objectness in the fifth place, objectness and classes 0..1.

    Returns:
        The sure rows [k, 5 + classes], their scores (objectness x best class), their classes, and their places in n.
    """
    places = np.flatnonzero(rows[:, 4] >= threshold)  # no class is surer than 1
    picked = rows[places].astype(np.float64)
    classes = picked[:, 5:].argmax(axis=1)
    best = picked[np.arange(len(picked)), 5 + classes]
    return picked, picked[:, 4] * best.clip(0.0, 1.0), classes, places


def make_boxes(x: Floats, y: Floats, width: Floats, height: Floats) -> Floats:
    """Centres and sizes -> boxes [n, 4] (top, left, bottom, right) in the same unit."""
    boxes: Floats = np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], axis=1)
    return boxes


def get_unit(stage: Stage) -> tuple[int, int]:
    """(width, height) by which places are divided to lie in 0..1 of the input, by `parameters["units"]`."""
    units = stage.answer.parameters.get("units", "pixels")
    if units not in ("pixels", "fractions"):
        raise ModelUnsupported(f"expected answer.parameters.units pixels or fractions, found {units!r:.40}")
    if stage.input is None:
        raise ModelUnsupported(f"expected a picture input in the stage of {stage.file!r:.80}, found none")
    return (stage.input.width, stage.input.height) if units == "pixels" else (1, 1)
