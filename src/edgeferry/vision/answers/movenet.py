"""MoveNet: the 17 joints of COCO, of one body or of several -> a pose.

The output is the one that `answer.outputs["joints"]` names, else the only one:
- single pose [1, 1, 17, 3]: (y, x, score) in 0..1 of the input;
- multi pose [1, n, 56]: 17 x (y, x, score), then top, left, bottom, right and the score of the body.

Rules:
- The score of a single body is the mean of its joints' scores, as TensorFlow's pose example has it.
- All joints are answered, each with its score. The box spans those at or above the threshold, clipped to the picture.
- A body is answered when its score reaches the threshold and two joints do, and all its numbers are finite; at most
  `max_results`, best first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeferry.model.spec import Stage
from edgeferry.vision.answer import FoundObject, Point, PoseAnswer
from edgeferry.vision.answers.masks import find_output
from edgeferry.vision.answers.objects import Outputs, make_refusal
from edgeferry.vision.answers.points import get_span, name_object, place_points
from edgeferry.vision.preprocess import Placement

JOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""Of COCO keypoints (Lin et al., 2014), in MoveNet's order."""
_WANTED = "joints [1, 1, 17, 3], or bodies [1, n, 56]"
_PERSON = "person"

Bodies = list[tuple[float, NDArray[np.float64]]]
"""Score and joints [17, 3] (y, x, score) of each."""


def decode_movenet(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> PoseAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    label = name_object(stage, labels, _PERSON)
    found = list(_list_objects(_list_bodies(stage, outputs), stage, placement, label=label))
    found.sort(key=lambda one: -one.score)
    return PoseAnswer(objects=tuple(found[: stage.thresholds.max_results]))


def _list_bodies(stage: Stage, outputs: Outputs) -> Bodies:
    values = find_output(stage, outputs, role="joints", wanted=_WANTED)
    if values.shape == (1, 1, len(JOINTS), 3):
        joints = values[0, 0].astype(np.float64)
        return [(float(joints[:, 2].mean()), joints)]
    if values.ndim == 3 and values.shape[0] == 1 and values.shape[2] == 3 * len(JOINTS) + 5:
        rows = values[0].astype(np.float64)
        return [(float(row[-1]), row[: 3 * len(JOINTS)].reshape(-1, 3)) for row in rows]
    raise make_refusal(_WANTED, outputs)


def _list_objects(bodies: Bodies, stage: Stage, placement: Placement, *, label: str) -> Iterator[FoundObject]:
    for score, joints in bodies:
        seen = joints[:, 2] >= stage.thresholds.score
        places = place_points(joints[:, 1::-1], placement)
        finite = np.isfinite(joints).all() and np.isfinite(places).all()
        if not (finite and score >= stage.thresholds.score and seen.sum() >= 2):
            continue
        points = tuple(
            Point(name=name, x=x, y=y, score=min(max(sure, 0.0), 1.0))
            for name, (x, y), sure in zip(JOINTS, places.tolist(), joints[:, 2].tolist(), strict=True)
        )
        box = get_span(places[seen])
        if box is not None:
            yield FoundObject(class_index=0, label=label, score=min(score, 1.0), box=box, points=points)
