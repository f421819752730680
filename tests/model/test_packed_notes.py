"""YOLO of Ultralytics in LiteRT: its notes are packed in the file, under three names and in two notations."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeferry.model.inspect import inspect_model, make_spec
from edgeferry.model.spec import LabelSpec
from edgeferry.model.stage_labels import load_labels

Maker = Callable[..., bytes]
NOTES = {
    "description": "a model",
    "task": "detect",
    "stride": 32,
    "imgsz": [320, 640],
    "names": {0: "person", 1: "driver's cab", 2: "fire"},
    "args": {"nms": False},
}
CELLS = 4200
"""Of strides 8, 16 and 32 in 320 x 640."""
FILES = {"metadata.json": json.dumps(NOTES).encode(), "temp_meta.txt": str(NOTES).encode()}
YOLOV5_FILES = {"meta.txt": str({key: NOTES[key] for key in ("stride", "names")}).encode()}
"""export.py of YOLOv5 7.0: add_tflite_metadata."""


def make(make_litert: Maker, files: dict[str, bytes], output: tuple[int, ...] = (1, 7, CELLS)) -> bytes:
    kind = schema.TensorType.FLOAT32
    return make_litert([("images", kind, (1, 320, 640, 3))], [("Identity", kind, output)], files=files)


@pytest.mark.parametrize("name", FILES)
def test_yolov8_in_litert_needs_no_spec(make_litert: Maker, name: str) -> None:
    data = make(make_litert, {name: FILES[name]})
    (stage,) = make_spec(inspect_model("m.tflite", data)).stages
    assert (stage.answer.family, stage.labels) == ("yolov8", LabelSpec(packed="names"))
    assert stage.answer.parameters == {"units": "fractions", "layout": "columns"}
    assert stage.input is not None
    assert (stage.input.width, stage.input.height, stage.input.layout) == (640, 320, "nhwc")
    assert load_labels(stage, lambda file: data) == ("person", "driver's cab", "fire")


def test_yolov5_in_litert_needs_no_spec(make_litert: Maker) -> None:
    data = make(make_litert, YOLOV5_FILES, (1, 3 * CELLS, 8))
    (stage,) = make_spec(inspect_model("m.tflite", data)).stages
    assert (stage.answer.family, stage.answer.parameters) == ("yolov5", {"units": "fractions"})
    assert load_labels(stage, lambda file: data) == ("person", "driver's cab", "fire")


FOUR = {"Identity": (1, 100, 4), "Identity_1": (1, 100), "Identity_2": (1, 100), "Identity_3": (1,)}


@pytest.mark.parametrize(
    ("files", "shapes", "family"),
    [
        (YOLOV5_FILES, FOUR, "yolov5"),
        (YOLOV5_FILES, dict(reversed(FOUR.items())), "yolov5"),
        (YOLOV5_FILES, FOUR | {"Identity": (1, 100), "Identity_1": (1, 100, 4)}, None),
        (YOLOV5_FILES, FOUR | {"Identity_2": (1, 99)}, None),
        (FILES, FOUR, None),
        ({}, FOUR, None),
    ],
)
def test_yolov5_that_suppresses_is_told_by_the_order_of_its_four_outputs(
    make_litert: Maker, files: dict[str, bytes], shapes: dict[str, tuple[int, ...]], family: str | None
) -> None:
    kind = schema.TensorType.FLOAT32
    outputs = [(name, kind, shape) for name, shape in shapes.items()]
    inspection = inspect_model("m.tflite", make_litert([("images", kind, (1, 320, 640, 3))], outputs, files=files))
    answer = inspection.found.get("answer", {})
    assert answer.get("family") == family
    if family:
        assert answer["outputs"] == dict(zip(("boxes", "scores", "classes", "count"), FOUR, strict=True))
        assert answer["parameters"] == {"units": "fractions", "layout": "suppressed"}


def test_suppression_in_the_graph_is_told_by_the_notes(make_litert: Maker) -> None:
    notes = json.dumps(NOTES | {"args": {"nms": True}}).encode()
    (stage,) = make_spec(inspect_model("m.tflite", make(make_litert, {"metadata.json": notes}, (1, 300, 6)))).stages
    assert stage.answer.parameters["layout"] == "suppressed"


@pytest.mark.parametrize(
    "notes",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"names": "person"}',
        b'{"names": {"1": "a"}}',
        b"{}" + b" " * (2 << 20),
    ],
    ids=lambda notes: repr(notes[:24]),
)
@pytest.mark.parametrize("name", FILES)
def test_notes_that_cannot_be_read_tell_nothing(make_litert: Maker, name: str, notes: bytes) -> None:
    inspection = inspect_model("m.tflite", make(make_litert, {name: notes}))
    assert "answer.family" in inspection.missing
