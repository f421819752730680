"""Specs from model files: what is told, what is convention, what is missing. Engines stay out of it."""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto

from edgeferry.errors import (
    ConfigInvalid,
    ManifestInvalid,
    ModelUnreadable,
    SpecIncomplete,
)
from edgeferry.model.bundle_spec import make_bundle_spec
from edgeferry.model.inspect import Inspection, inspect_model, make_spec
from edgeferry.model.labels import read_labels
from edgeferry.model.spec import LabelSpec, ModelSpec, Stage, Thresholds, read_spec_toml
from edgeferry.model.stage_labels import load_labels

Maker = Callable[..., bytes]
FLOAT, UINT8 = schema.TensorType.FLOAT32, schema.TensorType.UINT8
OP = "TFLite_Detection_PostProcess"
FOUR = ("a", "b", "c", "d")
IMAGE = {
    "edgeferry.task": "detection",
    "edgeferry.family": "ef_detector",
    "edgeferry.labels": "worker\nfire",
    "edgeferry.input.width": "8",
    "edgeferry.input.height": "8",
    "edgeferry.input.layout": "nchw",
    "edgeferry.input.dtype": "float32",
    "edgeferry.input.mean": "0 0 0",
    "edgeferry.input.std": "255, 255, 255",
    "edgeferry.input.fit": "letterbox",
    "edgeferry.threshold": "0.4",
}


def _get_stage(spec: ModelSpec) -> Stage:
    (stage,) = spec.stages
    return stage


def _spec(name: str, data: bytes, toml: str = "", labels: tuple[str, ...] | None = None) -> Stage:
    overrides = read_spec_toml(toml) if toml else None
    file = "labels.txt" if labels is not None else ""
    return _get_stage(make_spec(inspect_model(name, data), labels=labels, labels_file=file, overrides=overrides))


# --- the guide's own two models, with no spec from anybody ------------------------------------------------------------
@pytest.mark.needs_shared
def test_the_guides_bundle_needs_no_spec(shared_models: Path) -> None:
    with zipfile.ZipFile(shared_models / "classic" / "tensorflow001.zip") as archive:
        stage = _get_stage(make_bundle_spec(archive.namelist(), archive.read))
        labels = load_labels(stage, archive.read)
    assert msgspec.to_builtins(stage) == {
        "file": "ssd_mobilenet_v1_1_metadata_1.tflite",
        "task": "detection",
        "input": {"width": 300, "height": 300, "layout": "nhwc", "dtype": "uint8", "mean": (0.0,), "std": (1.0,)},
        "answer": {
            "family": "ssd",
            "outputs": {"boxes": OP, "classes": f"{OP}:1", "scores": f"{OP}:2", "count": f"{OP}:3"},
        },
        "labels": {"file": "labelmap.txt", "offset": 1},
    }
    assert labels[16 + 1] == "cat"


@pytest.mark.needs_shared
def test_tiny_yolov3_with_its_label_file_needs_no_spec(shared_models: Path) -> None:
    folder = shared_models / "detection"
    stage = _get_stage(
        make_bundle_spec(
            ["tiny_yolov3_interface_standin.onnx", "coco80.names"], lambda name: (folder / name).read_bytes()
        )
    )
    assert stage.answer.family == "tiny_yolov3"
    assert stage.answer.outputs == {
        "boxes": "yolonms_layer_1", "scores": "yolonms_layer_1:1", "indices": "yolonms_layer_1:2",
    }  # fmt: skip
    wanted = {"width": 416, "height": 416, "layout": "nchw", "dtype": "float32", "mean": (0.0,), "std": (255.0,)}
    wanted |= {"fit": "letterbox", "pad": 128, "resample": "bicubic", "tensor": "input_1", "size_tensor": "image_shape"}
    assert msgspec.to_builtins(stage.input) == wanted
    assert stage.labels == LabelSpec(file="coco80.names")


