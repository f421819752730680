"""Gesture: a classifier on the 21 landmarks of a hand; the last stage of the hand pipeline, no picture goes in.

Its input is [1, 42]: x and y of each landmark in pixels, relative to the wrist, divided by the largest of them (the
one farthest from 0), as its authors train it. Its output is one row of scores, read as `classification.py` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeferry.model.spec import Stage
from edgeferry.vision.answer import ClassificationAnswer
from edgeferry.vision.answers.classification import decode_classification
from edgeferry.vision.answers.objects import Outputs
from edgeferry.vision.preprocess import Placement


def make_gesture_input(points: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Landmarks [21, 2] (x, y) in pixels, the wrist first -> float32 [1, 42]; all at one place give zeros."""
    relative = points - points[0]
    largest = float(np.abs(relative).max())
    shares: NDArray[np.float32] = (relative / (largest or 1.0)).reshape(1, -1).astype(np.float32)
    return shares


def decode_gesture(
    stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]
) -> ClassificationAnswer:
    """See the module. Raises ModelUnsupported when there is no such output."""
    return decode_classification(stage, outputs, placement, labels)
