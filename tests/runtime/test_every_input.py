"""Every way to take a picture, on both engines: layout, colours, dtypes, and sides that the graph leaves open."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import ModelSpec
from edgeferry.runtime.open import open_session
from edgeferry.runtime.served import PictureSettings, load_served, make_terms
from edgeferry.runtime.session import EngineSettings
from edgeferry.vision.answer import ClassificationAnswer
from edgeferry.vision.image import PictureLimits
from runtime.every_input import HEIGHT, WIDTH, Kind, expect, make_litert, make_onnx

ONNX_KINDS = [
    Kind(*kind) for kind in product(("nchw", "nhwc"), ("rgb", "bgr", "grey"), ("uint8", "int8", "float16", "float32"))
] + [
    Kind(layout, "bgr", dtype, leaves_open)
    for layout, dtype, leaves_open in product(("nchw", "nhwc"), ("uint8", "float32"), ("n", "hw", "nhw"))
]
LITERT_KINDS = [Kind("nhwc", *kind) for kind in product(("rgb", "bgr", "grey"), ("uint8", "int8", "float32"))] + [
    Kind("nhwc", "rgb", dtype, leaves_open) for dtype, leaves_open in product(("uint8", "float32"), ("n", "hw", "nhw"))
]
FILES = [("m.onnx", make_onnx, kind) for kind in ONNX_KINDS] + [
    ("m.tflite", make_litert, kind) for kind in LITERT_KINDS
]
ROUNDING = {"uint8": 0.003, "int8": 0.003, "float16": 0.001, "float32": 0.002}
"""Half a step of the quantisation; of floats: grey is rounded to whole pixel values first."""


@pytest.mark.parametrize(("file", "make", "kind"), FILES, ids=[f"{file}-{kind}" for file, _, kind in FILES])
def test_a_model_sees_the_picture_as_its_spec_says(tmp_path: Path, file: str, make: object, kind: Kind) -> None:
    assert callable(make)
    (tmp_path / file).write_bytes(make(kind))
    spec = ModelSpec(stages=(kind.make_stage(file),))
    model = load_served(tmp_path, spec, EngineSettings(), PictureSettings(PictureLimits()))
    model.warm_up()
    pixels = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    answer = model.answer(stream.getvalue(), make_terms(tmp_path, spec)).answer
    assert isinstance(answer, ClassificationAnswer)
    seen = [one.score for one in sorted(answer.classes, key=lambda one: one.class_index)]
    assert seen == pytest.approx(expect(kind, pixels), abs=ROUNDING[kind.dtype])


def test_a_litert_model_with_open_sides_takes_one_size_after_another(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(make_litert(Kind("nhwc", "rgb", "float32", "nhw")))
    session = open_session(tmp_path / "m.tflite", EngineSettings(concurrency=2))
    for height, width in ((4, 6), (2, 3), (8, 5), (8, 5)):
        picture = np.random.default_rng(width).random((1, height, width, 3), np.float32)
        (scores,) = session.run({"picture": picture}).values()
        assert scores[0] == pytest.approx(picture.mean(axis=1).reshape(-1), abs=1e-6)


def test_a_side_that_is_not_open_is_refused_and_the_session_serves_on(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(make_litert(Kind("nhwc", "rgb", "float32", "hw")))
    session = open_session(tmp_path / "m.tflite", EngineSettings())
    good = np.zeros((1, 4, 6, 3), np.float32)
    for bad in (np.zeros((1, 4, 6, 4), np.float32), np.zeros((2, 4, 6, 3), np.float32), np.zeros((4, 6), np.float32)):
        session.run({"picture": good})
        with pytest.raises(ModelUnsupported):
            session.run({"picture": bad})
    assert session.run({"picture": good})