@pytest.mark.needs_shared
def test_packed_labels_are_loaded_from_the_model_file(shared_models: Path) -> None:
    path = shared_models / "classification" / "mobilenet_v2_1.0_224_quant.tflite"
    stage = _spec(path.name, path.read_bytes())
    assert (stage.task, stage.answer.family, stage.answer.parameters) == (
        "classification", "classification", {"activation": "none"},
    )  # fmt: skip
    assert stage.labels == LabelSpec(packed="imagenet_labels.txt")
    labels = load_labels(stage, lambda name: (path.parent / name).read_bytes())
    assert labels == read_labels((path.parent / "imagenet_labels.txt").read_bytes())


@pytest.mark.needs_shared
def test_third_party_models_either_give_a_spec_or_name_what_is_missing(shared_models: Path) -> None:
    told = set()
    for path in sorted([*shared_models.rglob("*.onnx"), *shared_models.rglob("*.tflite")]):
        inspection = inspect_model(path.name, path.read_bytes())
        try:
            make_spec(inspection)
            told.add(path.stem)
            assert not inspection.missing
        except SpecIncomplete as error:
            assert inspection.missing
            assert all(field in error.message for field in inspection.missing)
    assert told == {
        "ssd_mobilenet_v1_1_metadata_1", "mobilenet_v1_0.25_128_quant", "mobilenet_v2_1.0_224_quant", "v2",
        "palm_detection_lite", "hand_landmark_lite", "face_detection_short_range", "version-RFB-320",
        "v1", "movenet_single_pose_lightning_ptq", "deeplabv3_mnv2_dm05_pascal_quant", "selfie_segmentation",
        "super_resolution",
    }  # fmt: skip


# --- our own models -------------------------------------------------------------------------------------------------
def test_every_demo_model_tells_all_of_its_spec(demo_models: Path) -> None:
    paths = sorted([*demo_models.rglob("*.onnx"), *demo_models.rglob("*.tflite")])
    assert len(paths) >= 19
    for path in paths:
        stage = _spec(path.name, path.read_bytes())
        detector = path.name.startswith("detector")
        family = "classification" if not detector else "ef_detector" if path.suffix == ".onnx" else "ssd"
        side = 256 if detector else 96
        assert (stage.answer.family, stage.input.width, stage.input.height) == (family, side, side)
        wanted = read_labels((path.parent / "labels.txt").read_bytes())
        assert load_labels(stage, lambda name, folder=path.parent: (folder / name).read_bytes()) == wanted
        raw = stage.input.dtype == "uint8"
        assert (stage.input.mean[0], stage.input.std[0], stage.labels.offset) == (0.0, 1.0 if raw else 255.0, 0)


def test_what_the_metadata_declares_is_the_spec(make_onnx: Maker) -> None:
    stage = _spec("m.onnx", make_onnx(properties=IMAGE))
    assert (stage.input.fit, stage.input.std, stage.thresholds.score) == ("letterbox", (255.0,) * 3, 0.4)
    assert stage.labels == LabelSpec(packed="edgeferry.labels")


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("input.width", "9", "input.width"),
        ("input.width", "8.5", "input.width"),
        ("input.layout", "nhwc", "input.layout"),
        ("input.dtype", "uint8", "input.dtype"),
        ("input.mean", "none", "input.mean"),
        ("input.std", "", "input.std"),
        ("threshold", "half", "thresholds.score"),
    ],
)
def test_metadata_that_contradicts_the_tensor_or_is_no_number_is_missing(
    make_onnx: Maker, key: str, value: str, field: str
) -> None:
    data = make_onnx(properties=IMAGE | {f"edgeferry.{key}": value})
    with pytest.raises(SpecIncomplete, match="metadata says") as caught:
        _spec("m.onnx", data)
    assert caught.value.values["missing"] == field


