from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.model.manifest import Golden, Tolerance, TruthObject
from edgeferry.vision.answer import (
    Answer,
    Box,
    ClassificationAnswer,
    ClassScore,
    DetectionAnswer,
    FoundObject,
    MaskClass,
    PictureAnswer,
    Point,
    PoseAnswer,
    SegmentationAnswer,
)
from edgeferry.vision.golden import get_iou, judge
from edgeferry.vision.image import encode_png

HERE: Box = (0.1, 0.1, 0.5, 0.5)
NEAR: Box = (0.12, 0.1, 0.52, 0.5)
THERE: Box = (0.6, 0.6, 0.9, 0.9)


def make_golden(*truths: tuple[str, Box | None], share: float = 0.75, iou: float = 0.5) -> Golden:
    return Golden(
        input="sha256:" + "0" * 64,
        size=1,
        truth=tuple(TruthObject(label=label, box=box) for label, box in truths),
        tolerance=Tolerance(iou=iou, share=share),
    )


def see(*objects: tuple[str, Box] | tuple[str, Box, float]) -> DetectionAnswer:
    found = [
        FoundObject(class_index=0, label=one[0], box=one[1], score=one[2] if len(one) == 3 else 0.9) for one in objects
    ]
    return DetectionAnswer(objects=tuple(found))


def classify(*labels: str) -> ClassificationAnswer:
    return ClassificationAnswer(classes=tuple(ClassScore(class_index=0, label=label, score=0.9) for label in labels))


def test_an_answer_that_overlaps_enough_finds_its_truth() -> None:
    report = judge([(make_golden(("worker", HERE)), see(("worker", NEAR)))])
    assert (report.found, report.total, report.needed, report.passed) == (1, 1, 0.75, True)
    assert report.details == ()


@pytest.mark.parametrize("seen", [see(("fire", HERE)), see(("worker", THERE)), see()])
def test_another_label_another_place_or_nothing_misses_it(seen: Answer) -> None:
    report = judge([(make_golden(("worker", HERE)), seen)])
    assert (report.found, report.passed) == (0, False)
    assert "worker" in report.details[0]


def test_the_overlap_asked_for_is_that_of_the_sample() -> None:
    assert get_iou(HERE, NEAR) == pytest.approx(0.905, abs=0.01)
    assert judge([(make_golden(("worker", HERE), iou=0.9), see(("worker", NEAR)))]).passed
    assert not judge([(make_golden(("worker", HERE), iou=0.95), see(("worker", NEAR)))]).passed


def test_one_answer_finds_one_truth_and_one_truth_is_found_once() -> None:
    twins = make_golden(("worker", HERE), ("worker", NEAR), share=1.0)
    assert judge([(twins, see(("worker", HERE)))]).found == 1
    assert judge([(twins, see(("worker", HERE), ("worker", NEAR)))]).passed
    assert judge([(make_golden(("worker", HERE)), see(("worker", HERE), ("worker", NEAR)))]).found == 1


def test_the_surest_answer_chooses_first() -> None:
    golden = make_golden(("worker", HERE), ("worker", (0.2, 0.1, 0.6, 0.5)), share=1.0, iou=0.3)
    seen = see(("worker", (0.15, 0.1, 0.55, 0.5), 0.5), ("worker", HERE, 0.9))
    assert judge([(golden, seen)]).passed


def test_truths_are_pooled_over_pictures() -> None:
    hard = (make_golden(("worker", HERE)), see())
    easy = (
        make_golden(("fire", HERE), ("gauge", THERE), ("vessel", NEAR)),
        see(("fire", HERE), ("gauge", THERE), ("vessel", NEAR)),
    )
    report = judge([hard, easy])
    assert (report.found, report.total, report.needed, report.passed) == (3, 4, 3.0, True)
    assert not judge([hard, hard, easy]).passed


def test_each_sample_brings_its_own_share() -> None:
    must = (make_golden(("worker", HERE), share=1.0), see())
    may = (make_golden(("fire", HERE), share=0.5), see(("fire", HERE)))
    report = judge([must, may])
    assert report.needed == 1.5
    assert not report.passed


def test_where_nothing_is_to_be_seen_one_answer_fails() -> None:
    empty = make_golden()
    fine = (make_golden(("worker", HERE)), see(("worker", HERE)))
    assert judge([(empty, see()), fine]).passed
    report = judge([(empty, see(("fire", HERE))), fine])
    assert not report.passed
    assert "expected nothing" in report.details[0]
    assert not judge([(empty, classify("cat"))]).passed


def test_a_truth_without_a_box_is_found_anywhere() -> None:
    assert judge([(make_golden(("worker", None)), see(("worker", THERE)))]).passed


