"""Classification, Tiny YOLOv3, our own detector, and the table of families."""

from __future__ import annotations

import numpy as np
import pytest

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, Parameter, Stage, Thresholds
from edgeferry.vision.answer import ClassificationAnswer, DetectionAnswer
from edgeferry.vision.answers.table import FAMILIES, decode
from edgeferry.vision.preprocess import Placement

WHOLE = Placement(0.0, 0.0, 1.0, 1.0, 200, 100)
HALF = Thresholds()
LABELS = ("low", "normal", "high")


def make_stage(
    family: str,
    *,
    offset: int = 0,
    outputs: dict[str, str] | None = None,
    thresholds: Thresholds = HALF,
    **parameters: Parameter,
) -> Stage:
    return Stage(
        file="m.onnx",
        task="detection",
        input=InputSpec(width=8, height=8, layout="nchw", dtype="float32"),
        answer=AnswerSpec(family=family, parameters=parameters, outputs=outputs or {}),
        labels=LabelSpec(offset=offset),
        thresholds=thresholds,
    )


def classify(values: list[float] | np.ndarray, **options: object) -> list[tuple[str, float]]:
    row = np.asarray(values, np.float32)
    outputs = {"out": row if row.ndim > 1 else row[None]}
    answer = decode(make_stage("classification", **options), outputs, WHOLE, LABELS)
    assert isinstance(answer, ClassificationAnswer)
    return [(one.label, round(one.score, 3)) for one in answer.classes]


ALL = Thresholds(score=0.0)


def test_probabilities_are_answered_as_they_are() -> None:
    assert classify([0.2, 0.7, 0.1], thresholds=ALL) == [("normal", 0.7), ("low", 0.2), ("high", 0.1)]
    assert classify([0.0, 0.6, 0.0]) == [("normal", 0.6)]  # quantised: the small ones have rounded to 0


def test_logits_go_through_softmax() -> None:
    assert classify([1.0, 3.0, -2.0], thresholds=ALL) == [("normal", 0.876), ("low", 0.118), ("high", 0.006)]
    assert classify([1000.0, -1000.0, 0.0]) == [("low", 1.0)]


def test_the_declared_activation_wins() -> None:
    assert classify([0.2, 0.7, 0.1], activation="softmax", thresholds=ALL)[0] == ("normal", 0.464)
    assert classify([5.0, 5.0, -5.0], activation="sigmoid") == [("low", 0.993), ("normal", 0.993)]
    assert classify([0.9, 0.8, 0.1], activation="none") == [("low", 0.9), ("normal", 0.8)]
    with pytest.raises(ModelUnsupported, match="activation"):
        classify([0.2, 0.7, 0.1], activation="magic")


def test_classes_below_the_threshold_are_not_answered() -> None:
    assert classify([0.2, 0.7, 0.1]) == [("normal", 0.7)]
    assert classify([0.4, 0.3, 0.3]) == []
    assert classify([0.2, 0.7, 0.1], thresholds=Thresholds(score=0.0, max_results=2)) == [("normal", 0.7), ("low", 0.2)]


def test_the_label_offset_moves_the_line_and_a_missing_line_gives_the_number() -> None:
    assert classify([0.9, 0.1, 0.0], offset=1) == [("normal", 0.9)]
    assert classify([0.0, 0.0, 1.0], offset=1) == [("2", 1.0)]


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 1, 1, 3), (1, 3, 1, 1)])
def test_a_row_of_scores_may_have_axes_of_one(shape: tuple[int, ...]) -> None:
    outputs = {"out": np.array([0.1, 0.8, 0.1], np.float32).reshape(shape)}
    answer = decode(make_stage("classification"), outputs, WHOLE, LABELS)
    assert isinstance(answer, ClassificationAnswer)
    assert answer.classes[0].label == "normal"


def test_scores_that_are_no_numbers_are_nothing() -> None:
    assert classify([np.nan, 0.9, np.inf], activation="none", thresholds=Thresholds()) == [("normal", 0.9)]


def test_two_outputs_need_a_name() -> None:
    outputs = {"features": np.zeros((1, 9), np.float32), "probs": np.array([[0.1, 0.9]], np.float32)}
    with pytest.raises(ModelUnsupported, match="features"):
        decode(make_stage("classification"), outputs, WHOLE, LABELS)
    answer = decode(make_stage("classification", outputs={"scores": "probs"}), outputs, WHOLE, LABELS)
    assert isinstance(answer, ClassificationAnswer)
    assert answer.classes[0].label == "normal"


def detect(stage: Stage, outputs: dict[str, np.ndarray], placement: Placement = WHOLE) -> list[tuple[str, float]]:
    answer = decode(stage, outputs, placement, LABELS)
    assert isinstance(answer, DetectionAnswer)
    return [(found.label, round(found.score, 3)) for found in answer.objects]


