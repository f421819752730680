"""Runs the committed files with ONNX Runtime and LiteRT on one picture at a time. No torch.

Rules:
- Takes pictures as uint8 [height, width, 3] RGB and stretches them to the model's input.
- One thread, so that answers and times do not depend on the machine's cores.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from PIL import Image

from models.evaluate import Detections

Pixels = NDArray[np.uint8]
Outputs = dict[str, NDArray[Any]]


def open_detector(path: Path) -> Callable[[Pixels], Detections]:
    """Returns a function from a picture to what the detector file finds in it."""
    run = _open(path)
    convert = _from_onnx if path.suffix == ".onnx" else _from_ssd
    return lambda pixels: convert(run(pixels))


def open_classifier(path: Path) -> Callable[[Pixels], NDArray[np.float32]]:
    """Returns a function from a picture to its class probabilities."""
    run = _open(path)
    return lambda pixels: run(pixels)["probabilities"][0]


def _open(path: Path) -> Callable[[Pixels], Outputs]:
    return _open_onnx(path) if path.suffix == ".onnx" else _open_litert(path)


def _open_onnx(path: Path) -> Callable[[Pixels], Outputs]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    side = session.get_inputs()[0].shape[2]
    names = [output.name for output in session.get_outputs()]

    def run(pixels: Pixels) -> Outputs:
        picture = to_unit(stretch(pixels, side)).transpose(2, 0, 1)[None]
        return dict(zip(names, session.run(None, {"image": picture}), strict=True))

    return run


def _open_litert(path: Path) -> Callable[[Pixels], Outputs]:
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    runner = interpreter.get_signature_runner("serving_default")
    details = runner.get_input_details()["image"]
    side, whole = details["shape"][1], details["dtype"] == np.uint8

    def run(pixels: Pixels) -> Outputs:
        picture = stretch(pixels, side)
        return dict(runner(image=(picture if whole else to_unit(picture))[None]))

    return run


def stretch(pixels: Pixels, side: int) -> Pixels:
    """Resizes to side x side, bilinear with antialiasing, without keeping the aspect."""
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def to_unit(pixels: Pixels) -> NDArray[np.float32]:
    """0..255 -> 0..1."""
    return pixels.astype(np.float32) / np.float32(255)


def _from_onnx(outputs: Outputs) -> Detections:
    return Detections(outputs["boxes"], outputs["scores"], outputs["classes"])


def _from_ssd(outputs: Outputs) -> Detections:
    count = int(outputs["num"][0])
    labels = outputs["classes"][0, :count].astype(np.int64)
    return Detections(outputs["boxes"][0, :count].clip(0, 1), outputs["scores"][0, :count], labels)
