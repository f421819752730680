"""Twelve megapixels decoded at a smaller scale find what a full decode finds.

The photos are enlarged to 4000 x 3000 or its like, with noise: at least 90 % of the boxes that a full decode answers
must be found again (same label, IoU above 0.5), and no score of these may move by more than 0.15.
"""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgeferry.model.inspect import inspect_model, make_spec
from edgeferry.model.labels import read_labels
from edgeferry.model.spec import LabelSpec, ModelSpec, Stage
from edgeferry.runtime.served import PictureSettings, load_served, make_terms
from edgeferry.runtime.session import EngineSettings
from edgeferry.vision.answer import FoundObject, list_objects
from edgeferry.vision.golden import get_iou
from edgeferry.vision.image import PictureLimits, read_picture
from edgeferry.vision.preprocess import get_enough
from runtime.versions import SSD, YOLO

pytestmark = pytest.mark.needs_shared

PHOTOS = ("cat.jpg", "dog_bicycle_car.jpg", "person_dog_horse.jpg")
PIXELS = 12_000_000
NOISE = 16
"""Of each pixel: an enlarged photo has no detail of its own, and smooth pictures would forgive any filter."""
LEAST_KEPT = 0.9
MOST_SHIFT = 0.15


@pytest.fixture(scope="module")
def pictures(shared_models: Path) -> list[bytes]:
    """The photos as JPEGs of twelve megapixels."""
    return [enlarge(shared_models / "images" / name) for name in PHOTOS]


def enlarge(path: Path) -> bytes:
    image = Image.open(path).convert("RGB")
    factor = (PIXELS / (image.width * image.height)) ** 0.5
    stream = io.BytesIO()
    size = (round(image.width * factor), round(image.height * factor))
    smooth = np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.int16)
    noise = np.random.default_rng(1).integers(-NOISE, NOISE + 1, smooth.shape, np.int16)
    Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def draft(path: Path, names: Path) -> Stage:
    """The stage of a model that tells all of itself but its labels."""
    lines = read_labels(names.read_bytes())
    (stage,) = make_spec(inspect_model(path.name, path.read_bytes()), labels=lines, labels_file=names.name).stages
    return msgspec.structs.replace(stage, labels=LabelSpec(names=lines, offset=stage.labels.offset))


def ask(folder: Path, stage: Stage, pictures: list[bytes], *, scale: bool) -> list[tuple[FoundObject, ...]]:
    assert stage.input is not None
    changed = msgspec.structs.replace(stage, input=msgspec.structs.replace(stage.input, scale_jpeg=scale))
    spec = ModelSpec(stages=(changed,))
    model = load_served(folder, spec, EngineSettings(), PictureSettings(PictureLimits()))
    terms = make_terms(folder, spec)
    return [list_objects(model.answer(data, terms).answer) for data in pictures]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("detection/ssd_mobilenet_v1_1_metadata_1.tflite", "labelmap.txt"),
        ("detection/tiny_yolov3_interface_standin.onnx", "coco80.names"),
        ("detection/yolox_nano.onnx", "coco80.names"),
        ("pairs/fastestdet_fp32_retrain/v2.onnx", "coco80.names"),
    ],
)
def test_decoding_at_a_smaller_scale_keeps_boxes_and_scores(
    shared_models: Path, pictures: list[bytes], model: str, names: str
) -> None:
    path = shared_models / model
    stage = draft(path, shared_models / "detection" / names)
    full, scaled = (ask(path.parent, stage, pictures, scale=scale) for scale in (False, True))
    shifts = []
    for wanted, found in zip(full, scaled, strict=True):
        for one in wanted:
            alike = [other for other in found if other.label == one.label and get_iou(one.box, other.box) > 0.5]
            shifts += [min(abs(one.score - other.score) for other in alike)] if alike else []
    total = sum(map(len, full))
    assert total >= 6
    assert len(shifts) >= LEAST_KEPT * total
    assert max(shifts) <= MOST_SHIFT
    assert full != scaled  # or the switch switches nothing


def test_a_smaller_scale_still_has_the_pixels_that_the_model_wants(pictures: list[bytes]) -> None:
    for stage in (SSD, YOLO):
        assert stage.input is not None
        enough = get_enough(stage.input)
        for data in pictures:
            picture = read_picture(data, enough=enough)
            height, width = picture.pixels.shape[:2]
            assert enough[0] <= width < picture.width / 2 and enough[1] <= height < picture.height / 2
            assert picture.width * picture.height == pytest.approx(PIXELS, rel=0.01)