def test_a_class_counts_when_it_is_the_best() -> None:
    assert judge([(make_golden(("cat", None)), classify("cat", "dog"))]).passed
    report = judge([(make_golden(("cat", None)), classify("dog", "cat"))])
    assert (report.found, report.total, report.passed) == (0, 1, False)
    assert "dog" in report.details[0]
    assert not judge([(make_golden(("cat", None)), classify())]).passed
    assert judge([(make_golden(("cat", None), ("tabby", None)), classify("tabby"))]).passed


def test_no_golden_truth_at_all_passes() -> None:
    assert judge([]).passed


def test_rotated_labels_fail() -> None:
    names = ["worker", "no_helmet", "fire", "vessel", "gauge"]
    places: list[Box] = [(0.1 * i, 0.1, 0.1 * i + 0.1, 0.2) for i in range(5)]
    golden = make_golden(*zip(names, places, strict=True))
    assert judge([(golden, see(*zip(names, places, strict=True)))]).passed
    rotated = see(*zip(names[1:] + names[:1], places, strict=True))
    report = judge([(golden, rotated)])
    assert (report.found, report.passed) == (0, False)


def test_details_stay_few() -> None:
    assert len(judge([(make_golden(("worker", HERE)), see())] * 50).details) <= 10


SIDES = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)


@given(SIDES, SIDES)
def test_iou_is_symmetric_and_within_bounds(one: Box, other: Box) -> None:
    iou = get_iou(one, other)
    assert 0.0 <= iou <= 1.0 + 1e-9
    assert iou == pytest.approx(get_iou(other, one))


# --- poses, masks, pictures -------------------------------------------------------------------------------------------
def test_a_pose_is_found_by_its_label_and_box() -> None:
    nose = Point(name="nose", x=0.3, y=0.2)
    answer = PoseAnswer(objects=(FoundObject(class_index=0, label="person", score=0.7, box=HERE, points=(nose,)),))
    assert judge([(make_golden(("person", NEAR)), answer)]).passed
    assert not judge([(make_golden(("person", THERE)), answer)]).passed


def segment(*classes: tuple[str, float, Box]) -> SegmentationAnswer:
    held = tuple(MaskClass(class_index=0, label=label, share=share, box=box) for label, share, box in classes)
    return SegmentationAnswer(width=1, height=1, classes=held, runs=((0, 1),), png=b"")


MASK = segment(("background", 0.7, (0.0, 0.0, 1.0, 1.0)), ("cat", 0.29, HERE), ("speck", 0.009, THERE))


@pytest.mark.parametrize(
    ("truth", "found"),
    [(("cat", None), 1), (("cat", NEAR), 1), (("cat", THERE), 0), (("dog", None), 0), (("speck", None), 0)],
)
def test_a_truth_of_a_mask_is_its_label_on_one_percent_and_the_box_of_its_pixels(
    truth: tuple[str, Box | None], found: int
) -> None:
    report = judge([(make_golden(truth), MASK)])
    assert (report.found, report.total, report.passed) == (found, 1, bool(found))
    assert ("missed" in "".join(report.details)) == (not found)


def test_truths_of_one_label_are_one_in_a_mask_and_lie_where_all_of_them_do() -> None:
    both = segment(("cat", 0.4, (0.1, 0.1, 0.9, 0.9)))
    report = judge([(make_golden(("cat", HERE), ("cat", THERE)), both)])
    assert (report.found, report.total) == (1, 1)
    assert not judge([(make_golden(("cat", HERE), ("cat", THERE)), MASK)]).passed
    assert judge([(make_golden(("cat", HERE), ("cat", None)), MASK)]).passed


def test_where_nothing_is_to_be_seen_a_mask_may_hold_background_and_specks() -> None:
    assert judge([(make_golden(), segment(("background", 0.995, HERE), ("cat", 0.005, HERE)))]).passed
    assert not judge([(make_golden(), MASK)]).passed


def make_picture(*colours: int) -> PictureAnswer:
    pixels = np.array([colours], np.uint8)
    return PictureAnswer(width=len(colours), height=1, png=encode_png(pixels))


def test_a_made_picture_must_show_something_and_is_not_judged_without_a_truth() -> None:
    golden = make_golden(("person", HERE), ("person", THERE), share=1.0)
    report = judge([(golden, make_picture(7, 7, 9))])
    assert (report.found, report.total, report.passed) == (1, 1, True)
    blank = judge([(golden, make_picture(7, 7, 7))])
    assert not blank.passed
    assert "one colour" in blank.details[0]
    assert judge([(make_golden(), make_picture(7, 7)), (make_golden(), make_picture(1, 2))]).passed


def test_a_cut_out_with_nothing_left_shows_nothing() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0, :3] = 90
    answer = PictureAnswer(width=2, height=2, png=encode_png(pixels))
    assert not judge([(make_golden(("person", None)), answer)]).passed