def make_yolo(indices: list[list[int]], *, boxes: int = 5) -> dict[str, np.ndarray]:
    scores = np.zeros((1, 3, boxes), np.float32)
    scores[0, 2, 1], scores[0, 0, 3] = 0.6, 0.9
    places = np.zeros((1, boxes, 4), np.float32)
    places[0, 1], places[0, 3] = (10, 20, 50, 60), (0, 0, 100, 200)
    return {"yolo": places, "yolo:1": scores, "yolo:2": np.array(indices, np.int32).reshape(-1, 3)}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_tiny_yolov3_indices_point_into_boxes_and_scores(batched: bool, turned: bool) -> None:
    outputs = make_yolo([[0, 2, 1], [0, 0, 3]])
    if batched:
        outputs["yolo:2"] = outputs["yolo:2"][None]
    if turned:
        outputs = dict(reversed(outputs.items()))
    answer = decode(make_stage("tiny_yolov3"), outputs, WHOLE, LABELS)
    assert isinstance(answer, DetectionAnswer)
    assert [(found.label, round(found.score, 2), found.box) for found in answer.objects] == [
        ("low", 0.9, (0.0, 0.0, 1.0, 1.0)),
        ("high", 0.6, pytest.approx((0.1, 0.1, 0.5, 0.3))),
    ]


def test_tiny_yolov3_finds_nothing_in_no_indices_and_drops_those_that_point_outside() -> None:
    stage = make_stage("tiny_yolov3")
    assert detect(stage, make_yolo([])) == []
    assert detect(stage, make_yolo([[-1, -1, -1], [0, 3, 0], [0, 0, 5], [0, 0, 3]])) == [("low", 0.9)]


def test_tiny_yolov3_with_four_boxes_takes_them_in_the_published_order_or_as_declared() -> None:
    outputs = make_yolo([[0, 0, 3]], boxes=4)
    outputs["yolo:1"] = np.concatenate([outputs["yolo:1"], np.zeros((1, 1, 4), np.float32)], axis=1)
    assert detect(make_stage("tiny_yolov3"), outputs) == [("low", 0.9)]
    names = {"boxes": "yolo", "scores": "yolo:1", "indices": "yolo:2"}
    turned = dict(reversed(outputs.items()))
    assert detect(make_stage("tiny_yolov3", outputs=names), turned) == [("low", 0.9)]


def test_tiny_yolov3_refuses_other_outputs() -> None:
    outputs = make_yolo([])
    for name in outputs:
        rest = {other: value for other, value in outputs.items() if other != name}
        with pytest.raises(ModelUnsupported, match="indices"):
            detect(make_stage("tiny_yolov3"), rest)


@pytest.mark.parametrize("name", ["yolo", "yolo:1"])
def test_tiny_yolov3_refuses_outputs_of_no_picture(name: str) -> None:
    outputs = make_yolo([[0, 0, 3]])
    outputs[name] = outputs[name][:0]
    with pytest.raises(ModelUnsupported, match="indices"):
        detect(make_stage("tiny_yolov3"), outputs)


def make_ef(n: int = 2) -> dict[str, np.ndarray]:
    boxes = np.array([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0]], np.float32)
    return {
        "boxes": boxes[:n],
        "scores": np.array([0.9, 0.6], np.float32)[:n],
        "classes": np.array([2, 0], np.int64)[:n],
    }


def test_our_detector_is_read_by_name_or_by_shape() -> None:
    stage = make_stage("ef_detector")
    assert detect(stage, make_ef()) == [("high", 0.9), ("low", 0.6)]
    unnamed = {f"o{place}": value for place, value in enumerate(reversed(make_ef().values()))}
    assert detect(stage, unnamed) == [("high", 0.9), ("low", 0.6)]
    assert detect(stage, make_ef(0)) == []


def test_our_detector_refuses_rows_that_do_not_belong_together() -> None:
    for name, wrong in [("boxes", (2, 5)), ("scores", (3,)), ("classes", (1, 2))]:
        outputs = make_ef() | {name: np.zeros(wrong, np.float32)}
        with pytest.raises(ModelUnsupported, match="classes"):
            detect(make_stage("ef_detector"), outputs)


def test_an_unknown_family_is_refused_naming_those_there_are() -> None:
    with pytest.raises(ModelUnsupported, match="tiny_yolov3") as caught:
        decode(make_stage("magic"), {}, WHOLE, LABELS)
    assert "magic" in caught.value.message
    assert {"classification", "ssd", "tiny_yolov3", "ef_detector", "yolox", "fastestdet"} <= set(FAMILIES)
