"""docs/formats/spec.md is tested: its examples make specs, its table names every field, its families can be decoded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto

from edgeferry.model.bundle_spec import make_bundle_spec
from edgeferry.model.inspect import inspect_model, make_spec
from edgeferry.model.labels import read_labels
from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, ModelSpec, Stage, Thresholds, read_spec_toml
from edgeferry.model.stage_labels import load_labels
from edgeferry.vision.answers.table import FAMILIES
from edgeferry.vision.walk import PIPELINES

Maker = Callable[..., bytes]
PAGE = (Path(__file__).parents[2] / "docs" / "formats" / "spec.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
TABLES: dict[str, type[msgspec.Struct]] = {
    "input": InputSpec, "answer": AnswerSpec, "labels": LabelSpec, "thresholds": Thresholds,
}  # fmt: skip


def _make(number: int, name: str, data: bytes, labels: tuple[str, ...] | None = None) -> ModelSpec:
    overrides = read_spec_toml(EXAMPLES[number])
    return make_spec(
        inspect_model(name, data), labels=labels, labels_file="labels.txt" if labels else "", overrides=overrides
    )


def test_the_page_names_every_field_and_no_other() -> None:
    section = PAGE.partition("## Fields of a stage")[2].partition("##")[0]
    named = {
        word for row in re.findall(r"^\|([^|]*)\|", section, re.MULTILINE) for word in re.findall(r"`([a-z_.]+)`", row)
    }
    fields = {each.name for each in msgspec.structs.fields(Stage)} - set(TABLES)
    fields |= {f"{table}.{each.name}" for table, kind in TABLES.items() for each in msgspec.structs.fields(kind)}
    assert named == fields


def test_the_page_names_every_family_that_can_be_decoded() -> None:
    section = PAGE.partition("## Families")[2].partition("Conventions")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == set(FAMILIES)


@pytest.mark.needs_shared
def test_the_example_for_an_onnx_classifier_is_all_that_mobilenet_needs(shared_models: Path) -> None:
    folder = shared_models / "classification"
    labels = read_labels((folder / "imagenet_labels.txt").read_bytes())
    (stage,) = _make(0, "m.onnx", (folder / "mobilenet_v2_int8.onnx").read_bytes(), labels).stages
    assert (stage.labels.offset, stage.input.resize_to, stage.input.width) == (1, 256, 224)


@pytest.mark.needs_shared
def test_the_example_for_a_litert_classifier_is_all_that_teachable_machine_needs(shared_models: Path) -> None:
    data = (shared_models / "pairs" / "teachable_fp32_head_retrain" / "v2.tflite").read_bytes()
    (stage,) = _make(1, "m.tflite", data).stages
    assert (stage.input.mean, stage.labels.names[0]) == ((127.5,), "fork")


def test_the_example_for_ssd_makes_a_spec(make_litert: Maker) -> None:
    outputs = [(name, schema.TensorType.FLOAT32, (1, 10)) for name in "abcd"]
    data = make_litert(outputs=outputs, custom="TFLite_Detection_PostProcess", options={"num_classes": 4})
    (stage,) = _make(2, "m.tflite", data, ("???", "x", "y")).stages
    assert (stage.answer.family, stage.thresholds.max_results) == ("ssd", 20)


def test_the_example_for_tiny_yolov3_makes_a_spec(make_onnx: Maker) -> None:
    inputs = [("image", TensorProto.FLOAT, (1, 3, None, None)), ("size", TensorProto.FLOAT, (1, 2))]
    outputs = [(name, TensorProto.FLOAT, (1, 1, 1)) for name in "bsi"]
    (stage,) = _make(3, "m.onnx", make_onnx(inputs, outputs), ("x",)).stages
    assert (stage.input.tensor, stage.input.size_tensor, stage.answer.family) == ("image", "size", "tiny_yolov3")


def test_the_example_for_a_detector_like_ours_makes_a_spec(make_onnx: Maker) -> None:
    outputs = [(name, TensorProto.FLOAT, ("n",)) for name in ("boxes", "scores", "labels")]
    (stage,) = _make(4, "m.onnx", make_onnx(outputs=outputs)).stages
    assert stage.labels == LabelSpec(names=("worker", "no_helmet", "fire"))


def test_the_example_for_segmentation_makes_a_spec(make_onnx: Maker) -> None:
    data = make_onnx(outputs=[("logits", TensorProto.FLOAT, (1, 3, None, None))])
    (stage,) = _make(5, "m.onnx", data).stages
    assert (stage.task, stage.answer.family, stage.labels.names[1]) == ("segmentation", "class_map", "road")


@pytest.mark.needs_shared
def test_the_example_for_background_removal_is_all_that_selfie_segmentation_needs(shared_models: Path) -> None:
    (stage,) = _make(6, "m.tflite", (shared_models / "segmentation" / "selfie_segmentation.tflite").read_bytes()).stages
    assert (stage.task, stage.answer.family, stage.labels.names) == ("image", "probability_mask", ("person",))


def test_the_example_for_yolov8_in_litert_makes_a_spec(make_litert: Maker) -> None:
    kind = schema.TensorType.FLOAT32
    data = make_litert([("images", kind, (1, 640, 640, 3))], [("Identity", kind, (1, 6, 8400))])
    (stage,) = _make(7, "m.tflite", data).stages
    assert (stage.answer.parameters["units"], stage.input.fit, stage.labels.names[0]) == (
        "fractions", "letterbox", "helmet",
    )  # fmt: skip


@pytest.mark.needs_shared
def test_the_example_for_a_pipeline_is_all_that_the_hand_models_need(shared_models: Path) -> None:
    files = {path.name: path.read_bytes() for path in (shared_models / "hand").iterdir()}
    spec = make_bundle_spec(files, files.__getitem__, read_spec_toml(EXAMPLES[8]))
    assert [(stage.task, stage.answer.family) for stage in spec.stages] == [
        ("detection", "palm"), ("landmarks", "hand_landmarks"), ("classification", "gesture"),
    ]  # fmt: skip
    assert load_labels(spec.stages[2], files.__getitem__) == ("Open", "Close", "Pointer", "OK")


def test_the_page_names_every_pipeline() -> None:
    section = PAGE.partition("## Pipelines")[2]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)+) \|", section, re.MULTILINE)
    assert {tuple(re.findall(r"\w+", row)) for row in rows} == set(PIPELINES)


def test_every_example_is_tested() -> None:
    assert len(EXAMPLES) == 9
