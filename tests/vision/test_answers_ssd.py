from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, Stage, Thresholds
from edgeferry.vision.answers.ssd import decode_ssd, find_roles
from edgeferry.vision.preprocess import Placement

LABELS = ("???", "person", "bicycle", "???", "cat")
WHOLE = Placement(0.0, 0.0, 1.0, 1.0, 640, 480)
ROLES = ("boxes", "classes", "scores", "count")


def make_stage(outputs: dict[str, str] | None = None, **thresholds: float) -> Stage:
    return Stage(
        file="m.tflite",
        task="detection",
        input=InputSpec(width=300, height=300, layout="nhwc", dtype="uint8"),
        answer=AnswerSpec(family="ssd", outputs=outputs or {}),
        labels=LabelSpec(offset=1),
        thresholds=Thresholds(**thresholds),
    )


def make_tensors() -> dict[str, np.ndarray]:
    """Three objects, then what lay in memory."""
    boxes = [[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0], [0.3, 0.3, 0.4, 0.4], [9.0, 9.0, 9.0, 9.0]]
    return {
        "boxes": np.array([boxes], np.float32),
        "classes": np.array([[3.0, 0.0, 1.0, 4.0]], np.float32),
        "scores": np.array([[0.9, 0.8, 0.2, 0.99]], np.float32),
        "count": np.array([3.0], np.float32),
    }


@pytest.mark.parametrize(
    "names",
    [
        dict(zip(ROLES, ["TFLite_Detection_PostProcess" + tail for tail in ("", ":1", ":2", ":3")], strict=True)),
        dict(zip(ROLES, ["location", "category", "score", "number of detections"], strict=True)),
        dict(zip(ROLES, ["detection_boxes", "detection_classes", "detection_scores", "num"], strict=True)),
        dict(zip(ROLES, ["StatefulPartitionedCall:3", "StatefulPartitionedCall:0", "a", "b"], strict=True)),
    ],
)
@pytest.mark.parametrize("order", list(permutations(ROLES)))
def test_roles_are_found_in_every_order(names: dict[str, str], order: tuple[str, ...]) -> None:
    tensors = make_tensors()
    outputs = {names[role]: tensors[role] for role in order}
    answer = decode_ssd(make_stage(), outputs, WHOLE, LABELS)
    assert [(found.label, round(found.score, 2)) for found in answer.objects] == [("cat", 0.9), ("person", 0.8)]
    assert answer.objects[0].box == pytest.approx((0.1, 0.2, 0.5, 0.6))


