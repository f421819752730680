"""Writes networks as ONNX: layers, then the answer (detections or class probabilities), then metadata.

Leaves the weights to `layers.py` and the meaning of the metadata keys to `models/README.md`.

Rules:
- Opset 17, IR 9: read by every ONNX Runtime since 1.14.
- The same layers give the same bytes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from models.spec import CELLS, NMS_IOU, PRIOR, SCORE_FLOOR, Card, make_priors, make_properties
from models.train.layers import INPUT, Add, Conv, Layer, Mean, Upsample

MOST_DETECTIONS = 100


class OnnxGraph:
    """Collects nodes and constants; every node has one output, named like the node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: ArrayLike) -> str:
        # numpy.ascontiguousarray would turn scalars into vectors and change the rank of Gather's answer.
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def layer(self, layer: Layer) -> None:
        match layer:
            case Conv():
                self._conv(layer)
            case Add(name, left, right):
                self.node("Add", [left, right], name)
            case Upsample(name, source):
                scales = self.constant("upsample.scales", np.array([1, 1, 2, 2], np.float32))
                how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
                self.node("Resize", [source, "", scales], name, **how)
            case Mean(name, source):
                self.node("GlobalAveragePool", [source], name)

    def _conv(self, conv: Conv) -> None:
        weight = self.constant(f"{conv.name}.weight", conv.weight)
        bias = self.constant(f"{conv.name}.bias", conv.bias)
        kernel = conv.weight.shape[2]
        shape = {"kernel_shape": [kernel] * 2, "strides": [conv.stride] * 2, "pads": [kernel // 2] * 4}
        group = len(conv.weight) if conv.depthwise else 1
        target = f"{conv.name}.linear" if conv.relu6 else conv.name
        self.node("Conv", [conv.source, weight, bias], target, group=group, **shape)
        if conv.relu6:
            limits = [self.constant("relu6.low", np.float32(0)), self.constant("relu6.high", np.float32(6))]
            self.node("Clip", [target, *limits], conv.name)

    def ints(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))


def write_detector(path: Path, layers: list[Layer], card: Card) -> None:
    """Writes a detector whose outputs are boxes [n, 4], scores [n] and classes [n], best first, n <= 100."""
    graph = OnnxGraph()
    for layer in layers:
        graph.layer(layer)
    classes = len(card.labels)
    flat = graph.node("Reshape", ["cls", graph.ints("cls.shape", 1, classes, CELLS)], "cls.flat")
    scores = graph.node("Sigmoid", [flat], "class_scores")
    _select(graph, _decode(graph), scores)
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("classes", TensorProto.INT64, ["n"]),
    ]
    _write(path, graph, outputs, card)


def write_classifier(path: Path, layers: list[Layer], card: Card) -> None:
    """Writes a classifier whose output is probabilities [1, classes]."""
    graph = OnnxGraph()
    for layer in layers:
        graph.layer(layer)
    flat = graph.node("Flatten", [layers[-1].name], "logits", axis=1)
    graph.node("Softmax", [flat], "probabilities", axis=1)
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, len(card.labels)])]
    _write(path, graph, outputs, card)


def _decode(graph: OnnxGraph) -> str:
    """Box encodings -> all_boxes [1, CELLS, 4] (top, left, bottom, right), as `net.decode` does."""
    flat = graph.node("Reshape", ["box", graph.ints("box.shape", 1, 4, CELLS)], "box.flat")
    rows = graph.node("Transpose", [flat], "box.rows", perm=[0, 2, 1])
    ends = {side: graph.ints(f"slice.{side}", side) for side in (0, 2, 4)}
    axis = graph.ints("slice.axis", 2)
    shift = graph.node("Slice", [rows, ends[0], ends[2], axis], "box.shift")
    scale = graph.node("Slice", [rows, ends[2], ends[4], axis], "box.scale")
    prior = graph.constant("prior.side", np.float32(PRIOR))
    moved = graph.node("Mul", [shift, prior], "box.moved")
    centre = graph.node("Add", [moved, graph.constant("prior.centres", make_priors()[None, :, :2])], "box.centre")
    limits = [graph.constant("scale.low", np.float32(-5)), graph.constant("scale.high", np.float32(3))]
    grown = graph.node("Exp", [graph.node("Clip", [scale, *limits], "box.clipped")], "box.grown")
    half = graph.node("Mul", [grown, graph.constant("prior.half", np.float32(PRIOR / 2))], "box.half")
    low, high = graph.node("Sub", [centre, half], "box.low"), graph.node("Add", [centre, half], "box.high")
    return graph.node("Concat", [low, high], "all_boxes", axis=2)


def _select(graph: OnnxGraph, boxes: str, scores: str) -> None:
    """Class-wise suppression, then the best `MOST_DETECTIONS`, best first."""
    limits = [
        graph.ints("nms.per_class", MOST_DETECTIONS),
        graph.constant("nms.iou", np.array([NMS_IOU], np.float32)),
        graph.constant("nms.score", np.array([SCORE_FLOOR], np.float32)),
    ]
    chosen = graph.node("NonMaxSuppression", [boxes, scores, *limits], "chosen")  # rows of picture, class, cell
    one, two = graph.constant("column.class", np.int64(1)), graph.constant("column.cell", np.int64(2))
    labels = graph.node("Gather", [chosen, one], "chosen.class", axis=1)
    cells = graph.node("Gather", [chosen, two], "chosen.cell", axis=1)
    values = graph.node("GatherND", [scores, chosen], "chosen.score")
    size = graph.node("Shape", [values], "chosen.count")
    most = graph.node("Min", [size, graph.ints("most", MOST_DETECTIONS)], "kept.count")
    graph.nodes.append(helper.make_node("TopK", [values, most], ["scores", "order"], name="best_first"))
    graph.node("Gather", [labels, "order"], "classes", axis=0)
    rows = graph.node("Gather", [cells, "order"], "kept.cell", axis=0)
    picture = graph.node("Squeeze", [boxes, graph.ints("first.axis", 0)], "picture.boxes")
    kept = graph.node("Gather", [picture, rows], "kept.boxes", axis=0)
    edges = [graph.constant("edge.low", np.float32(0)), graph.constant("edge.high", np.float32(1))]
    graph.node("Clip", [kept, *edges], "boxes")


def _write(path: Path, graph: OnnxGraph, outputs: list[onnx.ValueInfoProto], card: Card) -> None:
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, 3, card.side_px, card.side_px])]
    body = helper.make_graph(graph.nodes, card.name, inputs, outputs, list(graph.constants.values()))
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(body, opset_imports=opset, ir_version=9, producer_name="edgeferry demo models")
    helper.set_model_props(model, make_properties(card))
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
