"""Hand: palms are found, each hand is cut out upright and given 21 landmarks, and these may be named as a gesture.

The three models and the way between them are MediaPipe's (Zhang et al., "MediaPipe Hands", 2020, and its documented
hand tracking graph); the gesture is told by a small classifier on the landmarks alone.

Rules:
- The picture is not seen as a video: palms are looked for in each.
- A hand is answered when its presence reaches the threshold of the second stage; that is its score. Its box is the
  palm's, its label the side (left or right), its attributes the gestures.
- The square that is cut: the palm's box, turned so that the middle finger points up, moved by half its height towards
  the fingers, and 2.6 times its longer side.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeferry.model.labels import find_label
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import ClassScore, FoundObject, LandmarksAnswer
from edgeferry.vision.answers.gesture import decode_gesture, make_gesture_input
from edgeferry.vision.answers.hand_landmarks import Hand, make_points, read_hand
from edgeferry.vision.answers.objects import Outputs
from edgeferry.vision.answers.palm import MIDDLE_FINGER, WRIST, find_palms, place_palms
from edgeferry.vision.crop import Square, cut
from edgeferry.vision.image import Picture
from edgeferry.vision.preprocess import Placement, make_input, make_tensor
from edgeferry.vision.steps import Call, Labels, Walk, require_input

_SCALE = 2.6
_SHIFT = 0.5

_WHOLE = Placement(0.0, 0.0, 1.0, 1.0, 1, 1)


def walk_hand(stages: Sequence[Stage], labels: Sequence[Labels], picture: Picture) -> Walk:
    """Palm, landmarks, and where there is a third stage, gesture. Raises ModelUnsupported."""
    tensor, placement = make_input(picture, require_input(stages[0]))
    outputs = yield Call(0, tensor)
    palms = place_palms(find_palms(stages[0], outputs), placement)
    found = []
    for palm in palms:
        hand = yield from _walk_one(stages, labels, picture, palm)
        if hand is not None:
            found.append(hand)
    return LandmarksAnswer(objects=tuple(sorted(found, key=lambda one: -one.score)))


def _walk_one(
    stages: Sequence[Stage], labels: Sequence[Labels], picture: Picture, palm: NDArray[np.float64]
) -> Generator[Call, Outputs, FoundObject | None]:
    """One palm, [9, 2] as `place_palms` gives it; None where there is no hand around it, or outside the picture."""
    spec = require_input(stages[1])
    square = find_square(palm, picture.width, picture.height)
    crop = cut(picture, square, spec.width, spec.height)
    hand = read_hand(stages[1], (yield Call(1, make_tensor(crop, spec))))
    (top, left), (bottom, right) = palm[:2].clip(0.0, 1.0).tolist()
    if hand is None or top >= bottom or left >= right:
        return None
    spots = square.to_picture(hand.points[:, :2])
    gestures: tuple[ClassScore, ...] = ()
    if len(stages) == 3:
        outputs = yield Call(2, make_gesture_input(spots))
        gestures = decode_gesture(stages[2], outputs, _WHOLE, labels[2]).classes
    return FoundObject(
        class_index=hand.side,
        label=find_label(labels[1], hand.side, stages[1].labels.offset),
        score=hand.presence,
        box=(top, left, bottom, right),
        points=make_points(spots / (picture.width, picture.height), _get_depths(hand, square, picture)),
        attributes=gestures,
    )


def find_square(palm: NDArray[np.float64], width: int, height: int) -> Square:
    """What to cut for a palm [9, 2] in a picture of that size."""
    pixels = palm * (height, width)
    (top, left), (bottom, right) = pixels[:2].tolist()
    (wrist_y, wrist_x), (finger_y, finger_x) = pixels[2 + WRIST].tolist(), pixels[2 + MIDDLE_FINGER].tolist()
    turn = math.pi / 2 - math.atan2(wrist_y - finger_y, finger_x - wrist_x)
    away = _SHIFT * (bottom - top)
    return Square(
        x=(left + right) / 2 + away * math.sin(turn),
        y=(top + bottom) / 2 - away * math.cos(turn),
        side=_SCALE * max(right - left, bottom - top),
        turn=turn,
    )


def _get_depths(hand: Hand, square: Square, picture: Picture) -> NDArray[np.float64]:
    return hand.points[:, 2] * (square.side / picture.width)
