"""Measures over many pictures: precision, top-1, and how far two versions' answers lie apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from models.evaluate import Detections, mean_average_precision

from edgeferry.model.manifest import TruthObject
from edgeferry.vision.answer import (
    Box,
    ClassificationAnswer,
    ClassScore,
    DetectionAnswer,
    FoundObject,
    SegmentationAnswer,
)
from edgeferry.vision.golden import get_iou
from edgeferry.vision.measure import (
    get_mask_iou,
    measure_difference,
    measure_disagreement,
    measure_precision,
    measure_top1,
)

HERE: Box = (0.1, 0.1, 0.5, 0.5)
NEAR: Box = (0.12, 0.1, 0.52, 0.5)
THERE: Box = (0.6, 0.6, 0.9, 0.9)


def see(*objects: tuple[str, Box, float]) -> DetectionAnswer:
    found = (FoundObject(class_index=0, label=label, box=box, score=score) for label, box, score in objects)
    return DetectionAnswer(objects=tuple(found))


def say(*classes: tuple[str, float]) -> ClassificationAnswer:
    scores = (ClassScore(class_index=ord(label), label=label, score=score) for label, score in classes)
    return ClassificationAnswer(classes=tuple(scores))


def know(*objects: tuple[str, Box | None]) -> tuple[TruthObject, ...]:
    return tuple(TruthObject(label=label, box=box) for label, box in objects)


def test_all_found_is_a_hundred_points_and_nothing_found_none() -> None:
    truths = [know(("a", HERE), ("b", THERE)), know(("a", THERE))]
    answers = [see(("a", NEAR, 0.9), ("b", THERE, 0.4)), see(("a", THERE, 0.8))]
    assert measure_precision(truths, answers) == 100.0
    assert measure_precision(truths, [see(), see()]) == 0.0
    assert measure_precision([()], [see(("a", HERE, 0.9))]) == 0.0


def test_a_false_alarm_costs_by_how_sure_it_is() -> None:
    truths = [know(("a", HERE))]
    assert measure_precision(truths, [see(("a", HERE, 0.9), ("a", THERE, 0.8))]) == 100.0
    assert measure_precision(truths, [see(("a", HERE, 0.7), ("a", THERE, 0.8))]) == 50.0


def test_a_truth_is_found_once() -> None:
    truths = [know(("a", HERE), ("a", THERE))]
    twice = [see(("a", HERE, 0.9), ("a", NEAR, 0.8), ("a", THERE, 0.7))]
    assert measure_precision(truths, twice) == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_a_truth_without_a_box_lies_anywhere() -> None:
    assert measure_precision([know(("a", None), ("a", None))], [see(("a", HERE, 0.9), ("a", THERE, 0.8))]) == 100.0
    assert measure_precision([know(("a", None))], [see(("b", HERE, 0.9))]) == 0.0


BOXES = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(31, 49), st.integers(31, 49)).map(
    lambda at: (at[0] / 10, at[1] / 10, at[0] / 10 + at[2] / 100, at[1] / 10 + at[3] / 100)
)
PICTURES = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 2), BOXES), max_size=4),
        st.lists(st.tuples(st.integers(0, 2), BOXES), max_size=6),
    ),
    min_size=1,
    max_size=4,
)


@given(PICTURES, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_precision_is_that_of_the_bench_of_our_models(pictures: list[tuple[list, list]], random: object) -> None:  # type: ignore[type-arg]
    count = itertools.count(1)
    truths, answers, found, boxes, labels = [], [], [], [], []
    for true, seen in pictures:
        overlaps = [get_iou(one[1], other[1]) for one in seen for other in true]
        # float32 and float64 may settle ties, and what is neither above nor below the limit, either way
        assume(len({round(each, 4) for each in overlaps if each}) == sum(each > 0 for each in overlaps))
        assume(all(abs(each - 0.5) > 1e-4 for each in overlaps))
        scores = [1.0 / next(count) for _ in seen]  # no two alike: equal scores may stand in any order
        truths.append(know(*((str(label), box) for label, box in true)))
        answers.append(see(*((str(label), box, score) for (label, box), score in zip(seen, scores, strict=True))))
        sides = np.array([box for _, box in seen], np.float32).reshape(-1, 4)
        found.append(Detections(sides, np.array(scores, np.float32), np.array([one[0] for one in seen], np.int64)))
        boxes.append(np.array([box for _, box in true], np.float32).reshape(-1, 4))
        labels.append(np.array([one[0] for one in true], np.int64))
    truth = type("Truth", (), {"boxes": boxes, "labels": labels})()
    theirs = [each for each in mean_average_precision(found, truth, 3).per_class if not np.isnan(each)]
    assume(theirs)
    assert measure_precision(truths, answers) == pytest.approx(100 * float(np.mean(theirs)), abs=1e-3)


def test_top1_is_the_share_of_pictures_whose_best_class_is_true() -> None:
    truths = [know(("a", None)), know(("a", None), ("b", None)), know(("c", None)), know(("c", None))]
    answers = [say(("a", 0.9)), say(("b", 0.6), ("a", 0.4)), say(("a", 0.6), ("c", 0.4)), say()]
    assert measure_top1(truths, answers) == 50.0


def test_disagreement_counts_objects_without_a_partner_on_either_side() -> None:
    one = [see(("a", HERE, 0.9), ("b", THERE, 0.8))]
    assert measure_disagreement(one, one, score=0.5) == 0.0
    assert measure_disagreement(one, [see(("a", NEAR, 0.6), ("b", THERE, 0.7))], score=0.5) == 0.0
    assert measure_disagreement(one, [see(("a", NEAR, 0.6), ("b", THERE, 0.4))], score=0.5) == pytest.approx(100 / 3)
    assert measure_disagreement(one, [see(("b", HERE, 0.9), ("b", THERE, 0.8))], score=0.5) == 50.0
    assert measure_disagreement(one, [see()], score=0.5) == 100.0
    assert measure_disagreement([see()], [see()], score=0.5) == 0.0


def test_disagreement_of_classifiers_is_another_best_class() -> None:
    ones = [say(("a", 0.9)), say(("a", 0.6), ("b", 0.4))]
    assert measure_disagreement(ones, [say(("a", 0.5)), say(("b", 0.6), ("a", 0.4))], score=0.5) == 50.0


def test_the_difference_is_smooth() -> None:
    one = [see(("a", HERE, 0.9)), say(("a", 0.9), ("b", 0.1))]
    assert measure_difference(one, one) == 0.0
    sizes = [
        measure_difference(one, [see(("a", HERE, 0.9 - shift)), say(("a", 0.9 - shift), ("b", 0.1 + shift))])
        for shift in (0.01, 0.02, 0.04)
    ]
    assert sizes[1] / sizes[0] == pytest.approx(4.0)
    assert sizes[2] / sizes[1] == pytest.approx(4.0)
    assert measure_difference([see(("a", HERE, 0.9))], [see(("a", NEAR, 0.9))]) > 0
    assert measure_difference([see(("a", HERE, 0.9))], [see(("b", HERE, 0.9))]) == pytest.approx(2 * 0.81)


# --- masks ------------------------------------------------------------------------------------------------------------
def paint(*pixels: int, width: int = 0) -> SegmentationAnswer:
    runs = tuple((index, len(list(same))) for index, same in itertools.groupby(pixels))
    return SegmentationAnswer(width=width or len(pixels), height=1, classes=(), runs=runs, png=b"")


def test_masks_overlap_by_class() -> None:
    assert get_mask_iou(paint(0, 0, 1, 1), paint(0, 0, 1, 1)) == 1.0
    assert get_mask_iou(paint(0, 0, 0, 0), paint(1, 1, 1, 1)) == 0.0
    assert get_mask_iou(paint(0, 0, 1, 1), paint(0, 1, 1, 1)) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert get_mask_iou(paint(0, 0, 1, 1), paint(0, 1, width=2)) == 0.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_the_overlap_of_masks_is_that_of_their_pixels(pairs: list[tuple[int, int]]) -> None:
    one, other = (np.array(row) for row in zip(*pairs, strict=True))
    classes = sorted({*one.tolist(), *other.tolist()})
    wanted = np.mean([((one == c) & (other == c)).sum() / ((one == c) | (other == c)).sum() for c in classes])
    found = get_mask_iou(paint(*one.tolist()), paint(*other.tolist()))
    assert found == pytest.approx(wanted)
    assert found == pytest.approx(get_mask_iou(paint(*other.tolist()), paint(*one.tolist())))


def test_masks_disagree_by_what_their_overlap_lacks() -> None:
    same, apart = paint(0, 0, 1, 1), paint(1, 1, 0, 0)
    assert measure_disagreement([same, same], [same, apart], score=0.5) == 50.0
    assert measure_difference([same, same], [same, apart]) == 0.5
    assert measure_disagreement([same], [see()], score=0.5) == 0.0
