"""Palm: MediaPipe's palm detector, a box and seven points for each palm; arithmetic in `anchored.py`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.anchored import Anchored, find_anchored, make_anchored_answer, place_anchored
from edgeferry.vision.answers.objects import Outputs
from edgeferry.vision.preprocess import Placement

POINT_NAMES = ("wrist", "index_mcp", "middle_mcp", "ring_mcp", "pinky_mcp", "thumb_cmc", "thumb_mcp")
WRIST, MIDDLE_FINGER = 0, 2


def decode_palm(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    palms = find_palms(stage, outputs)
    return make_anchored_answer(palms, POINT_NAMES, stage=stage, placement=placement, labels=labels)


def find_palms(stage: Stage, outputs: Outputs) -> Anchored:
    """Palms at or above the threshold, suppressed. Raises ModelUnsupported."""
    return find_anchored(stage, outputs, pairs=2 + len(POINT_NAMES))


def place_palms(palms: Anchored, placement: Placement) -> NDArray[np.float64]:
    """Box corners and points [n, 9, 2], (y, x) in 0..1 of the picture, not clipped."""
    return place_anchored(palms, placement)
