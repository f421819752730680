"""Poses, face meshes, masks and super-resolution: recognised where the file tells, and only there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper

from edgeferry.model.families.table import draft_stage
from edgeferry.model.inspect import inspect_model, make_spec
from edgeferry.model.inspect_onnx import inspect_onnx

Maker = Callable[..., bytes]
FLOAT = TensorProto.FLOAT
PHOTO = ("image", FLOAT, (1, 3, 64, 48))
GREY = ("image", FLOAT, (1, 1, 32, 32))


@pytest.fixture
def draft(make_onnx: Maker) -> Callable[..., Any]:
    """draft(input, operators, *shapes of outputs, labels=) -> the Draft of an ONNX file of those operators in a row."""

    def make(
        picture: tuple[str, int, Sequence[Any]], operators: str, *shapes: Sequence[Any], labels: Sequence[str] = ()
    ) -> Any:
        outputs = [(f"out{i}", FLOAT, shape) for i, shape in enumerate(shapes)]
        *before, last = operators.split()
        tensors = ["image", *(f"x{i}" for i in range(len(before)))]
        nodes = [helper.make_node(kind, [tensors[i]], [tensors[i + 1]]) for i, kind in enumerate(before)]
        nodes += [helper.make_node(last, [tensors[-1]], [name]) for name, _, _ in outputs]
        return draft_stage(inspect_onnx(memoryview(make_onnx([picture], outputs, nodes=nodes))), labels)

    return make


def name_family(draft: Any) -> str:
    return str(draft.answer.get("family", ""))


@pytest.mark.parametrize("shape", [(1, 1, 17, 3), (1, 6, 56), (1, None, 56)])
def test_movenet_is_told_by_its_output_and_needs_nothing(draft: Any, shape: Sequence[Any]) -> None:
    made = draft(PHOTO, "Concat", shape)
    assert (made.stage["task"], name_family(made), made.missing) == ("pose", "movenet", {})
    assert (made.input["fit"], made.input["mean"], made.thresholds["score"], made.names) == (
        "letterbox", [0.0], 0.3, ("person",),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1, 21, 3), (1, 17, 3), (2, 1, 17, 3), (1, 8400, 56), (2, 6, 56)])
def test_other_points_are_not_taken_for_movenet(draft: Any, shape: Sequence[Any]) -> None:
    assert name_family(draft(PHOTO, "Concat", shape)) != "movenet"


def test_a_face_mesh_is_told_by_its_two_outputs_and_its_activation_by_the_graph(draft: Any) -> None:
    made = draft(PHOTO, "Conv", (1, 1404), (1, 1))
    assert (made.stage["task"], name_family(made), made.names) == ("landmarks", "face_landmarks", ("face",))
    assert made.answer["parameters"] == {"activation": "sigmoid"}
    assert made.answer["outputs"] == {"points": "out0", "presence": "out1"}
    assert made.missing == {}
    assert draft(PHOTO, "Sigmoid", (1, 1), (None, 1, 1, 1404)).answer["parameters"] == {"activation": "none"}
    assert name_family(draft(PHOTO, "Conv", (1, 1404))) != "face_landmarks"
    assert name_family(draft(PHOTO, "Conv", (1, 1404), (1, 2))) != "face_landmarks"


NAMES = ("background", "cat", "dog")


@pytest.mark.parametrize(
    ("operator", "shape", "labels", "family"),
    [
        ("ArgMax", (1, 64, 48), (), "class_map"),
        ("ArgMax", (1, 1, 64, 48), (), "class_map"),
        ("Softmax", (1, 3, 64, 48), (), "class_map"),
        ("Resize", (1, 3, 64, 48), NAMES, "class_map"),
        ("Resize", (1, 2, 64, 48), NAMES, "class_map"),
        ("Sigmoid", (1, 1, 64, 48), (), "probability_mask"),
        ("Resize", (1, 3, 64, 48), (), ""),  # it might be a picture
        ("Resize", (1, 5, 64, 48), NAMES, ""),
        ("Resize", (1, 1, 64, 48), (), ""),  # it might be a depth
        ("Softmax", (1, 3, 32, 24), (), ""),  # it might be the grid of a detector
        ("Add", (1, 64, 48), (), ""),
    ],
)
def test_masks_are_told_by_their_size_and_their_last_operator_or_labels(
    draft: Any, operator: str, shape: Sequence[Any], labels: Sequence[str], family: str
) -> None:
    made = draft(PHOTO, operator, shape, labels=labels)
    assert name_family(made) == family
    assert set(made.missing) >= {"input.mean", "input.std", "input.fit"}
    assert ("task" in made.missing) == (not family)


def test_of_a_grey_picture_a_sigmoid_in_its_size_may_as_well_be_that_picture_made_anew(draft: Any) -> None:
    assert name_family(draft(GREY, "Sigmoid", (1, 1, 32, 32))) == ""


def test_scores_with_their_axes_the_other_way_round_say_so(draft: Any) -> None:
    assert draft(PHOTO, "Softmax", (1, 64, 48, 3)).answer == {
        "family": "class_map", "parameters": {"layout": "nhwc"},
    }  # fmt: skip
    assert draft(PHOTO, "Softmax", (1, 3, 64, 48)).answer == {"family": "class_map"}


@pytest.mark.parametrize(
    ("labels", "offset", "asked"),
    [(NAMES, 0, False), (("???", *NAMES), 1, False), (NAMES[:2], 0, True), ((), 0, False)],
)
def test_the_first_label_of_a_mask_is_its_class_0(
    draft: Any, labels: tuple[str, ...], offset: int, asked: bool
) -> None:
    made = draft(PHOTO, "Softmax", (1, 3, 64, 48), labels=labels)
    assert (made.offset, "labels.offset" in made.missing) == (offset, asked)


@pytest.mark.parametrize(
    ("picture", "operator", "shape", "found"),
    [
        (GREY, "DepthToSpace", (1, 1, 96, 96), True),
        (GREY, "Reshape Transpose Reshape", (None, None, None, None), True),
        (GREY, "Transpose", (None, None, None, None), False),  # it may only change the order of axes
        (GREY, "Reshape Transpose", (None, None, None, None), False),
        (GREY, "DepthToSpace", (1, 1, 32, 32), False),
        (GREY, "DepthToSpace", (1, 3, 96, 96), False),
        (GREY, "Resize", (1, 1, 96, 96), False),
        (PHOTO, "DepthToSpace", (1, 1, 128, 96), False),
    ],
)
def test_super_resolution_is_told_by_a_grey_picture_that_a_pixel_shuffle_enlarges(
    draft: Any, picture: Any, operator: str, shape: Sequence[Any], found: bool
) -> None:
    made = draft(picture, operator, shape)
    assert (name_family(made) == "super_resolution") == found
    if found:
        assert (made.stage["task"], made.input["fit"], made.missing) == ("image", "letterbox_edge", {})
        assert made.input["resample"] == "bicubic"


def test_the_only_class_is_named_by_the_operator_first(make_litert: Maker) -> None:
    data = make_litert(
        [("image", schema.TensorType.UINT8, (1, 8, 8, 3))], [("joints", schema.TensorType.FLOAT32, (1, 1, 17, 3))]
    )
    inspection = inspect_model("m.tflite", data)
    assert make_spec(inspection).stages[0].labels.names == ("person",)
    said = make_spec(inspection, overrides={"labels": {"names": ["worker"]}})
    assert said.stages[0].labels.names == ("worker",)
    filed = make_spec(inspection, labels=("worker",), labels_file="labels.txt").stages[0].labels
    assert (filed.names, filed.file) == ((), "labels.txt")


def test_hand_landmarks_alone_keep_the_shape_of_the_picture(make_litert: Maker) -> None:
    kind = schema.TensorType.FLOAT32
    outputs = [(f"out{at}", kind, (1, numbers)) for at, numbers in enumerate((63, 1, 1, 63))]
    (stage,) = make_spec(inspect_model("m.tflite", make_litert([("image", kind, (1, 224, 224, 3))], outputs))).stages
    assert stage.input is not None
    assert (stage.input.fit, stage.input.std, stage.labels.names) == (
        "letterbox",
        (255.0,),
        ("left hand", "right hand"),
    )


@pytest.mark.parametrize(("quant", "missing"), [((0.5, -3), ""), (None, "input.quant_scale")])
def test_an_int8_picture_of_any_family_is_quantised_as_its_tensor_says(
    make_litert: Maker, quant: tuple[float, int] | None, missing: str
) -> None:
    kind = schema.TensorType
    data = make_litert([("image", kind.INT8, (1, 8, 8, 3))], [("joints", kind.FLOAT32, (1, 1, 17, 3))], quant=quant)
    inspection = inspect_model("m.tflite", data)
    assert ", ".join(inspection.missing) == missing
    if quant is not None:
        (stage,) = make_spec(inspection).stages
        assert stage.input is not None
        assert (stage.input.quant_scale, stage.input.quant_zero) == quant


def test_every_convention_stands_in_the_notes(draft: Any) -> None:
    for made in (
        draft(PHOTO, "Concat", (1, 1, 17, 3)),
        draft(PHOTO, "Conv", (1, 1404), (1, 1)),
        draft(GREY, "DepthToSpace", (1, 1, 96, 96)),
    ):
        assert any(note.startswith("recognised") for note in made.notes)
        assert any("labels.names" in note for note in made.notes)
