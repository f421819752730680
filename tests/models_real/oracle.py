"""Plain implementations for oracles: a bare engine; overlap and suppression, one pair at a time, in Python floats."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import onnxruntime

from models_real.serving import Box, Seen


def open_onnx(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    high = min(one[2], other[2]) - max(one[0], other[0])
    wide = min(one[3], other[3]) - max(one[1], other[1])
    if high <= 0 or wide <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return high * wide / (sum(areas) - high * wide)


def keep_best(candidates: Iterable[Seen], iou: float) -> list[Seen]:
    """Greedy suppression among objects of one label."""
    kept: list[Seen] = []
    for one in sorted(candidates, key=lambda each: -each.score):
        if all(one.label != other.label or overlap(one.box, other.box) <= iou for other in kept):
            kept.append(one)
    return kept
