"""Table: every answer family by its name in a spec, and the one function that decodes.

Rules:
- A family that is not here is ModelUnsupported: there is no default.
- What a family's outputs must look like stands in its own file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import Answer
from edgeferry.vision.answers.blazeface import decode_blazeface
from edgeferry.vision.answers.class_map import decode_class_map
from edgeferry.vision.answers.classification import decode_classification
from edgeferry.vision.answers.ef_detector import decode_ef_detector
from edgeferry.vision.answers.face_landmarks import decode_face_landmarks
from edgeferry.vision.answers.fastestdet import decode_fastestdet
from edgeferry.vision.answers.gesture import decode_gesture
from edgeferry.vision.answers.hand_landmarks import decode_hand_landmarks
from edgeferry.vision.answers.movenet import decode_movenet
from edgeferry.vision.answers.objects import Outputs
from edgeferry.vision.answers.palm import decode_palm
from edgeferry.vision.answers.probability_mask import decode_probability_mask
from edgeferry.vision.answers.ssd import decode_ssd
from edgeferry.vision.answers.super_resolution import decode_super_resolution
from edgeferry.vision.answers.tensors import decode_tensors
from edgeferry.vision.answers.tiny_yolov3 import decode_tiny_yolov3
from edgeferry.vision.answers.ultraface import decode_ultraface
from edgeferry.vision.answers.yolov5 import decode_yolov5
from edgeferry.vision.answers.yolov8 import decode_yolov8
from edgeferry.vision.answers.yolox import decode_yolox
from edgeferry.vision.preprocess import Placement

Family = Callable[[Stage, Outputs, Placement, tuple[str, ...]], Answer]

FAMILIES: dict[str, Family] = {
    "classification": decode_classification,
    "ssd": decode_ssd,
    "tiny_yolov3": decode_tiny_yolov3,
    "yolov5": decode_yolov5,
    "yolov8": decode_yolov8,
    "yolox": decode_yolox,
    "fastestdet": decode_fastestdet,
    "ultraface": decode_ultraface,
    "blazeface": decode_blazeface,
    "ef_detector": decode_ef_detector,
    "palm": decode_palm,
    "hand_landmarks": decode_hand_landmarks,
    "gesture": decode_gesture,
    "movenet": decode_movenet,
    "face_landmarks": decode_face_landmarks,
    "class_map": decode_class_map,
    "probability_mask": decode_probability_mask,
    "super_resolution": decode_super_resolution,
    "tensors": decode_tensors,
}


def require_family(stage: Stage) -> Family:
    """The decoder of a stage's answer family; raises ModelUnsupported when there is none."""
    family = FAMILIES.get(stage.answer.family)
    if family is None:
        raise ModelUnsupported(
            f"expected an answer family among {', '.join(FAMILIES)}, found {stage.answer.family!r:.60}"
        )
    return family


def decode(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> Answer:
    """Output tensors by name (already dequantised) -> the answer; raises ModelUnsupported."""
    with np.errstate(all="ignore"):  # what is not finite is dropped by the families, not complained of
        return require_family(stage)(stage, outputs, placement, labels)
