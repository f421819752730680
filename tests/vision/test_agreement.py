"""How far two answers to one picture agree: for every task, both ways, and in under 100 bytes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.vision.agreement import Agreement, compare
from edgeferry.vision.answer import (
    Answer,
    Box,
    ClassificationAnswer,
    ClassScore,
    DetectionAnswer,
    FoundObject,
    MaskClass,
    PictureAnswer,
    PoseAnswer,
    SegmentationAnswer,
)

LEFT: Box = (0.0, 0.0, 1.0, 0.4)
RIGHT: Box = (0.0, 0.6, 1.0, 1.0)


def _see(*objects: tuple[str, float, Box]) -> DetectionAnswer:
    found = (FoundObject(class_index=0, label=label, score=score, box=box) for label, score, box in objects)
    return DetectionAnswer(objects=tuple(found))


def _name(label: str, score: float) -> ClassificationAnswer:
    return ClassificationAnswer(classes=(ClassScore(class_index=0, label=label, score=score),))


def _mask(*runs: tuple[int, int]) -> SegmentationAnswer:
    classes = (MaskClass(class_index=1, label="cat", share=0.5, box=(0.0, 0.0, 1.0, 1.0)),)
    return SegmentationAnswer(width=4, height=2, classes=classes, runs=runs, png=b"")


def test_a_score_that_sank_shifts_below_0_for_classes_too() -> None:
    assert compare(_name("cat", 0.9), _name("cat", 0.5)).shift == pytest.approx(-0.4)


@pytest.mark.parametrize(
    ("live", "candidate", "agreed"),
    [
        (_see(), _see(), 1.0),
        (_see(("cat", 0.9, LEFT)), _see(), 0.0),
        (_see(), _see(("cat", 0.9, LEFT)), 0.0),
        (_see(("cat", 0.9, LEFT)), _see(("cat", 0.8, LEFT)), 1.0),
        (_see(("cat", 0.9, LEFT)), _see(("dog", 0.9, LEFT)), 0.0),
        (_see(("cat", 0.9, LEFT)), _see(("cat", 0.9, RIGHT)), 0.0),
        (_see(("cat", 0.9, LEFT), ("cat", 0.8, RIGHT)), _see(("cat", 0.9, RIGHT)), 2 / 3),
        (_name("cat", 0.9), _name("cat", 0.5), 1.0),
        (_name("cat", 0.9), _name("dog", 0.9), 0.0),
        (_name("cat", 0.9), ClassificationAnswer(classes=()), 0.0),
        (ClassificationAnswer(classes=()), ClassificationAnswer(classes=()), 1.0),
        (_mask((0, 4), (1, 4)), _mask((0, 4), (1, 4)), 1.0),
        (_mask((0, 4), (1, 4)), _mask((0, 2), (1, 6)), 0.75),
        (_mask((0, 8)), _mask((1, 8)), 0.0),
        (_mask((0, 4), (1, 4)), _mask((0, 4)), 0.5),
        (PictureAnswer(width=1, height=1, png=b"a"), PictureAnswer(width=1, height=1, png=b"a"), 1.0),
        (PictureAnswer(width=1, height=1, png=b"a"), PictureAnswer(width=1, height=1, png=b"b"), 0.0),
        (_see(), PoseAnswer(objects=()), 0.0),
        (_name("cat", 0.9), _see(), 0.0),
    ],
)
def test_answers_agree_as_far_as_they_name_the_same_in_the_same_place(
    live: Answer, candidate: Answer, agreed: float
) -> None:
    assert compare(live, candidate).share == pytest.approx(agreed)


def test_boxes_and_scores_are_compared_over_what_both_name() -> None:
    narrow = (0.0, 0.0, 1.0, 0.3)
    found = compare(_see(("cat", 0.9, LEFT), ("dog", 0.5, RIGHT)), _see(("cat", 0.6, narrow)))
    report = found.make_report()
    assert (report.n, report.agree, report.iou, report.shift) == (1, 0.667, 0.75, -0.3)


SIDES = st.floats(0, 0.4), st.floats(0.6, 1)
BOXES = st.tuples(SIDES[0], SIDES[0], SIDES[1], SIDES[1])
OBJECTS = st.lists(st.tuples(st.sampled_from(["cat", "dog"]), st.floats(0, 1), BOXES), max_size=6)


@given(OBJECTS)
def test_an_answer_agrees_with_itself(objects: list[tuple[str, float, Box]]) -> None:
    assert compare(_see(*objects), _see(*objects)).share == 1.0


@given(st.lists(st.tuples(OBJECTS, OBJECTS), max_size=8))
def test_sums_stay_within_bounds_and_the_report_under_100_bytes(pairs: list[tuple[list[object], list[object]]]) -> None:
    total = sum((compare(_see(*one), _see(*other)) for one, other in pairs), Agreement())  # type: ignore[arg-type]
    report = total.make_report()
    assert total.pictures == len(pairs)
    assert 0 <= report.agree <= 1
    assert 0 <= report.iou <= 1.001
    assert -1 <= report.shift <= 1
    assert len(msgspec.json.encode(report)) < 100


def test_the_report_of_very_many_pictures_is_under_100_bytes_too() -> None:
    report = Agreement(1_000_000, 123_456.7, 9_999_999, 1_234_567.8, -765_432.1).make_report()
    assert len(msgspec.json.encode(report)) < 100
