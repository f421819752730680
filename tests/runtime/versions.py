"""Versions as they lie on a device, made by hand from real models in place."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from edgeferry.model.manifest import Golden, TruthObject
from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, ModelSpec, Stage, Thresholds
from edgeferry.model.stored import GoldenFile, StoredVersion

MakeVersion = Callable[..., StoredVersion]

SSD = Stage(
    file="ssd_mobilenet_v1_1_metadata_1.tflite",
    task="detection",
    input=InputSpec(width=300, height=300, layout="nhwc", dtype="uint8"),
    answer=AnswerSpec(family="ssd"),
    labels=LabelSpec(file="labelmap.txt", offset=1),
)
YOLO = Stage(
    file="tiny_yolov3_interface_standin.onnx",
    task="detection",
    input=InputSpec(
        width=416,
        height=416,
        layout="nchw",
        dtype="float32",
        std=(255.0,),
        fit="letterbox",
        pad=128,
        resample="bicubic",
        tensor="input_1",
        size_tensor="image_shape",
    ),
    answer=AnswerSpec(family="tiny_yolov3"),
    labels=LabelSpec(file="coco80.names"),
)
IMAGENET_UINT8 = Stage(
    file="mobilenet_v2_1.0_224_quant.tflite",
    task="classification",
    input=InputSpec(width=224, height=224, layout="nhwc", dtype="uint8"),
    answer=AnswerSpec(family="classification"),
    labels=LabelSpec(file="imagenet_labels.txt"),
    thresholds=Thresholds(score=0.1),
)
IMAGENET_QDQ = Stage(
    file="mobilenet_v2_int8.onnx",
    task="classification",
    input=InputSpec(
        width=224,
        height=224,
        layout="nchw",
        dtype="float32",
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        fit="crop",
        resize_to=256,
    ),
    answer=AnswerSpec(family="classification"),
    labels=LabelSpec(file="imagenet_labels.txt", offset=1),
    thresholds=Thresholds(score=0.0),
)
MNIST = Stage(
    file="mnist-8.onnx",
    task="classification",
    input=InputSpec(width=28, height=28, layout="nchw", colour="grey", dtype="float32"),
    answer=AnswerSpec(family="classification"),
    labels=LabelSpec(names=tuple("0123456789")),
)

COCO_NUMBERS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
"""Of COCO's 80 objects among its 90 categories (annotations of 2017); SSD classes are these - 1."""
COCO_OTHER_NAMES = {
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant",
    "diningtable": "dining table", "tvmonitor": "tv",
}  # fmt: skip


def make_version(folder: Path, stage: Stage, *golden: GoldenFile) -> StoredVersion:
    """A version whose files lie in `folder`."""
    return StoredVersion("model", "1.0.0", "sha256:" + "0" * 64, folder, ModelSpec(stages=(stage,)), golden)


def make_picture(colour: str, side: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(stream, "PNG")
    return stream.getvalue()


def make_golden_file(folder: Path, picture: bytes, *labels: str) -> GoldenFile:
    """A golden sample of a classified picture."""
    hex_digest = hashlib.sha256(picture).hexdigest()
    path = folder / hex_digest
    path.write_bytes(picture)
    truth = tuple(TruthObject(label=label) for label in labels)
    return GoldenFile(Golden(input=f"sha256:{hex_digest}", size=len(picture), truth=truth), path)
