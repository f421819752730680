"""Palm: MediaPipe's palm detector, a box and seven points for each palm.

regressors [1, n, 18] (centre x, y, width, height, then seven points x, y; pixels of the input, relative to an anchor),
scores [1, n, 1] (logits). Anchors and arithmetic as in MediaPipe's documented palm detection graph: strides 8, 16, 16,
16, two square anchors of side 1 in each cell per stride; a sigmoid on logits within +-100.

Rules:
- Roles are found by `answer.outputs`, else by shape.
- Overlapping palms (IoU above the threshold) become one: the score is the best one's, the rest is averaged by score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeferry.errors import ModelUnsupported
from edgeferry.model.labels import find_label
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer, FoundObject, Point
from edgeferry.vision.answers.objects import Outputs, Tensor, make_refusal
from edgeferry.vision.preprocess import Placement

POINT_NAMES = ("wrist", "index_mcp", "middle_mcp", "ring_mcp", "pinky_mcp", "thumb_cmc", "thumb_mcp")
WRIST, MIDDLE_FINGER = 0, 2

_STRIDES = (8, 16, 16, 16)
_NUMBERS = 18
_CLIP = 100.0

Palms = NDArray[np.float64]
"""[n, 1 + 18]: score, then nine pairs (y, x): top left and bottom right of the box, and the points; 0..1 of the input.
Best first."""


def decode_palm(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    palms = find_palms(stage, outputs)
    label = find_label(labels, 0, stage.labels.offset)
    objects = []
    for score, pairs in zip(palms[:, 0].tolist(), place_palms(palms, placement), strict=True):
        (top, left), (bottom, right) = pairs[:2].clip(0.0, 1.0).tolist()
        points = tuple(Point(name=name, x=x, y=y) for name, (y, x) in zip(POINT_NAMES, pairs[2:].tolist(), strict=True))
        if top < bottom and left < right:
            box = (top, left, bottom, right)
            objects.append(FoundObject(class_index=0, label=label, score=score, box=box, points=points))
    return DetectionAnswer(objects=tuple(objects))


def find_palms(stage: Stage, outputs: Outputs) -> Palms:
    """Palms at or above the threshold, suppressed. Raises ModelUnsupported."""
    numbers, logits = _find_roles(stage, outputs)
    scores = 1.0 / (1.0 + np.exp(-logits.astype(np.float64).clip(-_CLIP, _CLIP)))
    keep = np.isfinite(numbers).all(axis=1) & (scores >= stage.thresholds.score)
    palms = np.column_stack([scores[keep], _place(numbers[keep], _make_anchors(stage)[keep], stage)])
    return _merge(palms[np.argsort(-palms[:, 0], kind="stable")], stage.thresholds.iou)[: stage.thresholds.max_results]


def place_palms(palms: Palms, placement: Placement) -> NDArray[np.float64]:
    """Box corners and points [n, 9, 2], (y, x) in 0..1 of the picture, not clipped."""
    pairs = palms[:, 1:].reshape(-1, 2)
    return placement.to_picture(np.hstack([pairs, pairs]))[:, :2].reshape(-1, _NUMBERS // 2, 2)


def _find_roles(stage: Stage, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Regressors [n, 18] and logits [n] for the anchors of this input."""
    count = len(_make_anchors(stage))
    declared = stage.answer.outputs
    numbers = [outputs[declared["boxes"]]] if declared.get("boxes") in outputs else list(outputs.values())
    logits = [outputs[declared["scores"]]] if declared.get("scores") in outputs else list(outputs.values())
    numbers = [each for each in numbers if each.shape == (1, count, _NUMBERS)]
    logits = [each for each in logits if each.shape == (1, count, 1)]
    if len(numbers) != 1 or len(logits) != 1:
        raise make_refusal(f"boxes [1, {count}, {_NUMBERS}] and scores [1, {count}, 1]", outputs)
    return numbers[0][0], logits[0][0, :, 0]


def _make_anchors(stage: Stage) -> NDArray[np.float64]:
    """Centres [n, 2] (x, y) in 0..1 of the input; layers of one stride share their cells."""
    if stage.input is None:
        raise ModelUnsupported(f"expected a picture input in the stage of {stage.file!r:.80}, found none")
    width, height = stage.input.width, stage.input.height
    grids = []
    for stride in sorted(set(_STRIDES)):
        columns, rows = -(-width // stride), -(-height // stride)
        y, x = np.divmod(np.arange(rows * columns), columns)
        cells = np.stack([(x + 0.5) / columns, (y + 0.5) / rows], axis=1)
        grids.append(np.repeat(cells, 2 * _STRIDES.count(stride), axis=0))
    return np.concatenate(grids)


def _place(numbers: Tensor, anchors: NDArray[np.float64], stage: Stage) -> NDArray[np.float64]:
    """Regressors [n, 18] beside their anchors -> nine pairs (y, x) in 0..1 of the input, [n, 18]."""
    if stage.input is None:  # `_make_anchors` has refused it
        return numbers
    pairs = numbers.astype(np.float64).reshape(-1, _NUMBERS // 2, 2) / (stage.input.width, stage.input.height)
    half = pairs[:, 1].copy() / 2
    pairs[:, 1] = 0.0
    pairs += anchors[:, None]
    centre = pairs[:, 0].copy()
    pairs[:, 0], pairs[:, 1] = centre - half, centre + half
    return pairs[:, :, ::-1].reshape(-1, _NUMBERS)


def _merge(palms: Palms, least_iou: float) -> Palms:
    """Weighted suppression of palms that stand best first."""
    merged = []
    while len(palms):
        best = palms[0].copy()
        same = _get_ious(palms[0], palms) > least_iou
        same[0] = True
        best[1:] = np.average(palms[same, 1:], axis=0, weights=palms[same, 0])
        merged.append(best)
        palms = palms[~same]
    return np.array(merged).reshape(-1, 1 + _NUMBERS)


def _get_ious(one: NDArray[np.float64], others: Palms) -> NDArray[np.float64]:
    corner, opposite = np.maximum(one[1:3], others[:, 1:3]), np.minimum(one[3:5], others[:, 3:5])
    shared = (opposite - corner).clip(0.0).prod(axis=1)
    areas = (others[:, 3:5] - others[:, 1:3]).prod(axis=1)
    both = areas + (one[3:5] - one[1:3]).prod() - shared
    ious: NDArray[np.float64] = np.divide(shared, both, out=np.zeros_like(shared), where=both > 0)
    return ious
