"""BlazeFace: MediaPipe's short-range face detector, a box and six points for each face; arithmetic in `anchored.py`.

Sides are the person's own: the right eye is the left one to who looks at the picture.

Source: Bazarevsky et al., "BlazeFace", 2019; MediaPipe's face_detection_short_range graph.
"""

from __future__ import annotations

from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.anchored import find_anchored, make_anchored_answer
from edgeferry.vision.answers.objects import Outputs
from edgeferry.vision.preprocess import Placement

POINT_NAMES = ("right_eye", "left_eye", "nose_tip", "mouth_centre", "right_ear_tragion", "left_ear_tragion")


def decode_blazeface(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    faces = find_anchored(stage, outputs, pairs=2 + len(POINT_NAMES))
    return make_anchored_answer(faces, POINT_NAMES, stage=stage, placement=placement, labels=labels)
