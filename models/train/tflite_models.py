"""Assembles the demo models as TFLite files: input, layers, answer, metadata, packed labels."""

from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

from models.spec import CELLS, NMS_IOU, SCORE_FLOOR, Card, make_priors
from models.train.layers import INPUT, Layer, Ranges
from models.train.tflite_metadata import LABELS_FILE, make_classifier_metadata, make_detector_metadata
from models.train.tflite_writer import OP, OPTIONS, TYPE, Mode, TfliteGraph, pack_files

MOST_DETECTIONS = 25
DESCRIPTION = "edgeferry demo model"


def write_detector(path: Path, layers: list[Layer], card: Card, *, mode: Mode, ranges: Ranges) -> None:
    """Writes a detector with the four outputs of TFLite_Detection_PostProcess; int8 takes uint8 pixels."""
    graph, source = _start(layers, card, mode, ranges)
    classes = len(card.labels)
    logits = graph.reshape("cls.flat", graph.index["cls"], [1, CELLS, classes])
    scores = graph.dequantize("scores", graph.logistic("cls.scores", logits))
    encodings = graph.reshape("box.flat", graph.index["box"], [1, CELLS, 4])
    anchors = graph.constant("anchors", make_priors())
    inputs = [graph.dequantize("encodings", encodings), scores, anchors]
    answers = graph.postprocess(inputs, _make_settings(classes))
    outputs = dict(zip(["boxes", "classes", "scores", "num"], answers, strict=True))
    metadata = make_detector_metadata(card.name, card.version, card.side_px)
    flat = graph.finish({"image": source}, outputs, metadata=metadata, description=DESCRIPTION)
    _write(path, flat, card)


def write_classifier(path: Path, layers: list[Layer], card: Card, *, mode: Mode, ranges: Ranges) -> None:
    """Writes a classifier with one output of probabilities; int8 takes uint8 pixels."""
    graph, source = _start(layers, card, mode, ranges)
    logits = graph.reshape("logits", graph.index[layers[-1].name], [1, len(card.labels)])
    answer = graph.dequantize("probabilities", graph.softmax("softmax", logits))
    metadata = make_classifier_metadata(card.name, card.version, card.side_px)
    flat = graph.finish({"image": source}, {"probabilities": answer}, metadata=metadata, description=DESCRIPTION)
    _write(path, flat, card)


def _start(layers: list[Layer], card: Card, mode: Mode, ranges: Ranges) -> tuple[TfliteGraph, int]:
    """Returns a graph that holds the layers, and its input tensor."""
    graph, shape = TfliteGraph(mode, ranges), [1, card.side_px, card.side_px, 3]
    if mode == "int8":
        source = graph.tensor("pixels", shape, TYPE.UINT8, scale=(1 / 255, 0))
        whole = graph.tensor(INPUT, shape, TYPE.INT8, scale=(1 / 255, -128))
        graph.operator(OP.QUANTIZE, [source], [whole], (schema.QuantizeOptionsT(), OPTIONS.QuantizeOptions))
    else:
        source = graph.tensor(INPUT, shape, TYPE.FLOAT32)
    for layer in layers:
        graph.layer(layer)
    return graph, source


def _make_settings(classes: int) -> dict[str, int | float | bool]:
    """Settings of the post-process operator. It has no background class: scores have exactly `classes` columns."""
    return {
        "max_detections": MOST_DETECTIONS,
        "max_classes_per_detection": 1,
        "detections_per_class": 100,
        "use_regular_nms": True,
        "nms_score_threshold": SCORE_FLOOR,
        "nms_iou_threshold": NMS_IOU,
        "num_classes": classes,
        "y_scale": 1.0,
        "x_scale": 1.0,
        "h_scale": 1.0,
        "w_scale": 1.0,
    }


def _write(path: Path, model: bytes, card: Card) -> None:
    """Writes the flatbuffer with its labels packed behind it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack_files(model, {LABELS_FILE: "".join(f"{label}\n" for label in card.labels).encode()}))
