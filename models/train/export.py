"""Turns trained networks into the committed files: ONNX, LiteRT fp32, fp16 and int8, labels.txt."""

from collections.abc import Iterator
from pathlib import Path

from models.spec import Card, make_detector_card, make_gauge_card
from models.train import gauge, gauge_pictures, onnx_writer, tflite_models
from models.train.dataset import make_scene_set
from models.train.fit import to_tensor
from models.train.layers import (
    INPUT,
    Add,
    Layer,
    Upsample,
    calibrate,
    fold_block,
    fold_plain,
    fold_residual,
    fold_stage,
    get_chain,
)
from models.train.net import Detector

CALIBRATION_PICTURES = 60


def export_detector(folder: Path, version: str, net: Detector) -> None:
    """Writes detector.onnx, detector-{fp32,fp16,int8}.tflite and labels.txt."""
    card, layers = make_detector_card(version), list(fold_detector(net))
    onnx_writer.write_detector(folder / "detector.onnx", layers, card)
    ranges = calibrate(layers, to_tensor(make_scene_set("calibrate", CALIBRATION_PICTURES).pixels))
    for mode in ("fp32", "fp16", "int8"):
        tflite_models.write_detector(folder / f"detector-{mode}.tflite", layers, card, mode=mode, ranges=ranges)
    _write_labels(folder, card)


def export_gauge(folder: Path, net: gauge.GaugeNet) -> None:
    """Writes gauge.onnx, gauge-{fp32,int8}.tflite and labels.txt."""
    card, layers = make_gauge_card(), gauge.fold_gauge(net)
    onnx_writer.write_classifier(folder / "gauge.onnx", layers, card)
    ranges = calibrate(layers, to_tensor(gauge_pictures.make_gauge_set("calibrate", CALIBRATION_PICTURES).pixels))
    for mode in ("fp32", "int8"):
        tflite_models.write_classifier(folder / f"gauge-{mode}.tflite", layers, card, mode=mode, ranges=ranges)
    _write_labels(folder, card)


def fold_detector(net: Detector) -> Iterator[Layer]:
    """Yields the detector as layers; the answers are `cls` [1, classes, 32, 32] and `box` [1, 4, 32, 32]."""
    source = INPUT
    for name in ("stage1", "stage2", "stage3", "stage4", "stage5"):
        yield from fold_stage(name, source, get_chain(net, name))
        source = name
    yield fold_block("lateral5", "stage5", get_chain(net, "lateral5"))
    yield Upsample("lateral5.up", "lateral5")
    yield Add("sum4", "stage4", "lateral5.up")
    yield from fold_residual("merge4", "sum4", net.merge4)
    yield fold_block("lateral4", "merge4", get_chain(net, "lateral4"))
    yield Upsample("lateral4.up", "lateral4")
    yield Add("sum3", "stage3", "lateral4.up")
    yield from fold_residual("merge3", "sum3", net.merge3)
    yield from fold_stage("head", "merge3", net.head)
    yield fold_plain("cls", "head", net.cls)
    yield fold_plain("box", "head", net.box)


def _write_labels(folder: Path, card: Card) -> None:
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in card.labels))
