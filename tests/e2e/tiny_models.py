"""Tiny ONNX models, made here, whose right answers are known by construction; and bundles of them."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

QUADRANTS = ("top_left", "top_right", "bottom_left", "bottom_right")
ORDERS = [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)]
"""Of class numbers: four bundles whose labels must never be mixed."""
_QUADRANT_SPEC = """
task = "classification"
[input]
mean = [0.0]
std = [255.0]
fit = "stretch"
[thresholds]
score = 0.0
"""


def make_zip(files: Mapping[str, bytes]) -> bytes:
    """The same files give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in files.items():
            bundle.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def get_md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def make_quadrant_model(
    order: Sequence[int] = (0, 1, 2, 3), *, width: int = 64, height: int = 32, ballast_bytes: int = 0
) -> bytes:
    """Says which quadrant of the picture is bright. Class `order[i]` is quadrant i; `ballast_bytes` make it larger."""
    noise = np.random.default_rng(7).random(max(1, ballast_bytes // 4), np.float32)
    weights = [
        numpy_helper.from_array(np.array([1, 4], np.int64), "row"),
        numpy_helper.from_array(np.argsort(order).astype(np.int64), "order"),
        numpy_helper.from_array(np.array(12.0, np.float32), "steep"),
        numpy_helper.from_array(noise, "ballast"),
    ]
    half = [height // 2, width // 2]
    nodes = [
        helper.make_node("AveragePool", ["picture"], ["pooled"], kernel_shape=half, strides=half),
        helper.make_node("ReduceMean", ["pooled"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Reshape", ["grey", "row"], ["quadrants"]),
        helper.make_node("Gather", ["quadrants", "order"], ["ordered"], axis=1),
        helper.make_node("Mul", ["ordered", "steep"], ["steeper"]),
        helper.make_node("ReduceMax", ["ballast"], ["shift"], keepdims=0),  # softmax does not see a shift
        helper.make_node("Add", ["steeper", "shift"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, height, width])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 4])]
    return make_graph_model(nodes, inputs, outputs, weights)


def make_quadrant_bundle(
    order: Sequence[int] = (0, 1, 2, 3), *, labels: Sequence[str] = (), ballast_bytes: int = 0
) -> bytes:
    """A ZIP with the model and the labels that go with its order: whoever mixes two bundles answers wrongly."""
    labels = labels or [QUADRANTS[list(order).index(index)] for index in range(4)]
    return make_zip(
        {
            "quadrants.onnx": make_quadrant_model(order, ballast_bytes=ballast_bytes),
            "labels.txt": "\n".join(labels).encode(),
            "spec.toml": _QUADRANT_SPEC.encode(),
        }
    )


def make_quadrant_picture(bright: int, size: tuple[int, int] = (120, 80)) -> Image.Image:
    """An RGB picture, black but for quadrant `bright`."""
    width, height = size
    picture = Image.new("RGB", size)
    left, top = (bright % 2) * width // 2, (bright // 2) * height // 2
    picture.paste((255, 255, 255), (left, top, left + width // 2, top + height // 2))
    return picture


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def make_ssd_model(
    classes: Sequence[int], *, order: Sequence[str] = ("boxes", "classes", "scores", "count")
) -> tuple[bytes, list[float]]:
    """A detector that finds one object of each of `classes` in any picture, at (0.1, 0.2, 0.5, 0.9).

    Its outputs stand in the given order under names that tell nothing. Returns the model and the scores.
    """
    count = len(classes)
    scores = np.linspace(0.99, 0.6, count, dtype=np.float32)
    values = {
        "boxes": np.tile(np.array([0.1, 0.2, 0.5, 0.9], np.float32), (1, count, 1)),
        "classes": np.array([classes], np.float32),
        "scores": scores[None],
        "count": np.array([count], np.float32),
    }
    weights = [numpy_helper.from_array(value, f"fixed_{role}") for role, value in values.items()]
    weights.append(numpy_helper.from_array(np.array(0.0, np.float32), "nothing"))
    nodes = [
        helper.make_node("Cast", ["picture"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["grey"], keepdims=0),
        helper.make_node("Mul", ["grey", "nothing"], ["zero"]),
    ]
    names = dict(zip(order, "abcd", strict=True))
    nodes += [helper.make_node("Add", [f"fixed_{role}", "zero"], [names[role]]) for role in order]
    inputs = [helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, 8, 8, 3])]
    outputs = [helper.make_tensor_value_info(names[role], TensorProto.FLOAT, values[role].shape) for role in order]
    return make_graph_model(nodes, inputs, outputs, weights), [float(score) for score in scores]


_SSD_SPEC = """
task = "detection"
[input]
fit = "stretch"
[answer]
family = "ssd"
[labels]
offset = 1
"""


def make_ssd_bundle(model: bytes, labels: bytes) -> bytes:
    return make_zip({"ssd.onnx": model, "labelmap.txt": labels, "spec.toml": _SSD_SPEC.encode()})


def make_graph_model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
) -> bytes:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def make_model(nodes: Sequence[onnx.NodeProto]) -> bytes:
    """A classifier of four classes whose last steps are `nodes`: from "grey" [1, 1, 2, 2] to "probabilities".

    Not checked: it is well-formed, and may still be one that no engine loads, or runs.
    """
    first = [
        helper.make_node("AveragePool", ["picture"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("ReduceMean", ["pooled"], ["grey"], axes=[1], keepdims=1),
    ]
    inputs = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 4])]
    weights = [numpy_helper.from_array(np.array([1, 7], np.int64), "wrong")]
    graph = helper.make_graph([*first, *nodes], "tiny", inputs, outputs, weights)
    domains = sorted({"", *(node.domain for node in nodes)})
    opsets = [helper.make_opsetid(domain, 13 if not domain else 1) for domain in domains]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def write_odd_model(folder: Path, shape: Sequence[int] = (5,)) -> Path:
    """A model that no family fits: five numbers in, their double out."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("numbers", "doubled")]
    graph = helper.make_graph([helper.make_node("Add", ["numbers", "numbers"], ["doubled"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    (folder / "odd.onnx").write_bytes(model.SerializeToString())
    return folder / "odd.onnx"
