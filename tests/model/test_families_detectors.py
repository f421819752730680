"""Detectors recognised from the file: what tells them, what is only like them, and the labels of Ultralytics."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeferry.errors import ModelUnreadable, SpecIncomplete
from edgeferry.model.families.ultralytics import find_names
from edgeferry.model.inspect import Inspection, inspect_model, make_spec
from edgeferry.model.spec import LabelSpec, Stage, Thresholds
from edgeferry.model.stage_labels import load_labels

Maker = Callable[..., bytes]
FLOAT = TensorProto.FLOAT
NAMES = "{0: 'person', 1: \"driver's cab\", 2: 'fire'}"
PEOPLE = ("person", "driver's cab", "fire")
DETECT = {"task": "detect", "names": NAMES, "stride": "32", "imgsz": "[640, 640]", "batch": "1"}
CELLS = 8400
"""Of strides 8, 16 and 32 in 640 x 640."""

Shape = Sequence[int | str | None]


def make(
    make_onnx: Maker,
    output: Shape | dict[str, Shape],
    *,
    picture: Shape = (1, 3, 640, 640),
    names: tuple[str, str] = ("images", "output0"),
    operators: Sequence[str] = ("Sigmoid",),
    properties: dict[str, str] | None = None,
) -> Inspection:
    """A detector as its file looks; the last operator writes the outputs."""
    outputs = output if isinstance(output, dict) else {names[1]: output}
    chain = [helper.make_node(kind, [names[0]], [f"x{place}"]) for place, kind in enumerate(operators[:-1])]
    nodes: list[onnx.NodeProto] = [*chain, helper.make_node(operators[-1], [names[0]], list(outputs))]
    tensors = [(name, FLOAT, shape) for name, shape in outputs.items()]
    data = make_onnx([(names[0], FLOAT, picture)], tensors, nodes=nodes, properties=properties)
    return inspect_model("m.onnx", data)


def get_stage(inspection: Inspection, labels: tuple[str, ...] | None = None) -> Stage:
    (stage,) = make_spec(inspection, labels=labels, labels_file="labels.txt" if labels else "").stages
    return stage


# --- Ultralytics ------------------------------------------------------------------------------------------------------
YOLOV8 = {
    "columns": ((1, 7, CELLS), {}, ["Sigmoid"], "columns"),
    "columns of two classes": ((1, 6, CELLS), {"names": "{0: 'a', 1: 'b'}"}, ["Sigmoid"], "columns"),
    "columns, everything open": ((None, 7, None), {}, ["Sigmoid"], "columns"),
    "rows": ((1, CELLS, 7), {}, ["Sigmoid"], "rows"),
    "rows of two classes": ((1, CELLS, 6), {"names": "{0: 'a', 1: 'b'}"}, ["Sigmoid"], "rows"),
    "suppressed, by its arguments": ((1, 300, 6), {"args": "{'batch': 1, 'nms': True}"}, ["Sigmoid"], "suppressed"),
    "suppressed, from end to end": ((1, 300, 6), {"end2end": "True"}, ["Sigmoid"], "suppressed"),
    "suppressed, by its operators": ((1, 300, 6), {}, ["NonMaxSuppression", "Concat"], "suppressed"),
    "the best of two classes": ((1, 300, 6), {"names": "{0: 'a', 1: 'b'}"}, ["TopK", "Concat"], "suppressed"),
}


@pytest.mark.parametrize("name", YOLOV8)
def test_yolov8_needs_no_spec_and_its_layout_is_told_by_its_classes(make_onnx: Maker, name: str) -> None:
    shape, said, operators, layout = YOLOV8[name]
    picture = (None, 3, None, None) if None in shape else (1, 3, 640, 640)
    inspection = make(make_onnx, shape, picture=picture, operators=operators, properties=DETECT | said)
    stage = get_stage(inspection)
    assert (stage.task, stage.answer.family) == ("detection", "yolov8")
    assert stage.answer.parameters == {"units": "pixels", "layout": layout}
    assert stage.labels == LabelSpec(packed="names")
    assert stage.input is not None
    assert (stage.input.width, stage.input.height, stage.input.fit, stage.input.pad) == (640, 640, "letterbox", 114)
    assert (stage.input.colour, stage.input.mean, stage.input.std) == ("rgb", (0.0,), (255.0,))
    assert any("letterbox" in note for note in inspection.notes)


def test_the_labels_of_ultralytics_are_loaded_from_the_model_file(make_onnx: Maker) -> None:
    data = make_onnx([("images", FLOAT, (1, 3, 640, 640))], [("output0", FLOAT, (1, 7, CELLS))], properties=DETECT)
    stage = get_stage(inspect_model("m.onnx", data))
    assert load_labels(stage, lambda name: data) == PEOPLE
    other = make_onnx([("images", FLOAT, (1, 3, 640, 640))], [("output0", FLOAT, (1, 7, CELLS))])
    with pytest.raises(ModelUnreadable, match="names"):
        load_labels(stage, lambda name: other)


def test_a_name_that_sounds_like_nothing_is_a_class_all_the_same(make_onnx: Maker) -> None:
    said = DETECT | {"names": "{0: 'background', 1: 'fire', 2: 'smoke'}"}
    inspection = make(make_onnx, (1, 7, CELLS), properties=said)
    assert get_stage(inspection).labels == LabelSpec(packed="names")
    with pytest.raises(SpecIncomplete, match=r"labels\.offset"):
        get_stage(inspection, ("background", "a", "b"))


def test_a_label_file_counts_before_names_and_must_have_as_many_lines(make_onnx: Maker) -> None:
    inspection = make(make_onnx, (1, 7, CELLS), properties=DETECT)
    assert get_stage(inspection, ("a", "b", "c")).labels == LabelSpec(file="labels.txt")
    with pytest.raises(SpecIncomplete, match=r"labels\.offset"):
        get_stage(inspection, ("a", "b"))


YOLOV5 = {
    "as exported": ((1, 3 * CELLS, 8), {"names": "['a', 'b', 'c']", "stride": "32"}, None),
    "with numbered names": ((1, 3 * CELLS, 8), {"names": NAMES, "stride": "32"}, None),
    "everything open": ((None, None, 8), {"names": NAMES}, None),
    "without metadata, by its labels": ((1, 3 * CELLS, 8), {}, ("a", "b", "c")),
    "of four strides": ((1, 3 * 8500, 8), {"names": NAMES}, None),
}


@pytest.mark.parametrize("name", YOLOV5)
def test_yolov5_is_told_by_three_rows_a_cell_and_its_classes(make_onnx: Maker, name: str) -> None:
    shape, said, labels = YOLOV5[name]
    stage = get_stage(make(make_onnx, shape, properties=said), labels)
    assert (stage.answer.family, stage.answer.parameters) == ("yolov5", {"units": "pixels"})
    assert stage.input is not None
    assert (stage.input.fit, stage.input.pad, stage.input.colour) == ("letterbox", 114, "rgb")


def test_yolov8_without_metadata_is_told_by_as_many_labels(make_onnx: Maker) -> None:
    stage = get_stage(make(make_onnx, (1, 7, CELLS)), ("a", "b", "c"))
    assert stage.answer.parameters == {"units": "pixels", "layout": "columns"}


ONLY_LIKE = {
    "other classes than names": ((1, 9, CELLS), DETECT),
    "no names and no labels": ((1, 7, CELLS), {}),
    "keypoints": ((1, 56, CELLS), DETECT | {"task": "pose", "names": "{0: 'person'}"}),
    "turned boxes": ((1, 8, CELLS), DETECT | {"task": "obb"}),
    "masks": ({"output0": (1, 39, CELLS), "output1": (1, 32, 160, 160)}, DETECT | {"task": "segment"}),
    "another number of candidates, as RT-DETR has": ((1, 300, 7), DETECT),
    "open sizes without metadata": ((None, 3 * CELLS, 8), {"task": ""}),
    "six numbers that nothing suppressed": ((1, 300, 6), DETECT),
    "two rows a cell": ((1, 2 * CELLS, 8), DETECT),
    "YOLOv6, one row a cell under another name": ((1, CELLS, 85), {}),
}


@pytest.mark.parametrize("name", ONLY_LIKE)
def test_what_is_only_like_them_is_left_to_the_operator(make_onnx: Maker, name: str) -> None:
    shape, said = ONLY_LIKE[name]
    inspection = make(make_onnx, shape, properties=said)
    assert {"task", "answer.family"} <= set(inspection.missing)


# --- names ------------------------------------------------------------------------------------------------------------
WORDS = st.text(
    st.characters(exclude_characters="\r\n\x00\x85\u2028", exclude_categories=["Cs"]), min_size=1, max_size=12
)


@given(st.lists(WORDS.map(str.strip).filter(bool), min_size=1, max_size=8), st.booleans())
@settings(max_examples=80)
def test_names_that_python_writes_are_read_as_python_reads_them(words: list[str], numbered: bool) -> None:
    text = repr(dict(enumerate(words))) if numbered else repr(words)
    literal = ast.literal_eval(text)
    wanted = list(literal.values()) if numbered else literal
    assert find_names({"names": text}) == tuple(word.strip() for word in wanted)


BAD_NAMES = [
    "", "{}", "[]", "{", "person", "('a',)", "{'a'}", "{1: 'a'}", "{0: 'a', 2: 'b'}", "{0: 'a', 0: 'b'}", "{0: a}",
    "{0: 'a' 1: 'b'}", "{0: 'a'}}", "{0: 'a', 'b'}", "['a', 0: 'b']", "['a'", "{0: 'a\\nb'}", "{0: 'a\nb'}",
    "{0: f'a'}",
    "{0: '\\x0a'}", "{0: '\\ud800'}", "{0: '\\U00110000'}", "{0: '\\q'}", "{0: 'a'.upper()}", "[__import__('os')]",
    "{0: 'a', 1: ['b']}", "{-1: 'a'}", "{0: 'a'} # {}", "{0: 'a' + 'b'}", "[" * 5_000, "{0: '" + "a" * 2_000 + "'}",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_NAMES, ids=lambda text: text[:20])
def test_names_of_another_grammar_are_no_names(text: str) -> None:
    assert find_names({"names": text}) is None


@given(st.text("{}[]'\"\\:, 01axnu\n", max_size=40))
@settings(max_examples=100)
def test_any_text_gives_what_python_would_read_or_none(text: str) -> None:
    found = find_names({"names": text})
    if found is not None:
        literal = ast.literal_eval(text.strip())
        words = list(literal.values()) if isinstance(literal, dict) else literal
        stripped = [word.strip() for word in words]
        assert list(found) == stripped[: len(found)]
        assert not any(stripped[len(found) :])


# --- YOLOX, FastestDet, faces -----------------------------------------------------------------------------------------
COCO = tuple(f"class{number}" for number in range(80))


@pytest.mark.parametrize(("operators", "decoded"), [(["Sigmoid", "Transpose"], False), (["Exp", "Concat"], True)])
@pytest.mark.parametrize("cells", [8400, 8500])
def test_yolox_is_told_by_its_names_and_one_row_a_cell(
    make_onnx: Maker, operators: list[str], decoded: bool, cells: int
) -> None:
    stage = get_stage(make(make_onnx, (1, cells, 85), names=("images", "output"), operators=operators), COCO)
    assert (stage.answer.family, stage.answer.parameters) == ("yolox", {"decoded": decoded})
    assert stage.input is not None
    assert (stage.input.fit, stage.input.pad, stage.input.colour) == ("letterbox_top_left", 114, "bgr")
    assert (stage.input.mean, stage.input.std) == ((0.0,), (1.0,))


def test_fastestdet_is_told_by_its_grid_and_what_it_is_put_together_from(make_onnx: Maker) -> None:
    stage = get_stage(make(make_onnx, (1, 85, 40, 40), operators=["Sigmoid", "Softmax", "Concat"]), COCO)
    assert stage.answer.family == "fastestdet"
    assert stage.input is not None
    assert (stage.input.fit, stage.input.colour, stage.input.std) == ("stretch", "bgr", (255.0,))


FACES: dict[str, Shape] = {"scores": (1, 4420, 2), "boxes": (1, 4420, 4)}
OTHERS = {
    "a class map of a sixteenth": ((1, 85, 40, 40), "output", ["Sigmoid", "Softmax", "Conv"], (1, 3, 640, 640)),
    "a grid of another stride": ((1, 85, 20, 20), "output", ["Sigmoid", "Softmax", "Concat"], (1, 3, 640, 640)),
    "YOLOX of another size": ((1, 3549, 85), "output", ["Transpose"], (1, 3, 640, 640)),
    "rows under another name": ((1, 8400, 85), "outputs", ["Transpose"], (1, 3, 640, 640)),
    "UltraFace of another size": (FACES, "", ["Softmax"], (1, 3, 480, 640)),
    "a grey face detector": (FACES, "", ["Softmax"], (1, 1, 240, 320)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_only_like_the_others_is_left_to_the_operator(make_onnx: Maker, name: str) -> None:
    output, written, operators, picture = OTHERS[name]
    inspection = make(make_onnx, output, names=("images", written), operators=operators, picture=picture)
    assert "answer.family" in inspection.missing


def test_faces_bring_their_label_and_take_one_from_a_file_with_a_background(make_onnx: Maker) -> None:
    inspection = make(make_onnx, FACES, picture=(1, 3, 240, 320))
    stage = get_stage(inspection)
    assert (stage.answer.family, stage.labels) == ("ultraface", LabelSpec(names=("face",)))
    assert (stage.thresholds.score, stage.thresholds.iou) == (0.7, 0.5)
    assert stage.input is not None
    assert (stage.input.mean, stage.input.std, stage.input.fit) == ((127.0,), (128.0,), "stretch")
    assert get_stage(inspection, ("BACKGROUND", "face")).labels == LabelSpec(file="labels.txt", offset=1)
    assert get_stage(inspection, ("visage",)).labels == LabelSpec(file="labels.txt")


@pytest.mark.parametrize(("side", "anchors", "family"), [(128, 896, "blazeface"), (192, 2304, None), (128, 2304, None)])
def test_blazeface_is_the_short_range_one(make_litert: Maker, side: int, anchors: int, family: str | None) -> None:
    kind = schema.TensorType.FLOAT32
    data = make_litert(
        [("input", kind, (1, side, side, 3))],
        [("regressors", kind, (1, anchors, 16)), ("classificators", kind, (1, anchors, 1))],
    )
    inspection = inspect_model("m.tflite", data)
    if family is None:
        assert "answer.family" in inspection.missing
    else:
        stage = get_stage(inspection)
        assert stage.answer.outputs == {"boxes": "regressors", "scores": "classificators"}
        assert stage.input is not None
        assert (stage.input.mean, stage.input.std, stage.input.fit) == ((127.5,), (127.5,), "letterbox")


@pytest.mark.parametrize(
    ("side", "anchors", "family"),
    [(192, 2016, "palm"), (128, 896, "palm"), (192, 2944, None), (256, 2944, None), (192, None, None)],
)
def test_palms_are_told_by_the_anchors_of_their_input(
    make_litert: Maker, side: int, anchors: int | None, family: str | None
) -> None:
    kind = schema.TensorType.FLOAT32
    data = make_litert(
        [("input", kind, (1, side, side, 3))],
        [("Identity", kind, (1, anchors, 18)), ("Identity_1", kind, (1, anchors, 1))],
    )
    inspection = inspect_model("m.tflite", data)
    assert inspection.found.get("answer", {}).get("family") == family
    if family:
        stage = get_stage(inspection)
        assert stage.thresholds == Thresholds(score=0.5, iou=0.3, max_results=2)
        assert stage.input is not None
        assert (stage.input.std, stage.input.fit, stage.input.pad) == ((255.0,), "letterbox", 0)