@pytest.mark.parametrize("number", ["--5", "-", "5-", "\N{SUPERSCRIPT TWO}", "99999999"])
def test_metadata_with_what_is_no_whole_number_is_missing_it(make_onnx: Maker, number: str) -> None:
    with pytest.raises(SpecIncomplete, match="metadata says"):
        _spec("m.onnx", make_onnx(properties=IMAGE | {"edgeferry.input.pad": number}))


def test_metadata_without_labels_takes_those_of_a_file_once_it_is_said_which_is_class_0(make_onnx: Maker) -> None:
    data = make_onnx(properties={name: value for name, value in IMAGE.items() if name != "edgeferry.labels"})
    with pytest.raises(SpecIncomplete, match="does not say its number of classes"):
        _spec("m.onnx", data, labels=FOUR)
    assert _spec("m.onnx", data, "labels.offset = 0", FOUR).labels == LabelSpec(file="labels.txt")


@pytest.mark.parametrize("key", ["mean", "std", "fit"])
def test_metadata_that_leaves_something_out_is_missing_it(make_onnx: Maker, key: str) -> None:
    left = {name: value for name, value in IMAGE.items() if name != f"edgeferry.input.{key}"}
    with pytest.raises(SpecIncomplete) as caught:
        _spec("m.onnx", make_onnx(properties=left))
    assert caught.value.values["missing"] == f"input.{key}"


def test_metadata_with_values_that_no_spec_has_is_refused(make_onnx: Maker) -> None:
    with pytest.raises(ConfigInvalid, match=r"input\.fit"):
        _spec("m.onnx", make_onnx(properties=IMAGE | {"edgeferry.input.fit": "squeeze"}))
    with pytest.raises(ConfigInvalid, match="zeros"):
        _spec("m.onnx", make_onnx(properties=IMAGE | {"edgeferry.input.std": "0"}))


# --- ssd ------------------------------------------------------------------------------------------------------------
def _make_ssd(make_litert: Maker, classes: int | None = 3, **changes: object) -> bytes:
    outputs = [(name, FLOAT, (1, 10)) for name in ("where", "what", "how", "many")]
    options = {"max_detections": 10} | ({"num_classes": classes} if classes is not None else {})
    given = {"inputs": [("image", UINT8, (1, 8, 16, 3))], "outputs": outputs, "custom": OP, "options": options}
    return make_litert(**(given | changes))


def test_outputs_of_the_detection_operator_are_named_by_its_order_not_by_the_graphs(make_litert: Maker) -> None:
    stage = _spec("m.tflite", _make_ssd(make_litert, graph_outputs=(3, 2, 1, 0)), labels=("x", "y", "z"))
    assert stage.answer.outputs == {"boxes": "where", "classes": "what", "scores": "how", "count": "many"}
    assert (stage.input.width, stage.input.height) == (16, 8)


@pytest.mark.parametrize(
    ("labels", "offset"), [(("x", "y", "z"), 0), (("???", "x", "y", "z"), 1), (("Background", "x", "???", "z"), 1)]
)
def test_the_label_offset_follows_from_the_number_of_classes(
    make_litert: Maker, labels: tuple[str, ...], offset: int
) -> None:
    assert _spec("m.tflite", _make_ssd(make_litert), labels=labels).labels == LabelSpec(
        file="labels.txt", offset=offset
    )


@pytest.mark.parametrize("labels", [("x", "y"), ("w", "x", "y", "z"), ("???", "x", "y"), ("???", "v", "w", "x", "y")])
def test_labels_that_do_not_fit_the_classes_are_not_guessed_at(make_litert: Maker, labels: tuple[str, ...]) -> None:
    with pytest.raises(SpecIncomplete, match="3 classes") as caught:
        _spec("m.tflite", _make_ssd(make_litert), labels=labels)
    assert caught.value.values["missing"] == "labels.offset"
    stage = _spec("m.tflite", _make_ssd(make_litert), "labels.offset = 1", labels)
    assert stage.labels.offset == 1