@given(
    order=st.permutations(ROLES),
    scores=st.lists(st.floats(0.0078125, 0.9921875, width=32), min_size=1, max_size=20),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_roles_without_names_are_found_by_shape_and_values(
    order: list[str], scores: list[float], data: st.DataObject
) -> None:
    n = len(scores)
    classes = data.draw(st.lists(st.integers(0, 90), min_size=n, max_size=n))
    tensors = {
        "boxes": np.full((1, n, 4), 0.5, np.float32),
        "classes": np.array([classes], np.float32),
        "scores": np.array([sorted(scores, reverse=True)], np.float32),
        "count": np.array([n], np.float32),
    }
    outputs = {f"output_{place}": tensors[role] for place, role in enumerate(order)}
    roles = find_roles(outputs, {})
    assert all(roles[role] is tensors[role] for role in ROLES)


def test_rows_that_could_be_either_are_told_apart_by_falling_scores() -> None:
    tensors = make_tensors() | {
        "classes": np.array([[0.0, 1.0, 0.0, 1.0]], np.float32),
        "scores": np.array([[1.0, 1.0, 0.0, 0.0]], np.float32),
    }
    for order in permutations(ROLES):
        roles = find_roles({f"t{place}": tensors[role] for place, role in enumerate(order)}, {})
        assert roles["scores"] is tensors["scores"]


def test_declared_outputs_win_over_all_guessing() -> None:
    tensors = make_tensors()
    outputs = {"scores": tensors["classes"], "classes": tensors["scores"], "b": tensors["boxes"], "n": tensors["count"]}
    declared = {"boxes": "b", "classes": "scores", "scores": "classes", "count": "n"}
    answer = decode_ssd(make_stage(declared), outputs, WHOLE, LABELS)
    assert [found.label for found in answer.objects] == ["cat", "person"]
    assert find_roles(outputs, {"classes": "scores"})["scores"] is tensors["scores"]


def test_one_box_at_most_is_no_puzzle() -> None:
    outputs = {
        "a": np.array([[0.7]], np.float32),
        "b": np.array([1.0], np.float32),
        "c": np.array([[3.0]], np.float32),
        "d": np.array([[[0.0, 0.0, 1.0, 1.0]]], np.float32),
    }
    answer = decode_ssd(make_stage(), outputs, WHOLE, LABELS)
    assert [(found.label, round(found.score, 2)) for found in answer.objects] == [("cat", 0.7)]


def test_a_model_without_a_count_answers_all_rows() -> None:
    outputs = {name: tensor for name, tensor in make_tensors().items() if name != "count"}
    outputs["boxes"][0, 3] = (0.0, 0.0, 0.1, 0.1)
    answer = decode_ssd(make_stage(), outputs, WHOLE, LABELS)
    assert [found.label for found in answer.objects] == ["4", "cat", "person"]


@pytest.mark.parametrize("count", [np.nan, -1.0, 0.0, np.inf, 1e9])
def test_a_senseless_count_is_no_crash(count: float) -> None:
    outputs = make_tensors() | {"count": np.array([count], np.float32)}
    answer = decode_ssd(make_stage(), outputs, WHOLE, LABELS)
    assert len(answer.objects) == (2 if count == 1e9 else 0)


def test_boxes_are_clipped_and_what_is_no_box_is_dropped() -> None:
    outputs = make_tensors()
    outputs["boxes"][0, 0] = (-0.2, 0.5, 1.3, 0.9)
    outputs["boxes"][0, 1] = (np.nan, 0.0, 1.0, 1.0)
    answer = decode_ssd(make_stage(), outputs, WHOLE, LABELS)
    assert [found.box for found in answer.objects] == [pytest.approx((0.0, 0.5, 1.0, 0.9))]
    outputs["boxes"][0, 0] = (0.5, 0.5, 0.5, 0.9)
    assert decode_ssd(make_stage(), outputs, WHOLE, LABELS).objects == ()


def test_thresholds_and_the_most_results_hold() -> None:
    outputs = make_tensors()
    assert len(decode_ssd(make_stage(score=0.1), outputs, WHOLE, LABELS).objects) == 3
    assert len(decode_ssd(make_stage(score=0.85), outputs, WHOLE, LABELS).objects) == 1
    best = decode_ssd(make_stage(score=0.1, max_results=1), outputs, WHOLE, LABELS).objects
    assert [found.label for found in best] == ["cat"]


def test_boxes_are_mapped_out_of_a_letterbox() -> None:
    outputs = make_tensors()
    outputs["boxes"][0, 0] = (0.25, 0.0, 0.75, 1.0)
    placed = Placement(0.0, 0.25, 1.0, 0.5, 640, 320)
    assert decode_ssd(make_stage(), outputs, placed, LABELS).objects[0].box == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "shapes",
    [
        {"a": (1, 10, 85)},
        {"a": (1, 10, 4), "b": (1, 10, 4)},
        {"a": (1, 10, 4), "b": (1, 10)},
        {"a": (1, 10, 4), "b": (1, 10), "c": (1, 10), "d": (1, 10), "e": (1,)},
        {},
    ],
)
def test_outputs_of_another_family_are_refused_with_their_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    outputs = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    with pytest.raises(ModelUnsupported, match="found"):
        decode_ssd(make_stage(), outputs, WHOLE, LABELS)
