"""The way of one picture through palm, landmarks and gesture, with outputs made by hand instead of models."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import AnswerSpec, InputSpec, Stage, Thresholds
from edgeferry.vision.answer import LandmarksAnswer
from edgeferry.vision.answers.gesture import make_gesture_input
from edgeferry.vision.answers.hand_landmarks import decode_hand_landmarks
from edgeferry.vision.answers.objects import Outputs
from edgeferry.vision.crop import Square, cut
from edgeferry.vision.hand import find_square
from edgeferry.vision.image import Picture
from edgeferry.vision.preprocess import Placement
from edgeferry.vision.walk import walk

PALM = Stage(
    file="palm.tflite",
    task="detection",
    input=InputSpec(width=192, height=192, layout="nhwc", dtype="float32", std=(255.0,), fit="letterbox"),
    answer=AnswerSpec(family="palm"),
    thresholds=Thresholds(score=0.5, iou=0.3, max_results=2),
)
HAND = Stage(
    file="hand.tflite",
    task="landmarks",
    input=InputSpec(width=224, height=224, layout="nhwc", dtype="float32", std=(255.0,)),
    answer=AnswerSpec(family="hand_landmarks"),
)
GESTURE = Stage(
    file="gesture.tflite",
    task="classification",
    answer=AnswerSpec(family="gesture"),
    thresholds=Thresholds(score=0.0),
)
STAGES = (PALM, HAND, GESTURE)
LABELS = (("palm",), ("left", "right"), ("a", "b", "c", "d"))
UPRIGHT = ((0.0, 0.05), (-0.02, -0.03), (0.0, -0.05), (0.02, -0.03), (0.04, -0.02), (-0.03, 0.03), (-0.04, 0.0))
"""Where the seven points lie around the middle of a palm whose fingers point up."""


def make_picture(width: int = 400, height: int = 400) -> Picture:
    pixels = np.random.default_rng(4).integers(0, 256, (height, width, 3), np.uint8)
    return Picture(pixels, width, height)


def make_palms(*palms: tuple[float, float, float, float]) -> Outputs:
    """Outputs for palms (x, y in 0..1 of the input, side, logit), told by the anchor at their place."""
    boxes, scores = np.zeros((1, 2016, 18), np.float32), np.full((1, 2016, 1), -50, np.float32)
    for x, y, side, logit in palms:
        column, row = int(x * 24), int(y * 24)
        anchor = np.array([(column + 0.5) / 24, (row + 0.5) / 24])
        pairs = [np.array([x, y]) - anchor, np.array([side, side])]
        pairs += [np.array([x + dx, y + dy]) - anchor for dx, dy in UPRIGHT]
        at = 2 * (row * 24 + column)
        boxes[0, at], scores[0, at] = 192 * np.concatenate(pairs), logit
    return {"boxes": boxes, "scores": scores}


def make_hand(presence: float = 0.9, side: float = 0.9, points: np.ndarray | None = None) -> Outputs:
    made = np.random.default_rng(5).uniform(20, 200, (1, 63)) if points is None else points
    return {
        "points": made.astype(np.float32),
        "presence": np.array([[presence]], np.float32),
        "side": np.array([[side]], np.float32),
        "metres": np.zeros((1, 63), np.float32),
    }


def answer(*outputs: Outputs, picture: Picture | None = None) -> LandmarksAnswer:
    """Walks a picture with these outputs, one after another; the walk must end with the last of them."""
    steps = walk(STAGES, LABELS, picture or make_picture())
    next(steps)
    try:
        for each in outputs:
            steps.send(each)
    except StopIteration as end:
        assert each is outputs[-1]
        assert isinstance(end.value, LandmarksAnswer)
        return end.value
    raise AssertionError("the walk did not end")


ROW = {"scores": np.array([[0.1, 0.2, 0.6, 0.1]], np.float32)}


# --- the walk ---------------------------------------------------------------------------------------------------------
def test_no_palm_ends_the_walk_without_asking_the_other_models() -> None:
    assert answer(make_palms()) == LandmarksAnswer(objects=())


def test_a_hand_has_the_palms_box_its_side_and_every_gesture() -> None:
    (found,) = answer(make_palms((0.5, 0.5, 0.2, 3.0)), make_hand(), ROW).objects
    assert found.box == pytest.approx((0.4, 0.4, 0.6, 0.6), abs=1e-6)
    assert (found.class_index, found.label, found.score) == (1, "right", pytest.approx(0.9))
    assert [(one.label, round(one.score, 1)) for one in found.attributes] == [
        ("c", 0.6),
        ("b", 0.2),
        ("a", 0.1),
        ("d", 0.1),
    ]


def test_points_of_the_crop_lie_where_the_crop_lay() -> None:
    middle = np.tile([112.0, 112.0, 0.0], (21, 1)).reshape(1, 63)
    (found,) = answer(make_palms((0.5, 0.5, 0.2, 3.0)), make_hand(points=middle), ROW).objects
    for point in found.points:  # half the palm's height above it
        assert (point.x, point.y, point.z) == pytest.approx((0.5, 0.4, 0.0), abs=1e-6)


def test_depth_is_told_in_widths_of_the_picture() -> None:
    deep = np.tile([112.0, 112.0, 224 * 0.4], (21, 1)).reshape(1, 63)  # as deep as the crop is wide
    picture = make_picture(800, 400)
    (found,) = answer(make_palms((0.5, 0.5, 0.2, 3.0)), make_hand(points=deep), ROW, picture=picture).objects
    assert found.points[0].z == pytest.approx(0.2 * 2.6, rel=1e-5)


def test_two_hands_are_answered_the_surer_first_and_no_third() -> None:
    palms = make_palms((0.2, 0.2, 0.1, 3.0), (0.8, 0.8, 0.1, 2.0), (0.2, 0.8, 0.1, 1.0))
    found = answer(palms, make_hand(0.7), ROW, make_hand(0.9), ROW).objects
    assert [one.score for one in found] == pytest.approx([0.9, 0.7])
    assert found[0].box[0] > 0.5 > found[1].box[0]


@pytest.mark.parametrize("outputs", [make_hand(0.4), make_hand(math.nan), make_hand(points=np.full((1, 63), np.inf))])
def test_a_palm_without_a_sure_hand_is_not_answered_nor_classified(outputs: Outputs) -> None:
    assert answer(make_palms((0.5, 0.5, 0.2, 3.0)), outputs).objects == ()


def test_a_palm_beyond_the_edge_is_not_answered() -> None:
    """In a wide picture the input's top and bottom are empty; a palm that is seen there lies outside."""
    picture = make_picture(800, 200)
    assert answer(make_palms((0.5, 0.1, 0.1, 3.0)), make_hand(), picture=picture).objects == ()


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_whatever_the_models_say_ends_in_an_answer_or_a_refusal(seed: int) -> None:
    chance = np.random.default_rng(seed)
    numbers = (chance.normal(size=(1, 2016, 18)) * 10 ** chance.integers(0, 30)).astype(np.float32)
    palms = {"boxes": numbers, "scores": chance.normal(-3, 2, (1, 2016, 1)).astype(np.float32)}
    steps, outputs = walk(STAGES, LABELS, make_picture(64, 48)), palms
    try:
        call = next(steps)
        while True:
            call = steps.send(outputs)
            outputs = make_hand(points=chance.normal(size=(1, 63)) * 1e9) if call.stage == 1 else ROW
            assert np.isfinite(call.tensor).all()
    except StopIteration as end:
        for found in end.value.objects:
            assert all(0 <= side <= 1 for side in found.box)
            assert all(math.isfinite(point.x) and math.isfinite(point.y) for point in found.points)