def test_an_operator_that_hides_its_classes_leaves_the_offset_open(make_litert: Maker) -> None:
    with pytest.raises(SpecIncomplete) as caught:
        _spec("m.tflite", _make_ssd(make_litert, None), labels=("???", "x"))
    assert caught.value.values["missing"] == "labels.offset"


def test_a_float_detector_without_metadata_misses_its_normalisation(make_litert: Maker) -> None:
    data = _make_ssd(make_litert, inputs=[("image", FLOAT, (1, 8, 8, 3))])
    with pytest.raises(SpecIncomplete) as caught:
        _spec("m.tflite", data, labels=("x", "y", "z"))
    assert caught.value.values["missing"] == "input.mean, input.std"


# --- classification -------------------------------------------------------------------------------------------------
def test_an_onnx_classifier_misses_what_no_onnx_file_tells(make_onnx: Maker) -> None:
    with pytest.raises(SpecIncomplete, match="--spec") as caught:
        _spec("m.onnx", make_onnx(), labels=FOUR)
    assert caught.value.values["missing"] == "input.mean, input.std, input.fit"


def test_what_is_missing_may_be_added_by_a_spec_file(make_onnx: Maker) -> None:
    toml = '[input]\nmean = [124, 116.5, 104]\nstd = [58, 57, 57]\nfit = "crop"\nresize_to = 9'
    stage = _spec("m.onnx", make_onnx(), toml, FOUR)
    assert (stage.input.mean, stage.input.fit, stage.input.resize_to) == ((124.0, 116.5, 104.0), "crop", 9)
    assert (stage.input.layout, stage.input.width, stage.labels) == ("nchw", 8, LabelSpec(file="labels.txt"))
    assert stage.answer.parameters == {"activation": "none"}


def test_labels_may_stand_in_the_spec_file(make_litert: Maker) -> None:
    data = make_litert(inputs=[("image", UINT8, (1, 8, 8, 3))])
    stage = _spec("m.tflite", data, 'labels.names = ["a", "b", "c", "d"]')
    assert stage.labels.names == FOUR
    assert load_labels(stage, lambda _: b"") == FOUR


def test_a_classifier_whose_first_class_is_background_keeps_its_lines(make_litert: Maker) -> None:
    data = make_litert(inputs=[("image", UINT8, (1, 8, 8, 3))])
    assert _spec("m.tflite", data, labels=("background", "b", "c", "d")).labels.offset == 0
    assert _spec("m.tflite", data, labels=("background", *FOUR)).labels.offset == 1


def test_a_classifier_with_one_label_too_few_is_asked_not_guessed(make_litert: Maker) -> None:
    data = make_litert(inputs=[("image", UINT8, (1, 8, 8, 3))])
    with pytest.raises(SpecIncomplete, match="which line is class 0"):
        _spec("m.tflite", data, labels=("b", "c", "d"))
    assert _spec("m.tflite", data, "labels.offset = -1", ("b", "c", "d")).labels.offset == -1


@pytest.mark.parametrize(
    ("toml", "thresholds"),
    [
        ("", Thresholds(score=0.0, max_results=5)),
        ("thresholds.score = 0.5", Thresholds(score=0.5, max_results=5)),
        ("thresholds.max_results = 2", Thresholds(score=0.0, max_results=2)),
        ('answer.family = "class_map"\ntask = "segmentation"', Thresholds()),
    ],
)
def test_a_classifier_answers_its_best_classes_unless_it_is_told_otherwise(
    make_litert: Maker, toml: str, thresholds: Thresholds
) -> None:
    data = make_litert(inputs=[("image", UINT8, (1, 8, 8, 3))])
    assert _spec("m.tflite", data, toml, FOUR).thresholds == thresholds


