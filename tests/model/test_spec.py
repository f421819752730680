from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import ManifestInvalid, SpecIncomplete
from edgeferry.model.spec import (
    AnswerSpec,
    InputSpec,
    LabelSpec,
    ModelSpec,
    Stage,
    Thresholds,
    check_spec,
    read_spec_toml,
)

INPUT = InputSpec(width=300, height=200, layout="nhwc", dtype="uint8")
STAGE = Stage(file="m.tflite", task="detection", input=INPUT, answer=AnswerSpec(family="ssd"))

_share = st.floats(0, 1)
_inputs = st.builds(
    InputSpec,
    width=st.integers(1, 16_384),
    height=st.integers(1, 16_384),
    layout=st.sampled_from(["nhwc", "nchw"]),
    colour=st.sampled_from(["rgb", "bgr", "grey"]),
    dtype=st.sampled_from(["uint8", "int8", "float16", "float32"]),
    mean=st.tuples(st.floats(-300, 300)),
    std=st.tuples(st.floats(0.1, 300)),
    quant_scale=st.floats(0, 1),
    quant_zero=st.integers(-128, 255),
    fit=st.sampled_from(["stretch", "letterbox", "letterbox_top_left", "letterbox_edge", "crop"]),
    pad=st.integers(0, 255),
    tensor=st.text(max_size=8),
)
_parameters = st.one_of(st.text(max_size=8), st.booleans(), st.integers(-9, 9), st.tuples(st.floats(-9, 9)))
_answers = st.builds(
    AnswerSpec, family=st.text(max_size=8), parameters=st.dictionaries(st.text(max_size=4), _parameters, max_size=3)
)
_stages = st.builds(
    Stage,
    file=st.text(max_size=8),
    task=st.sampled_from(["classification", "detection", "pose"]),
    input=_inputs,
    answer=_answers,
    thresholds=st.builds(Thresholds, score=_share, iou=_share, max_results=st.integers(1, 10_000)),
)


@settings(max_examples=50)
@given(st.lists(_stages, min_size=1, max_size=3))
def test_a_spec_comes_back_from_json(stages: list[Stage]) -> None:
    spec = ModelSpec(stages=tuple(stages))
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ModelSpec) == spec
    assert check_spec(spec) is spec


def _with_input(**changes: object) -> ModelSpec:
    return ModelSpec(stages=(msgspec.structs.replace(STAGE, input=msgspec.structs.replace(INPUT, **changes)),))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"width": 0}, "sides"), ({"height": -1}, "sides"), ({"width": 16_385}, "sides"),
        ({"mean": (0.0, 0.0)}, "mean"), ({"std": (1.0,) * 4}, "std"), ({"std": (1.0, 0.0, 1.0)}, "zeros"),
        ({"mean": (math.nan,)}, "finite"), ({"std": (math.inf,)}, "finite"), ({"quant_scale": math.nan}, "finite"),
        ({"quant_scale": -1.0}, "below 0"), ({"quant_zero": 256}, "quant_zero"), ({"quant_zero": -129}, "quant_zero"),
        ({"resize_to": -1}, "resize_to"), ({"resize_to": 16_385}, "resize_to"),
        ({"pad": 256}, "pad"), ({"colour": "grey", "mean": (0.0, 0.0, 0.0)}, "mean"),
    ],
)  # fmt: skip
def test_an_input_that_makes_no_sense_is_refused_by_name(changes: dict[str, object], name: str) -> None:
    with pytest.raises(ManifestInvalid, match=name):
        check_spec(_with_input(**changes))


@pytest.mark.parametrize("offset", [100_001, -100_001])
def test_an_offset_beyond_all_labels_is_refused(offset: int) -> None:
    with pytest.raises(ManifestInvalid, match=r"labels\.offset"):
        check_spec(ModelSpec(stages=(msgspec.structs.replace(STAGE, labels=LabelSpec(offset=offset)),)))


@pytest.mark.parametrize(
    "thresholds",
    [{"score": 1.1}, {"score": float("nan")}, {"iou": -0.1}, {"max_results": 0}, {"max_results": 10_001}],
)
def test_thresholds_outside_their_range_are_refused(thresholds: dict[str, float]) -> None:
    with pytest.raises(ManifestInvalid):
        check_spec(ModelSpec(stages=(msgspec.structs.replace(STAGE, thresholds=Thresholds(**thresholds)),)))


def test_a_spec_without_stages_is_refused() -> None:
    with pytest.raises(ManifestInvalid, match="stage"):
        check_spec(ModelSpec(stages=()))


def test_an_unknown_field_is_refused() -> None:
    plain = msgspec.to_builtins(STAGE) | {"sensitivity": 0.5}
    with pytest.raises(msgspec.ValidationError, match="sensitivity"):
        msgspec.convert(plain, Stage)


def test_a_spec_file_is_toml() -> None:
    assert read_spec_toml('task = "detection"\n[input]\nwidth = 8') == {"task": "detection", "input": {"width": 8}}


@pytest.mark.parametrize("text", ["task = ", "[input", "a = 1\na = 2", "\x00", "x = " + "[" * 5_000])
def test_a_spec_file_that_is_no_toml_is_refused(text: str) -> None:
    with pytest.raises(SpecIncomplete, match="TOML"):
        read_spec_toml(text)


def test_the_answer_is_called_as_the_last_stage_that_sees_a_picture_calls_it() -> None:
    first, added = STAGE, msgspec.structs.replace(STAGE, file="points.tflite", input=None)
    assert ModelSpec(stages=(first,)).get_answering() is first
    assert ModelSpec(stages=(added, first, added)).get_answering() is first
    assert ModelSpec(stages=(added,)).get_answering() is added
