"""The sample's strings, held against numpy itself."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.serve.formats.classic import format_array, format_scalar, make_classic
from edgeferry.vision.answer import ClassificationAnswer, ClassScore, DetectionAnswer, FoundObject

shares = st.floats(0, 1, width=32)
pixels = st.floats(0, 16384, width=32)
boxes: Any = st.one_of(*(st.tuples(kind, kind, kind, kind) for kind in (shares, pixels)))


@settings(max_examples=200, deadline=None)
@given(boxes)
def test_locations_are_written_as_numpy_writes_an_array(box: tuple[float, float, float, float]) -> None:
    assert format_array(box) == str(np.array(box, np.float32))


@settings(max_examples=200, deadline=None)
@given(st.one_of(shares, pixels))
def test_scores_are_written_as_numpy_writes_a_scalar(score: float) -> None:
    assert format_scalar(score) == str(np.float32(score))


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 1, 1),
        (0.1, 0.25, 0.5, 1),
        (1e-5, 0.5, 0.25, 1),
        (0.0005, 0.9, 0.3, 1.0),
        (0, 0, 0, 0),
        (1 / 3, 2 / 3, 1, 0),
    ],
)
def test_boxes_that_change_the_notation(box: tuple[float, float, float, float]) -> None:
    assert format_array(box) == str(np.array(box, np.float32))


def _cat(box: tuple[float, float, float, float]) -> DetectionAnswer:
    return DetectionAnswer(objects=(FoundObject(class_index=16, label="cat", score=0.72265625, box=box),))


def test_a_cat_reads_as_in_the_sample() -> None:
    found = make_classic(_cat((0.13, 0.09, 0.98, 0.71)), width=640, height=480, in_pixels=False)
    assert found == ["{'Class': 'cat','Score': '0.72265625','Location': '[0.13 0.09 0.98 0.71]'}"]
    assert ast.literal_eval(found[0])["Class"] == "cat"


def test_the_onnx_path_answers_in_pixels() -> None:
    found = make_classic(_cat((0.5, 0.25, 1.0, 0.75)), width=640, height=480, in_pixels=True)
    assert found == ["{'Class': 'cat','Score': '0.72265625','Location': '[240. 160. 480. 480.]'}"]


def test_a_class_stands_for_the_whole_picture_and_nothing_found_is_an_empty_array() -> None:
    answer = ClassificationAnswer(classes=(ClassScore(class_index=1, label="low", score=1.0),))
    assert make_classic(answer, width=9, height=9, in_pixels=False) == [
        "{'Class': 'low','Score': '1.0','Location': '[0. 0. 1. 1.]'}"
    ]
    assert make_classic(DetectionAnswer(objects=()), width=9, height=9, in_pixels=True) == []