@pytest.mark.parametrize("shape", [(1, 4), (None, 4), (1, 1, 1, 4), (1, 4, 1, 1)])
def test_a_row_of_scores_may_have_ones_around_it(make_onnx: Maker, shape: tuple[int | None, ...]) -> None:
    data = make_onnx(outputs=[("scores", TensorProto.FLOAT, shape)])
    assert inspect_model("m.onnx", data).found["answer"]["family"] == "classification"  # type: ignore[index]


@pytest.mark.parametrize("shape", [(4,), (2, 4), (1, 4, 4), (1, None), (1, 1), ()])
def test_other_outputs_are_no_classification(make_onnx: Maker, shape: tuple[int | None, ...]) -> None:
    inspection = inspect_model("m.onnx", make_onnx(outputs=[("scores", TensorProto.FLOAT, shape)]))
    assert {"task", "answer.family"} <= set(inspection.missing)


def test_an_int8_input_needs_normalisation_and_takes_its_quantisation(make_litert: Maker) -> None:
    data = make_litert(inputs=[("image", schema.TensorType.INT8, (1, 8, 8, 3))], quant=(0.5, -3))
    stage = _spec("m.tflite", data, "input.mean = [0]\ninput.std = [255]", FOUR)
    assert (stage.input.quant_scale, stage.input.quant_zero) == (0.5, -3)
    bare = make_litert(inputs=[("image", schema.TensorType.INT8, (1, 8, 8, 3))])
    assert "input.quant_scale" in inspect_model("m.tflite", bare).missing


def test_one_channel_is_grey_and_three_are_told_to_be_rgb(make_onnx: Maker) -> None:
    grey = inspect_model("m.onnx", make_onnx([("image", TensorProto.FLOAT, (1, 1, 8, 8))]))
    assert grey.found["input"]["colour"] == "grey"  # type: ignore[index]
    rgb = inspect_model("m.onnx", make_onnx())
    assert any("bgr" in note for note in rgb.notes)


# --- tiny_yolov3 ----------------------------------------------------------------------------------------------------
YOLO_IN = [("input_1", TensorProto.FLOAT, (None, 3, None, None)), ("image_shape", TensorProto.FLOAT, (None, 2))]
YOLO_OUT = [
    ("x", TensorProto.INT32, (None, None, 3)),
    ("y", TensorProto.FLOAT, (1, 4, 9)),
    ("z", TensorProto.FLOAT, (1, 9, 4)),
]


def test_tiny_yolov3_as_the_zoo_has_it_with_open_sides_is_416_and_says_so(make_onnx: Maker) -> None:
    inspection = inspect_model("m.onnx", make_onnx(YOLO_IN, YOLO_OUT))
    stage = _get_stage(make_spec(inspection, labels=FOUR, labels_file="l.txt"))
    assert (stage.input.width, stage.input.height) == (416, 416)
    assert stage.answer.outputs == {"indices": "x", "scores": "y", "boxes": "z"}
    assert any("416" in note for note in inspection.notes)


@pytest.mark.parametrize("change", [0, 1, 2])
def test_something_like_tiny_yolov3_is_not_taken_for_it(make_onnx: Maker, change: int) -> None:
    outputs = list(YOLO_OUT)
    outputs[change] = ("other", TensorProto.FLOAT, (1, 7, 7))
    assert "task" in inspect_model("m.onnx", make_onnx(YOLO_IN, outputs)).missing


# --- anything else, and overrides -----------------------------------------------------------------------------------
YOLOX = """
task = "detection"
[input]
colour = "bgr"
mean = [0]
std = [1]
fit = "letterbox_top_left"
pad = 114
[answer]
family = "yolox"
parameters = {strides = [8, 16, 32]}
[labels]
names = ["boat"]
[thresholds]
score = 0.3
"""


def test_a_model_of_another_family_takes_the_rest_from_the_spec_file(make_onnx: Maker) -> None:
    stage = _spec("m.onnx", make_onnx(outputs=[("output", TensorProto.FLOAT, (1, 99, 6))]), YOLOX)
    assert (stage.answer.family, stage.answer.parameters) == ("yolox", {"strides": (8, 16, 32)})
    assert (stage.input.width, stage.input.colour, stage.input.pad) == (8, "bgr", 114)