@pytest.mark.parametrize("lacking", ["points", "presence", "side"])
def test_outputs_of_another_model_are_refused(lacking: str) -> None:
    outputs = {name: value for name, value in make_hand().items() if name not in (lacking, "metres")}
    with pytest.raises(ModelUnsupported, match=r"\[1, 63\]"):
        decode_hand_landmarks(HAND, outputs, Placement(0, 0, 1, 1, 10, 10), ())


# --- the square -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("degrees", [0, 30, 90, 180, 270, 359])
def test_the_square_is_turned_with_the_hand_and_moved_towards_its_fingers(degrees: int) -> None:
    turn = math.radians(degrees)
    fingers = np.array([math.sin(turn), -math.cos(turn)])
    middle, size = np.array([300.0, 200.0]), np.array([600, 400])
    pairs = [middle - 20, middle + 20, middle - 20 * fingers, middle, middle + 20 * fingers, *([middle] * 4)]
    square = find_square(np.array(pairs)[:, ::-1] / size[::-1], *size)
    assert (square.x, square.y) == pytest.approx(middle + 20 * fingers)
    assert square.side == pytest.approx(2.6 * 40)
    assert math.cos(square.turn - turn) == pytest.approx(1.0)


def test_an_unturned_square_of_the_pictures_own_size_is_the_picture() -> None:
    picture = make_picture(40, 40)
    assert np.array_equal(cut(picture, Square(20, 20, 40, 0.0), 40, 40), picture.pixels)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_square_turned_clockwise_shows_the_picture_turned_back(quarters: int) -> None:
    picture = make_picture(40, 40)
    turned = cut(picture, Square(20, 20, 40, quarters * math.pi / 2), 40, 40)
    assert np.array_equal(turned, np.rot90(picture.pixels, quarters))


