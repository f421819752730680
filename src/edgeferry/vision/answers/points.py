"""Points: what families of joints and landmarks share: points of the input -> points of the picture, and their box."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeferry.model.labels import find_label
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import Box
from edgeferry.vision.preprocess import Placement

Places = NDArray[np.float64]
"""[n, 2]: (x, y)."""


def place_points(points: Places, placement: Placement) -> Places:
    """(x, y) in 0..1 of the input -> 0..1 of the picture; they may lie outside."""
    start = np.array([placement.left, placement.top])
    placed: Places = (points - start) / np.array([placement.width, placement.height])
    return placed


def name_object(stage: Stage, labels: tuple[str, ...], default: str) -> str:
    """The label of the only class there is; `default` where there are no labels."""
    return find_label(labels, 0, stage.labels.offset) if labels else default


def get_span(points: Places) -> Box | None:
    """The box of points, clipped to the picture; None where nothing of it lies inside."""
    (left, top), (right, bottom) = points.min(axis=0).clip(0.0, 1.0), points.max(axis=0).clip(0.0, 1.0)
    if left >= right or top >= bottom:
        return None
    return float(top), float(left), float(bottom), float(right)
