"""Anchored: what MediaPipe's small detectors share (faces, palms): boxes with points, told relative to anchors.

regressors [1, n, 2 x pairs] (centre x, y, width, height, then points x, y; pixels of the input, relative to an anchor),
scores [1, n, 1] (logits). Anchors and arithmetic as in MediaPipe's documented detection graphs: strides 8, 16, 16, 16,
two square anchors of side 1 in each cell per stride; a sigmoid on logits within +-100.

Rules:
- Roles are found by `answer.outputs`, else by shape.
- Objects that overlap (IoU above the threshold) become one: the score is the best one's, the rest is averaged by score.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgeferry.errors import ModelUnsupported
from edgeferry.model.labels import find_label
from edgeferry.model.spec import InputSpec, Stage
from edgeferry.vision.answer import DetectionAnswer, FoundObject, Point
from edgeferry.vision.answers.objects import Outputs, Tensor, make_refusal
from edgeferry.vision.preprocess import Placement

_STRIDES = (8, 16, 16, 16)
_CLIP = 100.0

Anchored = NDArray[np.float64]
"""[n, 1 + 2 x pairs]: score, then pairs (y, x): top left and bottom right of the box, and the points; 0..1 of the
input. Best first."""


def make_anchored_answer(
    found: Anchored, names: Sequence[str], *, stage: Stage, placement: Placement, labels: tuple[str, ...]
) -> DetectionAnswer:
    """Objects of the only class, their points called `names`; those without area inside the picture are dropped."""
    label = find_label(labels, 0, stage.labels.offset)
    objects = []
    for score, pairs in zip(found[:, 0].tolist(), place_anchored(found, placement), strict=True):
        (top, left), (bottom, right) = pairs[:2].clip(0.0, 1.0).tolist()
        points = tuple(Point(name=name, x=x, y=y) for name, (y, x) in zip(names, pairs[2:].tolist(), strict=True))
        if top < bottom and left < right:
            box = (top, left, bottom, right)
            objects.append(FoundObject(class_index=0, label=label, score=score, box=box, points=points))
    return DetectionAnswer(objects=tuple(objects))


def find_anchored(stage: Stage, outputs: Outputs, *, pairs: int) -> Anchored:
    """Objects at or above the threshold, suppressed. Raises ModelUnsupported."""
    if stage.input is None:
        raise ModelUnsupported(f"expected a picture input in the stage of {stage.file!r:.80}, found none")
    anchors = make_anchors(stage.input.width, stage.input.height)
    numbers, logits = _find_roles(stage, outputs, (len(anchors), 2 * pairs))
    scores = 1.0 / (1.0 + np.exp(-logits.astype(np.float64).clip(-_CLIP, _CLIP)))
    keep = np.flatnonzero(scores >= stage.thresholds.score)
    keep = keep[np.isfinite(numbers[keep]).all(axis=1)]
    keep = keep[np.argsort(-scores[keep], kind="stable")]
    found = np.column_stack([scores[keep], _place(numbers[keep], anchors[keep], stage.input)])
    return _merge(found, stage.thresholds.iou, stage.thresholds.max_results)


def place_anchored(found: Anchored, placement: Placement) -> NDArray[np.float64]:
    """Box corners and points [n, pairs, 2], (y, x) in 0..1 of the picture, not clipped."""
    pairs = found[:, 1:].reshape(-1, 2)
    return placement.to_picture(np.hstack([pairs, pairs]))[:, :2].reshape(-1, found.shape[1] // 2, 2)


@lru_cache(maxsize=16)
def make_anchors(width: int, height: int) -> NDArray[np.float64]:
    """Centres [n, 2] (x, y) in 0..1 of an input of `width` x `height` pixels; layers of one stride share cells."""
    grids = []
    for stride in sorted(set(_STRIDES)):
        columns, rows = -(-width // stride), -(-height // stride)
        y, x = np.divmod(np.arange(rows * columns), columns)
        cells = np.stack([(x + 0.5) / columns, (y + 0.5) / rows], axis=1)
        grids.append(np.repeat(cells, 2 * _STRIDES.count(stride), axis=0))
    anchors = np.concatenate(grids)
    anchors.flags.writeable = False
    return anchors


def _find_roles(stage: Stage, outputs: Outputs, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Regressors of that shape, and logits [n]."""
    declared = stage.answer.outputs
    numbers = [outputs[declared["boxes"]]] if declared.get("boxes") in outputs else list(outputs.values())
    logits = [outputs[declared["scores"]]] if declared.get("scores") in outputs else list(outputs.values())
    numbers = [each for each in numbers if each.shape == (1, *shape)]
    logits = [each for each in logits if each.shape == (1, shape[0], 1)]
    if len(numbers) != 1 or len(logits) != 1:
        raise make_refusal(f"boxes [1, {shape[0]}, {shape[1]}] and scores [1, {shape[0]}, 1]", outputs)
    return numbers[0][0], logits[0][0, :, 0]


def _place(numbers: Tensor, anchors: NDArray[np.float64], spec: InputSpec) -> NDArray[np.float64]:
    """Regressors [n, 2 x pairs] beside their anchors -> pairs (y, x) in 0..1 of the input, [n, 2 x pairs]."""
    pairs = numbers.astype(np.float64).reshape(-1, numbers.shape[1] // 2, 2) / (spec.width, spec.height)
    half = pairs[:, 1].copy() / 2
    pairs[:, 1] = 0.0
    pairs += anchors[:, None]
    centre = pairs[:, 0].copy()
    pairs[:, 0], pairs[:, 1] = centre - half, centre + half
    return pairs[:, :, ::-1].reshape(numbers.shape)


def _merge(found: Anchored, least_iou: float, most: int) -> Anchored:
    """Weighted suppression of objects that stand best first."""
    merged: list[NDArray[np.float64]] = []
    while len(found) and len(merged) < most:
        best = found[0].copy()
        same = _get_ious(found[0], found) > least_iou
        same[0] = True
        best[1:] = np.average(found[same, 1:], axis=0, weights=found[same, 0])
        merged.append(best)
        found = found[~same]
    return np.array(merged).reshape(-1, found.shape[1])


def _get_ious(one: NDArray[np.float64], others: Anchored) -> NDArray[np.float64]:
    corner, opposite = np.maximum(one[1:3], others[:, 1:3]), np.minimum(one[3:5], others[:, 3:5])
    shared = (opposite - corner).clip(0.0).prod(axis=1)
    areas = (others[:, 3:5] - others[:, 1:3]).prod(axis=1)
    both = areas + (one[3:5] - one[1:3]).prod() - shared
    ious: NDArray[np.float64] = np.divide(shared, both, out=np.zeros_like(shared), where=both > 0)
    return ious
