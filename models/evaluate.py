"""Measures detectors: class-wise suppression, matching with truth, average precision. numpy only.

Average precision is at IoU 0.5 over all points of the precision-recall curve (PASCAL VOC 2010 onwards).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Detections:
    """What one picture's answer holds: boxes [n, 4] (top, left, bottom, right) in 0..1, scores [n], labels [n]."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


class Truth(Protocol):
    """Boxes [n, 4] and labels [n] of each picture."""

    @property
    def boxes(self) -> Sequence[NDArray[np.float32]]: ...

    @property
    def labels(self) -> Sequence[NDArray[np.int64]]: ...


@dataclass(frozen=True)
class MeanPrecision:
    """Average precision per class and their mean."""

    per_class: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.per_class))


def iou(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of one box [4] with others [n, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    inner = (high - low).clip(0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    return np.asarray(inner / ((box[2:] - box[:2]).prod() + areas - inner + 1e-9), np.float32)


def suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], *, threshold: float = 0.05, limit: int = 100
) -> Detections:
    """Class-wise non-maximum suppression at IoU 0.5 of boxes [n, 4] with scores [n, classes]."""
    kept: list[tuple[float, int, int]] = []
    for label in range(scores.shape[1]):
        rows = np.flatnonzero(scores[:, label] > threshold)
        rows = rows[np.argsort(-scores[rows, label])]
        while len(rows):
            best, rows = rows[0], rows[1:]
            kept.append((float(scores[best, label]), label, int(best)))
            rows = rows[iou(boxes[best], boxes[rows]) <= 0.5]
    kept.sort(key=lambda entry: -entry[0])
    kept = kept[:limit]
    labels = np.array([label for _, label, _ in kept], np.int64)
    score = np.array([value for value, _, _ in kept], np.float32)
    return Detections(boxes[[row for _, _, row in kept]].reshape(-1, 4), score, labels)


def mean_average_precision(found: list[Detections], truth: Truth, classes: int) -> MeanPrecision:
    """Average precision of every class over all pictures."""
    return MeanPrecision(tuple(_average_precision(found, truth, label) for label in range(classes)))


def _average_precision(found: list[Detections], truth: Truth, label: int) -> float:
    positives = sum(int((labels == label).sum()) for labels in truth.labels)
    hits: list[tuple[float, bool]] = []
    for detections, boxes, labels in zip(found, truth.boxes, truth.labels, strict=True):
        hits += _match(detections, boxes[labels == label], label)
    hits.sort(key=lambda hit: -hit[0])
    right = np.cumsum([hit for _, hit in hits])
    if positives == 0 or len(hits) == 0:
        return float("nan") if positives == 0 else 0.0
    recall, precision = right / positives, right / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(np.concatenate([[0.0], recall])) * envelope))


def _match(detections: Detections, truth: NDArray[np.float32], label: int) -> list[tuple[float, bool]]:
    """Gives each true box to at most one detection, the most certain first; returns (score, is right) of each."""
    rows = np.flatnonzero(detections.labels == label)
    rows, free, hits = rows[np.argsort(-detections.scores[rows])], np.ones(len(truth), bool), []
    for row in rows:
        overlaps = iou(detections.boxes[row], truth)
        best = int(np.argmax(overlaps)) if len(truth) else -1
        right = best >= 0 and bool(overlaps[best] >= 0.5) and bool(free[best])
        if right:
            free[best] = False
        hits.append((float(detections.scores[row]), right))
    return hits


def count_truth_found(
    detections: Detections, boxes: NDArray[np.float32], labels: NDArray[np.int64], *, score: float = 0.5
) -> int:
    """Counts the true objects that have an answer of their class at IoU >= 0.5 and at least `score`."""
    sure = detections.scores >= score
    count = 0
    for box, label in zip(boxes, labels, strict=True):
        rows = sure & (detections.labels == label)
        count += bool((iou(box, detections.boxes[rows]) >= 0.5).any())
    return count