def test_what_lies_beyond_the_edge_is_the_edges_pixel() -> None:
    picture = make_picture(40, 40)
    far = cut(picture, Square(-1e6, 20, 40, 0.0), 40, 40)
    assert np.array_equal(far, np.repeat(picture.pixels[:, :1], 40, axis=1))


def test_a_square_is_in_pixels_of_the_original_also_where_fewer_were_decoded() -> None:
    whole = make_picture(40, 40)
    scaled = Picture(whole.pixels, 400, 400)
    assert np.array_equal(cut(scaled, Square(200, 100, 100, 0.3), 20, 20), cut(whole, Square(20, 10, 10, 0.3), 20, 20))


@given(st.floats(-500, 500), st.floats(-500, 500), st.floats(1, 500), st.floats(-10, 10))
def test_the_corners_of_a_square_are_as_far_apart_as_it_is_wide(x: float, y: float, side: float, turn: float) -> None:
    corners = Square(x, y, side, turn).to_picture(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    assert corners.mean(axis=0) == pytest.approx((x, y), abs=1e-6)
    for one, other in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        assert math.dist(one, other) == pytest.approx(side)


# --- the gesture's input ----------------------------------------------------------------------------------------------
def test_points_are_told_from_the_wrist_in_shares_of_the_farthest() -> None:
    points = np.tile([100.0, 50.0], (21, 1))
    points[1], points[2] = (110, 50), (100, 10)
    row = make_gesture_input(points)
    assert row.shape == (1, 42)
    assert row[0, :6].tolist() == [0, 0, 0.25, 0, 0, -1]


@given(st.integers(0, 2**32), st.floats(0.1, 100), st.floats(-1000, 1000))
def test_neither_place_nor_size_of_a_hand_changes_its_gesture(seed: int, factor: float, shift: float) -> None:
    points = np.random.default_rng(seed).uniform(0, 100, (21, 2))
    assert make_gesture_input(points * factor + shift) == pytest.approx(make_gesture_input(points), abs=1e-4)


def test_points_at_one_place_give_zeros() -> None:
    assert not make_gesture_input(np.full((21, 2), 7.0)).any()
