"""Real models, in process: pictures in, the right names in the right places out."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeferry.errors import ModelUnsupported
from edgeferry.model.digest import Digest
from edgeferry.model.inspect import inspect_model, make_spec
from edgeferry.model.manifest import Golden, TruthObject
from edgeferry.model.spec import LabelSpec, ModelSpec, Stage, Thresholds
from edgeferry.runtime.served import PictureSettings, ServedModel, load_served, make_terms
from edgeferry.runtime.session import EngineSettings
from edgeferry.vision.answer import ClassificationAnswer, DetectionAnswer
from edgeferry.vision.answers.table import decode
from edgeferry.vision.golden import get_iou
from edgeferry.vision.image import PictureLimits
from edgeferry.vision.preprocess import Placement
from edgeferry.wire.worker_frames import GoldenInput, Terms
from runtime.versions import (
    COCO_NUMBERS,
    COCO_OTHER_NAMES,
    IMAGENET_QDQ,
    IMAGENET_UINT8,
    MNIST,
    SSD,
    YOLO,
    make_picture,
)

ONE = EngineSettings(threads=1, concurrency=1)
PICTURES = PictureSettings(PictureLimits())


def load(folder: Path, stage: Stage) -> tuple[ServedModel, Terms]:
    spec = ModelSpec(stages=(stage,))
    return load_served(folder, spec, ONE, PICTURES), make_terms(folder, spec)


def find(folder: Path, stage: Stage, picture: Path) -> dict[str, tuple[float, tuple[float, float, float, float]]]:
    """Label -> (score, box) of the best object of each label."""
    model, terms = load(folder, stage)
    answer = model.answer(picture.read_bytes(), terms).answer
    assert isinstance(answer, DetectionAnswer)
    return {found.label: (found.score, found.box) for found in reversed(answer.objects)}


def test_ssd_finds_the_cat_where_it_is(shared_models: Path) -> None:
    found = find(shared_models / "detection", SSD, shared_models / "images/cat.jpg")
    assert set(found) == {"cat"}
    score, box = found["cat"]
    assert score >= 0.6
    assert get_iou(box, (0.13, 0.09, 0.98, 0.71)) > 0.9


def test_ssd_finds_bicycle_and_car_where_they_are(shared_models: Path) -> None:
    found = find(shared_models / "detection", SSD, shared_models / "images/dog_bicycle_car.jpg")
    assert get_iou(found["bicycle"][1], (0.21, 0.18, 0.75, 0.75)) > 0.9
    assert get_iou(found["car"][1], (0.14, 0.60, 0.30, 0.90)) > 0.9


def test_all_80_classes_of_ssd_get_the_right_label(shared_models: Path) -> None:
    terms = make_terms(shared_models / "detection", ModelSpec(stages=(SSD,)))
    names = (shared_models / "detection/coco80.names").read_text().split("\n")
    served = msgspec.structs.replace(SSD, labels=LabelSpec())  # as ServedModel does: the offset lies in the terms
    for name, number in zip(names[:80], COCO_NUMBERS, strict=True):
        outputs = {
            "TFLite_Detection_PostProcess": np.array([[[0.0, 0.0, 1.0, 1.0]]], np.float32),
            "TFLite_Detection_PostProcess:1": np.array([[number - 1]], np.float32),
            "TFLite_Detection_PostProcess:2": np.array([[0.9]], np.float32),
            "TFLite_Detection_PostProcess:3": np.array([1], np.float32),
        }
        answer = decode(served, outputs, Placement(0, 0, 1, 1, 10, 10), terms.labels[0])
        assert isinstance(answer, DetectionAnswer)
        assert [found.label for found in answer.objects] == [COCO_OTHER_NAMES.get(name, name)]


def test_labels_packed_in_the_model_are_those_of_the_file(shared_models: Path) -> None:
    packed = msgspec.structs.replace(SSD, labels=LabelSpec(packed="labelmap.txt", offset=1))
    folder = shared_models / "detection"
    assert make_terms(folder, ModelSpec(stages=(packed,))) == make_terms(folder, ModelSpec(stages=(SSD,)))


def test_an_offset_below_zero_leaves_the_first_classes_without_a_label(shared_models: Path) -> None:
    stage = msgspec.structs.replace(SSD, labels=LabelSpec(names=("a", "b"), offset=-2))
    assert make_terms(shared_models, ModelSpec(stages=(stage,))).labels == (("", "", "a", "b"),)


def test_tiny_yolov3_finds_dog_bicycle_and_truck(shared_models: Path) -> None:
    found = find(shared_models / "detection", YOLO, shared_models / "images/dog_bicycle_car.jpg")
    assert {"dog", "bicycle", "truck"} <= set(found)
    assert found["dog"][0] > 0.8
    assert get_iou(found["dog"][1], (0.36, 0.17, 0.94, 0.43)) > 0.8
    assert get_iou(found["bicycle"][1], (0.23, 0.06, 0.75, 0.75)) > 0.8


def test_tiny_yolov3_finds_person_dog_and_horse(shared_models: Path) -> None:
    found = find(shared_models / "detection", YOLO, shared_models / "images/person_dog_horse.jpg")
    assert {"dog", "person", "horse"} <= set(found)
    assert found["dog"][1][1] < found["person"][1][1] < found["horse"][1][1]


def test_both_detectors_agree_on_where_the_cat_is(shared_models: Path) -> None:
    picture = shared_models / "images/cat.jpg"
    ssd, yolo = (find(shared_models / "detection", stage, picture)["cat"][1] for stage in (SSD, YOLO))
    assert get_iou(ssd, yolo) > 0.8


def classify(folder: Path, stage: Stage, picture: bytes) -> list[str]:
    model, terms = load(folder, stage)
    answer = model.answer(picture, terms).answer
    assert isinstance(answer, ClassificationAnswer)
    return [one.label for one in answer.classes]


@pytest.mark.parametrize(
    ("stage", "picture", "labels"),
    [
        (IMAGENET_UINT8, "cat.jpg", {"Egyptian cat"}),
        (IMAGENET_UINT8, "bird.png", {"chickadee"}),
        (IMAGENET_UINT8, "grace_hopper.jpg", {"military uniform"}),
        (IMAGENET_QDQ, "cat.jpg", {"tabby, tabby cat", "Egyptian cat"}),
        (IMAGENET_QDQ, "bird.png", {"chickadee"}),
        (IMAGENET_QDQ, "grace_hopper.jpg", {"mortarboard"}),  # so says torchvision's own preprocessing as well
    ],
)
def test_imagenet_classifiers_name_what_is_there(
    shared_models: Path, stage: Stage, picture: str, labels: set[str]
) -> None:
    found = classify(shared_models / "classification", stage, (shared_models / "images" / picture).read_bytes())
    assert found[0] in labels


def test_the_small_quantised_classifier_is_dequantised(shared_models: Path) -> None:
    stage = msgspec.structs.replace(
        IMAGENET_UINT8,
        file="mobilenet_v1_0.25_128_quant.tflite",
        input=msgspec.structs.replace(IMAGENET_UINT8.input, width=128, height=128),
    )
    model, terms = load(shared_models / "classification", stage)
    answer = model.answer((shared_models / "images/bird.png").read_bytes(), terms).answer
    assert isinstance(answer, ClassificationAnswer)
    assert answer.classes[0].label == "chickadee"
    assert answer.classes[0].score == pytest.approx(105 / 256, abs=0.06)


def test_mnist_reads_a_nine(shared_models: Path) -> None:
    picture = (shared_models / "images/mnist_nine.png").read_bytes()
    assert classify(shared_models / "classification", MNIST, picture)[0] == "9"


def test_decoding_a_large_jpeg_smaller_finds_the_same(shared_models: Path) -> None:
    spec = ModelSpec(stages=(SSD,))
    folder, data = shared_models / "detection", (shared_models / "images/cat.jpg").read_bytes()
    terms = make_terms(folder, spec)
    boxes = []
    for scale in (True, False):
        model = load_served(folder, spec, ONE, PictureSettings(PictureLimits(), scale_jpeg=scale))
        served = model.answer(data, terms)
        assert isinstance(served.answer, DetectionAnswer)
        assert (served.width, served.height) == (1280, 720)
        boxes.append(served.answer.objects[0].box)
    assert get_iou(*boxes) > 0.95


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"width": 320}, "300"),
        ({"width": 150, "height": 600}, "300"),
        ({"dtype": "float32"}, "uint8"),
        ({"layout": "nchw"}, "3, 300, 300"),
        ({"colour": "grey"}, "300, 300, 1"),
        ({"tensor": "other"}, "other"),
        ({"size_tensor": "image_shape"}, "image_shape"),
    ],
)
def test_a_spec_that_does_not_fit_the_model_is_found_when_loading(
    shared_models: Path, changed: dict[str, object], says: str
) -> None:
    stage = msgspec.structs.replace(SSD, input=msgspec.structs.replace(SSD.input, **changed))
    with pytest.raises(ModelUnsupported, match=says):
        load(shared_models / "detection", stage)


def test_outputs_of_another_family_are_found_when_answering(shared_models: Path) -> None:
    stage = msgspec.structs.replace(SSD, answer=MNIST.answer)
    model, terms = load(shared_models / "detection", stage)
    with pytest.raises(ModelUnsupported, match="scores"):
        model.answer(make_picture("red"), terms)


def test_stages_that_are_no_known_pipeline_are_refused(shared_models: Path) -> None:
    with pytest.raises(ModelUnsupported, match="ssd -> ssd"):
        load_served(shared_models / "detection", ModelSpec(stages=(SSD, SSD)), ONE, PICTURES)


def test_a_lone_stage_that_sees_no_picture_is_refused(shared_models: Path) -> None:
    stage = msgspec.structs.replace(SSD, input=None)
    with pytest.raises(ModelUnsupported, match="picture input"):
        load_served(shared_models / "detection", ModelSpec(stages=(stage,)), ONE, PICTURES)


DETECTORS = ["detector.onnx", "detector-fp32.tflite", "detector-fp16.tflite", "detector-int8.tflite"]


def make_golden_inputs(folder: Path) -> tuple[GoldenInput, ...]:
    found = []
    for path in sorted(folder.glob("*.jpg")):
        data = path.read_bytes()
        objects = json.loads(path.with_suffix(".json").read_text())["objects"]
        truth = tuple(TruthObject(label=each["label"], box=tuple(each["box"])) for each in objects)
        found.append(GoldenInput(Golden(input=str(Digest.of(data)), size=len(data), truth=truth), str(path)))
    return tuple(found)


def load_demo(folder: Path, file_name: str) -> tuple[ServedModel, Terms]:
    spec = make_spec(inspect_model(file_name, (folder / file_name).read_bytes()))
    return load_served(folder, spec, ONE, PICTURES), make_terms(folder, spec)


@pytest.mark.parametrize("file_name", DETECTORS)
@pytest.mark.parametrize(
    ("version", "golden", "holds"),
    [("1.0.0", "v1.0", True), ("1.1.0", "v1.1", True), ("1.2.0", "v1.1", True), ("1.3.0-bad", "v1.1", False)],
)
def test_our_detectors_hold_their_golden_truth_and_the_bad_one_does_not(
    demo_models: Path, file_name: str, version: str, golden: str, holds: bool
) -> None:
    model, terms = load_demo(demo_models / "detector" / version, file_name)
    model.warm_up()
    report = model.prove(terms, make_golden_inputs(demo_models / "golden" / golden))
    assert report.total > 5
    assert report.passed is holds, report.details


@pytest.mark.parametrize("version", ["1.0.0", "1.2.0"])
def test_our_detector_answers_alike_in_both_formats(demo_models: Path, version: str) -> None:
    folder = demo_models / "detector" / version
    picture = next(iter(sorted((demo_models / "scenes").glob("*.jpg")))).read_bytes()
    answers = []
    for file_name in ("detector.onnx", "detector-fp32.tflite"):
        model, terms = load_demo(folder, file_name)
        answer = model.answer(picture, terms).answer
        assert isinstance(answer, DetectionAnswer)
        answers.append(answer.objects)
    assert [found.label for found in answers[0]] == [found.label for found in answers[1]]
    for one, other in zip(*answers, strict=True):
        assert one.score == pytest.approx(other.score, abs=0.01)
        assert get_iou(one.box, other.box) > 0.98


def test_a_threshold_in_the_terms_is_the_one_that_counts(shared_models: Path) -> None:
    model, terms = load(shared_models / "detection", SSD)
    strict = Terms(labels=terms.labels, thresholds=(Thresholds(score=0.99),))
    answer = model.answer((shared_models / "images/cat.jpg").read_bytes(), strict).answer
    assert isinstance(answer, DetectionAnswer)
    assert answer.objects == ()
