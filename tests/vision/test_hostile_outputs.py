"""Whatever shapes, types and numbers come out of a model: each family answers what can travel, or refuses by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import AnswerSpec, InputSpec, Layout, Stage, Thresholds
from edgeferry.vision.answers.table import FAMILIES, decode
from edgeferry.vision.preprocess import Placement
from edgeferry.vision.steps import pick_numbers

SIDE = 32
PICTURE = np.zeros((20, 40, 3), np.uint8)
PLACEMENTS = (
    Placement(0.0, 0.0, 1.0, 1.0, 40, 20, PICTURE),
    Placement(0.0, 0.25, 1.0, 0.5, 40, 20, PICTURE),
    Placement(-0.5, 0.0, 2.0, 1.0, 40, 20, PICTURE),
)
OUTPUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "classification": {"scores": (1, 5)},
    "ssd": {"boxes": (1, 5, 4), "classes": (1, 5), "scores": (1, 5), "count": (1,)},
    "tiny_yolov3": {"boxes": (1, 5, 4), "scores": (1, 3, 5), "indices": (2, 3)},
    "yolov5": {"rows": (1, 9, 7)},
    "yolov8": {"table": (1, 6, 21)},
    "yolox": {"rows": (1, 21, 7)},
    "fastestdet": {"grid": (1, 7, 2, 2)},
    "ultraface": {"scores": (1, 5, 2), "boxes": (1, 5, 4)},
    "blazeface": {"boxes": (1, 56, 16), "scores": (1, 56, 1)},
    "ef_detector": {"boxes": (5, 4), "scores": (5,), "classes": (5,)},
    "palm": {"boxes": (1, 56, 18), "scores": (1, 56, 1)},
    "hand_landmarks": {"points": (1, 63), "presence": (1, 1), "side": (1, 1)},
    "gesture": {"scores": (1, 4)},
    "movenet": {"joints": (1, 3, 56)},
    "face_landmarks": {"points": (1, 1404), "presence": (1, 1)},
    "class_map": {"classes": (1, 8, 8, 3)},
    "probability_mask": {"mask": (1, 8, 8, 1)},
    "super_resolution": {"luma": (1, 1, 64, 64)},
    "tensors": {},
}
"""Family -> the outputs that it reads, by role, for an input of SIDE x SIDE."""
DTYPES = ("float32", "float16", "float64", "int64", "uint64", "int8", "uint8", "bool")
NUMBERS = (0.0, 0.5, 1.0, 3.0, -1.0, 88.0, 1e38, -1e38, 1e300, -1e300, 2.0**63, math.nan, math.inf, -math.inf)


@st.composite
def shapes(draw: st.DrawFn, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that is wanted, or one that is nearly it."""
    near = [wanted, wanted, wanted, (), (*wanted, 1), (1, *wanted), wanted[1:], wanted[::-1]]
    near += [(*wanted[:at], side, *wanted[at + 1 :]) for at in range(len(wanted)) for side in (0, 1, 2, 4)]
    return draw(st.sampled_from(near))


@st.composite
def tensors(draw: st.DrawFn, wanted: tuple[int, ...]) -> np.ndarray:
    few = draw(st.lists(st.sampled_from(NUMBERS) | st.floats(0, 1), min_size=1, max_size=40))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.resize(np.array(few).astype(draw(st.sampled_from(DTYPES))), draw(shapes(wanted)))


@st.composite
def stages(draw: st.DrawFn, family: str) -> Stage:
    layout: Layout = draw(st.sampled_from(["nchw", "nhwc"]))
    roles = {role: draw(st.sampled_from([role, "elsewhere"])) for role in OUTPUTS[family] if draw(st.booleans())}
    own = {"yolov8": draw(st.sampled_from(["columns", "rows", "suppressed"])), "class_map": layout}
    return Stage(
        file="m.onnx",
        task=draw(st.sampled_from(["detection", "image"])),
        input=InputSpec(width=SIDE, height=SIDE, layout=layout, dtype="float32"),
        answer=AnswerSpec(family=family, outputs=roles, parameters={"layout": own[family]} if family in own else {}),
        thresholds=Thresholds(score=draw(st.sampled_from([0.0, 0.5])), max_results=draw(st.sampled_from([1, 10_000]))),
    )


def list_numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from list_numbers(each)
    elif isinstance(value, (int, float)):
        yield value


def test_every_family_is_among_them() -> None:
    assert set(OUTPUTS) == set(FAMILIES)


@pytest.mark.parametrize("family", OUTPUTS)
@given(data=st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.large_base_example])
def test_an_answer_can_travel_or_the_outputs_are_refused(family: str, data: st.DataObject) -> None:
    outputs = {role: data.draw(tensors(shape)) for role, shape in OUTPUTS[family].items()}
    placement = data.draw(st.sampled_from(PLACEMENTS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            answer = decode(data.draw(stages(family)), pick_numbers(outputs), placement, ("a", "b"))
        except ModelUnsupported as error:
            assert "found" in error.message
            return
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=type(answer)) == answer
    assert all(math.isfinite(number) for number in list_numbers(msgspec.to_builtins(answer)))


@pytest.mark.parametrize("number", [-1.0, 2.0**31, 1e30])
def test_what_is_of_no_class_is_no_object(number: float) -> None:
    rows = np.array([[[2, 2, 9, 9, 0.9, number], [2, 2, 9, 9, 0.8, 1.0]]], np.float32)
    spec = InputSpec(width=SIDE, height=SIDE, layout="nchw", dtype="float32")
    family = AnswerSpec(family="yolov8", parameters={"layout": "suppressed"})
    stage = Stage(file="m.onnx", task="detection", input=spec, answer=family)
    answer = decode(stage, {"output0": rows}, PLACEMENTS[0], ("a", "b"))
    assert [found["class_index"] for found in msgspec.to_builtins(answer)["objects"]] == [1]


def test_texts_are_left_out_and_truths_are_0_and_1() -> None:
    outputs = {"texts": np.array(["cat"], object), "truths": np.array([True, False]), "scores": np.array([0.5])}
    numbers = pick_numbers(outputs)
    assert list(numbers) == ["truths", "scores"]
    assert numbers["truths"].tolist() == [1, 0]
    assert numbers["scores"] is outputs["scores"]
