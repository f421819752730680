"""Known objects, written into each family's outputs as it publishes them, come back; hostile outputs do no harm."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeferry.errors import ModelUnsupported
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.suppression import CANDIDATES_MAX, find_overlaps, rank, suppress
from edgeferry.vision.answers.table import decode
from edgeferry.vision.preprocess import Placement
from models_real.oracle import keep_best, overlap
from models_real.serving import Seen
from vision.detectors import LAYOUTS, Known, Layout, get_cell

LABELS = tuple("abcde")
LETTERBOX = Placement(0.0, 0.125, 1.0, 0.75, 640, 320)
HIDDEN = 0.3
"""Below the threshold."""


@st.composite
def known_objects(draw: st.DrawFn, classes: int) -> list[Known]:
    """Objects of different classes, each inside the letterboxed picture; all at scores that can be told apart."""
    numbers = draw(st.permutations(range(classes)))[: draw(st.integers(0, classes))]
    made = []
    for rank_number, number in enumerate(numbers):
        high, wide = draw(st.floats(0.05, 0.5)), draw(st.floats(0.05, 0.5))
        top, left = draw(st.floats(0.125, 0.875 - high)), draw(st.floats(0, 1 - wide))
        hidden = draw(st.booleans())
        made.append(
            Known((top, left, top + high, left + wide), number, HIDDEN if hidden else 0.95 - 0.08 * rank_number)
        )
    return made


def decode_known(layout: Layout, known: list[Known], places: list[int]) -> DetectionAnswer:
    outputs = layout.write(known, places)
    answer = decode(layout.make_stage(score=0.5, iou=0.45), outputs, LETTERBOX, LABELS)
    assert isinstance(answer, DetectionAnswer)
    return answer


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
@settings(max_examples=40)
def test_known_objects_come_back_out_of_the_published_layout(name: str, data: st.DataObject) -> None:
    layout = LAYOUTS[name]
    known = data.draw(known_objects(layout.classes))
    if layout.family == "fastestdet":
        known = sorted({get_cell(one): one for one in known}.values(), key=lambda one: -one.score)
    place = st.integers(0, layout.places - 1)
    places = data.draw(st.lists(place, min_size=len(known), max_size=len(known), unique=True))
    answer = decode_known(layout, known, places)
    wanted = [one for one in known if one.score > HIDDEN]
    assert [found.label for found in answer.objects] == [LABELS[one.class_index] for one in wanted]
    for found, one in zip(answer.objects, wanted, strict=True):
        assert found.score == pytest.approx(one.score, abs=1e-5)
        top, left, bottom, right = one.box
        assert found.box == pytest.approx(((top - 0.125) / 0.75, left, (bottom - 0.125) / 0.75, right), abs=1e-5)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if "suppressed" not in name and name != "fastestdet"])
def test_of_two_that_overlap_the_surer_one_stays(name: str) -> None:
    layout = LAYOUTS[name]
    box = (0.3, 0.3, 0.7, 0.7)
    near, far = (0.32, 0.3, 0.72, 0.7), (0.3, 0.6, 0.7, 0.95)
    known = [Known(near, 0, 0.8), Known(box, 0, 0.9), Known(far, 0, 0.7)]
    answer = decode_known(layout, known, [3, 5, 8])
    assert [round(found.score, 3) for found in answer.objects] == [0.9, 0.7]
    if layout.classes > 1:
        answer = decode_known(layout, [Known(near, 1, 0.8), *known[1:]], [3, 5, 8])
        assert [found.label for found in answer.objects] == ["a", "b", "a"]


def test_the_points_of_a_face_are_mapped_out_of_the_letterbox() -> None:
    answer = decode_known(LAYOUTS["blazeface"], [Known((0.2, 0.3, 0.8, 0.5), 0, 0.9)], [17])
    (face,) = answer.objects
    assert [point.name for point in face.points] == [
        "right_eye", "left_eye", "nose_tip", "mouth_centre", "right_ear_tragion", "left_ear_tragion",
    ]  # fmt: skip
    assert {(round(point.x, 4), round(point.y, 4)) for point in face.points} == {(0.4, 0.5)}


def test_faces_that_overlap_become_their_mean_weighted_by_score() -> None:
    one, other = (0.2, 0.2, 0.8, 0.6), (0.2, 0.3, 0.8, 0.7)
    (face,) = decode_known(LAYOUTS["blazeface"], [Known(one, 0, 0.9), Known(other, 0, 0.6)], [3, 5]).objects
    left = (0.9 * 0.2 + 0.6 * 0.3) / 1.5
    assert face.score == pytest.approx(0.9)
    assert face.box == pytest.approx((0.1, left, 0.9, left + 0.4), abs=1e-5)
    assert face.points[0].x == pytest.approx(left + 0.2, abs=1e-5)


# --- hostile outputs --------------------------------------------------------------------------------------------------
HOSTILE = st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e38, -1e38, 1e-38, 88.0, np.nan, np.inf, -np.inf])


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.large_base_example, HealthCheck.data_too_large])
def test_any_numbers_give_an_answer_of_sound_objects_or_none(name: str, data: st.DataObject) -> None:
    layout = LAYOUTS[name]
    outputs = layout.write([], [])
    for key, value in outputs.items():
        few = data.draw(arrays.arrays(np.float32, 97, elements=HOSTILE))
        outputs[key] = np.resize(few, value.shape)
    stage = layout.make_stage(score=data.draw(st.sampled_from([0.0, 0.5])), max_results=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = decode(stage, outputs, LETTERBOX, LABELS)
    assert isinstance(answer, DetectionAnswer)
    assert len(answer.objects) <= 20
    for found in answer.objects:
        top, left, bottom, right = found.box
        assert 0 <= top < bottom <= 1 and 0 <= left < right <= 1 and 0 <= found.score <= 1


SHAPES = [(), (1,), (1, 10), (2, 10, 10), (1, 4, 4), (1, 0, 4), (1, 4, 0), (1, 1, 1, 1), (1, 5, 9, 9, 9), (0, 10, 10)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_of_another_shape_are_refused_with_their_shapes(name: str, shape: tuple[int, ...]) -> None:
    layout = LAYOUTS[name]
    stage = layout.make_stage()
    for outputs in (
        {"a": np.zeros(shape, np.float32)},
        {key: np.zeros(shape, np.float32) for key in layout.write([], [])},
        {**layout.write([], []), "more": np.zeros(shape, np.float32)} if layout.family not in TWO_OUTPUTS else {},
        {},
    ):
        with pytest.raises(ModelUnsupported, match="found"):
            decode(stage, outputs, LETTERBOX, LABELS)


TWO_OUTPUTS = ("ultraface", "blazeface")


def test_a_parameter_that_says_something_else_is_refused() -> None:
    layout = LAYOUTS["yolov8 columns in pixels"]
    for wrong in ((("layout", "diagonal"),), (("layout", "columns"), ("units", "miles")), ()):
        stage = Layout("yolov8", layout.write, layout.places, parameters=wrong).make_stage()
        with pytest.raises(ModelUnsupported, match="found"):
            decode(stage, layout.write([Known((0.2, 0.2, 0.6, 0.6), 0, 0.9)], [0]), LETTERBOX, LABELS)


# --- suppression ------------------------------------------------------------------------------------------------------
@st.composite
def crowds(draw: st.DrawFn) -> list[Seen]:
    corner, side, classes = st.integers(0, 20), st.integers(1, 20), st.sampled_from("ab")
    made = []
    for number in range(draw(st.integers(1, 25))):
        top, left = draw(corner), draw(corner)
        box = (float(top), float(left), float(top + draw(side)), float(left + draw(side)))
        made.append(Seen(draw(classes), 1 - number / 100, box))
    return made


@given(crowd=crowds(), iou=st.sampled_from([0.0, 0.2973, 0.4571, 1.0]))
@settings(max_examples=150)
def test_suppression_keeps_what_plain_loops_keep(crowd: list[Seen], iou: float) -> None:
    boxes, classes = np.array([one.box for one in crowd]), np.array([ord(one.label) for one in crowd])
    assert [crowd[at] for at in suppress(boxes, classes, iou=iou, most=100)] == keep_best(crowd, iou)
    assert suppress(boxes, classes, iou=iou, most=1) == [0]
    overlaps = find_overlaps(boxes, iou=iou)
    assert all(
        overlaps[at, other] == (overlap(crowd[at].box, crowd[other].box) > iou)
        for at in range(len(crowd)) for other in range(len(crowd))
    )  # fmt: skip


def test_candidates_are_ranked_by_score_and_bounded() -> None:
    n = CANDIDATES_MAX + 50
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (n, 1))
    scores = np.linspace(0.2, 0.9, n)
    order = rank(boxes, scores, least=0.0)
    assert order.tolist() == list(range(n - 1, 49, -1))
    assert rank(boxes, np.full(n, 0.5), least=0.5).tolist() == list(range(CANDIDATES_MAX))
    assert rank(boxes, scores, least=0.95).size == 0


# --- what it costs ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["fastestdet", "yolox"])
def test_decoding_a_busy_picture_takes_a_small_part_of_a_model_of_ten_milliseconds(family: str) -> None:
    wide = 352 if family == "fastestdet" else 416
    outputs = make_busy_outputs(family)
    stage = Layout(family, LAYOUTS[family].write, 0, width=wide, height=wide).make_stage(score=0.5)
    taken = []
    for _ in range(8):
        started = time.thread_time()
        for _ in range(20):
            answer = decode(stage, outputs, LETTERBOX, LABELS)
        taken.append((time.thread_time() - started) / 20)
    assert isinstance(answer, DetectionAnswer)
    assert answer.objects
    assert min(taken) < 0.4e-3


def make_busy_outputs(family: str) -> dict[str, np.ndarray]:
    """80 classes; about 40 candidates reach the threshold."""
    dice = np.random.default_rng(7)
    if family == "fastestdet":
        grid = dice.normal(0, 1, (1, 85, 22, 22)).astype(np.float32)
        grid[0, 0], grid[0, 5:] = (
            dice.random((22, 22)) < 0.1,
            dice.dirichlet(np.ones(80) / 80, (22, 22)).transpose(2, 0, 1),
        )
        return {"758": grid}
    rows = dice.normal(0, 1, (1, 3549, 85)).astype(np.float32)
    rows[0, :, 4], rows[0, :, 5:] = dice.random(3549) < 0.01, dice.random((3549, 80))
    return {"output": rows}
