"""docs/formats/score.md tells the truth: its examples are what the code makes, its table what errors become."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeferry import errors
from edgeferry.model.spec import ModelSpec
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.child import InferReply
from edgeferry.serve.formats.classic import make_classic
from edgeferry.serve.formats.lva import make_lva
from edgeferry.serve.formats.predict import make_predict
from edgeferry.serve.formats.score import make_score
from edgeferry.serve.infer import Inference
from edgeferry.serve.slot import NOT_READY_MESSAGE
from edgeferry.serve.statuses import get_status, make_error_response
from edgeferry.vision.answer import (
    DetectionAnswer,
    FoundObject,
    MaskClass,
    PictureAnswer,
    Point,
    PoseAnswer,
    SegmentationAnswer,
)

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "formats" / "score.md").read_text()
CAT = DetectionAnswer(
    objects=(FoundObject(class_index=16, label="cat", score=0.71875, box=(0.125, 0.0625, 0.96875, 0.75)),)
)

PNG = b"\x89PNG\r\n\x1a\n"
OTHERS = {
    "predict pose": PoseAnswer(
        objects=(
            FoundObject(
                class_index=0,
                label="person",
                score=0.75,
                box=(0.25, 0.25, 0.875, 0.5),
                points=(Point(name="nose", x=0.375, y=0.25, score=0.875),),
            ),
        )
    ),
    "predict segmentation": SegmentationAnswer(
        width=4,
        height=2,
        classes=(
            MaskClass(class_index=0, label="background", share=0.625, box=(0.0, 0.0, 1.0, 1.0)),
            MaskClass(class_index=8, label="cat", share=0.375, box=(0.0, 0.5, 1.0, 1.0)),
        ),
        runs=((0, 2), (8, 2), (0, 3), (8, 1)),
        png=PNG,
    ),
    "predict image": PictureAnswer(width=672, height=378, png=PNG),
}


def _predict() -> Any:
    version = StoredVersion("detector", "1.1.0", "i", Path("/nowhere"), ModelSpec(stages=()))
    return make_predict(Inference(version, InferReply(CAT, 640, 480, {"infer": 9.8}), queue_ms=0.1, total_ms=12.5))


def _make(name: str) -> Any:
    if name == "error":
        return json.loads(bytes(make_error_response(errors.ModelNotReady(NOT_READY_MESSAGE)).body))
    if name.startswith("classic"):
        return make_classic(CAT, width=640, height=480, in_pixels=name.endswith("onnx"))
    if name in OTHERS:
        return msgspec.to_builtins(OTHERS[name])
    made = {"default": make_score, "lva": make_lva}
    return msgspec.to_builtins(made[name](CAT) if name in made else _predict())


@pytest.mark.parametrize("name", ["default", "classic tflite", "classic onnx", "lva", "predict", *OTHERS, "error"])
def test_each_example_is_what_the_code_makes(name: str) -> None:
    (example,) = re.findall(rf"^```json {name}$\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert json.loads(example) == json.loads(json.dumps(_make(name)))


def test_the_table_of_errors_is_true() -> None:
    rows = re.findall(r"^\| (\d[^|]*) \| (.*) \|$", TEXT, re.MULTILINE)
    statuses = {leaf.code: str(get_status(leaf)) for leaf in errors.find_leaves()}
    listed = [(status, code) for status, codes in rows for code in re.findall(r"`([a-z_]+)`", codes)]
    assert len(listed) >= 15
    assert all(statuses[code] in status for status, code in listed)
