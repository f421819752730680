"""A desk over an empty repository in a folder, and requests to publish."""

from __future__ import annotations

import datetime as dt
import io
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeferry.publish.publisher import Request
from edgeferry.storage.blob_store import open_blob_store
from edgeferry.trust.keys import KeyFolder
from edgeferry.trust.signer import Desk, init_repository

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
LABELS = b"high\nlow\nnormal\n"
SPEC = """
task = "classification"
[input]
width = 32
height = 32
mean = [0.0]
std = [255.0]
fit = "stretch"
[answer]
family = "classification"
"""


def make_model(seed: int = 1, classes: int = 3, *, changed: int = 0) -> bytes:
    """A little classifier: one dense layer over a 32 x 32 picture; its first `changed` rows were trained further."""
    weights = np.random.default_rng(seed).normal(size=(3 * 32 * 32, classes)).astype(np.float32)
    weights[:changed] += np.random.default_rng(changed).normal(size=(changed, classes)).astype(np.float32) / 16
    shape = numpy_helper.from_array(np.array([1, -1], np.int64), "shape")
    nodes = [
        helper.make_node("Reshape", ["pixels", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 32, 32])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, classes])
    weight = numpy_helper.from_array(weights, "weights")
    graph = helper.make_graph(nodes, "gauge", [pixels], [scores], [weight, shape])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString())


def make_picture(grey: int = 128) -> bytes:
    """A little grey PNG."""
    stream = io.BytesIO()
    Image.new("L", (32, 32), grey).save(stream, "PNG")
    return stream.getvalue()


def make_desk(folder: Path, url: str = "", environ: dict[str, str] | None = None) -> Desk:
    desk = Desk(open_blob_store(url or str(folder / "repo"), environ or {}), KeyFolder(folder / "keys"), NOW)
    init_repository(desk)
    return desk


def make_request(version: str = "1.0.0", **changes: object) -> Request:
    terms: dict[str, object] = {
        "model": "gauge",
        "version": version,
        "model_file": "gauge.onnx",
        "model_data": make_model(),
        "labels_file": "labels.txt",
        "labels_data": LABELS,
        "spec_text": SPEC,
    }
    return Request(**(terms | changes))  # type: ignore[arg-type]


def say_nothing(text: str) -> None:
    """Nobody listens."""