def test_a_task_without_labels_needs_none(make_litert: Maker) -> None:
    toml = 'task = "pose"\nanswer.family = "keypoints"'
    data = make_litert([("image", UINT8, (1, 8, 8, 3))], [("points", FLOAT, (1, 5, 3))])
    assert _spec("m.tflite", data, toml).labels == LabelSpec()


def test_a_model_that_takes_no_picture_misses_its_input(make_onnx: Maker) -> None:
    inspection = inspect_model("m.onnx", make_onnx([("features", TensorProto.FLOAT, (1, 40))]))
    assert "features" in inspection.missing["input"]


@pytest.mark.parametrize(
    ("toml", "name"),
    [
        ("sensitivity = 1", "sensitivity"),
        ("[input]\nwith = 8", "with"),
        ('[input]\nfit = "squash"', "fit"),
        ('[input]\nmean = "0"', "mean"),
        ('task = "divination"', "divination"),
        ("input = 3", "input"),
        ("[thresholds]\nscore = 2", "score"),
        ('[labels]\nfile = "other.txt"', r"other\.txt"),
        ('file = "x.onnx"', "m.onnx"),
    ],
)
def test_an_override_that_fits_no_spec_is_refused_by_name(make_onnx: Maker, toml: str, name: str) -> None:
    with pytest.raises(ConfigInvalid, match=name):
        _spec("m.onnx", make_onnx(properties=IMAGE), toml)


def test_a_spec_and_what_it_came_from_are_frozen_values(make_onnx: Maker) -> None:
    data = make_onnx(properties=IMAGE)
    first, second = inspect_model("m.onnx", data), inspect_model("m.onnx", data)
    assert first == second
    assert make_spec(first) == make_spec(second)


# --- bytes and names ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["m.pb", "m.onnx.zip", "model", "m.pt"])
def test_other_extensions_are_refused(make_onnx: Maker, name: str) -> None:
    with pytest.raises(ModelUnreadable, match=r"\.onnx"):
        inspect_model(name, make_onnx())


def test_a_mapped_file_is_read_and_may_be_closed_after(make_litert: Maker, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(make_litert(files={"labels.txt": b"a\nb\nc\nd\n"}))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        inspection: Inspection = inspect_model(path.name, data)
    assert inspection.labels == FOUR


def test_packed_labels_that_are_no_text_are_refused(make_litert: Maker) -> None:
    with pytest.raises(ModelUnreadable, match="labels packed"):
        inspect_model("m.tflite", make_litert(files={"labels.txt": b"\xff\xfe"}))


def test_labels_wanted_from_a_file_that_is_no_model_are_refused() -> None:
    stage = msgspec.convert(
        {"file": "m.tflite", "task": "pose", "answer": {"family": "x"}, "labels": {"packed": "labels.txt"},
         "input": {"width": 1, "height": 1, "layout": "nhwc", "dtype": "uint8"}},
        Stage,
    )  # fmt: skip
    with pytest.raises(ModelUnreadable):
        load_labels(stage, lambda _: b"nonsense")
    assert load_labels(msgspec.structs.replace(stage, labels=LabelSpec()), lambda _: b"") == ()


def test_no_error_of_another_kind_leaves_make_spec(make_onnx: Maker) -> None:
    """Values that only check_spec refuses come out as the operator's mistake, not as a bad manifest."""
    with pytest.raises(ConfigInvalid) as caught:
        _spec(
            "m.onnx",
            make_onnx([("image", TensorProto.FLOAT, (1, 3, 99_999, 8))]),
            "input.fit = 'crop'\ninput.mean = [0]\ninput.std = [1]",
            FOUR,
        )
    assert isinstance(caught.value.__cause__, ManifestInvalid)
