"""Two face detectors, recognised by their outputs: MediaPipe's short-range BlazeFace, and UltraFace.

Each numbers its anchors by the size of its input; another count is another model.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgeferry.model.facts import ModelFacts
from edgeferry.model.families.draft import (
    Draft,
    Published,
    feed_as_published,
    find_picture,
    find_planes,
    fit_labels,
    name_classes,
)

_BLAZEFACE = Published("MediaPipe's short-range face detection", fit="letterbox", mean=127.5, std=127.5, pad=0)
_BLAZEFACE_SIDE, _BLAZEFACE_ANCHORS, _BLAZEFACE_NUMBERS = 128, 896, 16
_ULTRAFACE = Published("UltraFace", fit="stretch", mean=127.0, std=128.0)
_ULTRAFACE_STRIDES = {8: 3, 16: 2, 32: 2, 64: 3}
"""Stride -> anchors in each cell."""


def draft_blazeface(facts: ModelFacts, draft: Draft) -> bool:
    """boxes [1, 896, 16] and scores [1, 896, 1] for a picture of 128 x 128."""
    picture = find_picture(facts)
    found = {tensor.shape[1:]: tensor.name for tensor in facts.outputs}
    boxes, scores = found.get((_BLAZEFACE_ANCHORS, _BLAZEFACE_NUMBERS)), found.get((_BLAZEFACE_ANCHORS, 1))
    if picture is None or boxes is None or scores is None or len(facts.inputs) != 1 or len(facts.outputs) != 2:
        return False
    if picture.dtype != "float32" or picture.shape.count(_BLAZEFACE_SIDE) != 2:
        return False
    feed_as_published(facts, draft, _BLAZEFACE)
    draft.answer |= {"family": "blazeface", "outputs": {"boxes": boxes, "scores": scores}}
    draft.thresholds |= {"score": 0.5, "iou": 0.3}
    _name_faces(draft)
    return True


def draft_ultraface(facts: ModelFacts, draft: Draft) -> bool:
    """`scores` [1, n, 2] and `boxes` [1, n, 4], n as the strides and anchors of UltraFace make it."""
    picture = find_planes(facts)
    found = {tensor.name: tensor.shape for tensor in facts.outputs}
    count = count_anchors(picture.shape[2:], _ULTRAFACE_STRIDES) if picture is not None else 0
    if not count or found != {"scores": (1, count, 2), "boxes": (1, count, 4)}:
        return False
    feed_as_published(facts, draft, _ULTRAFACE)
    draft.answer |= {"family": "ultraface", "outputs": {"boxes": "boxes", "scores": "scores"}}
    draft.thresholds |= {"score": 0.7, "iou": 0.5}
    _name_faces(draft)
    return True


def _name_faces(draft: Draft) -> None:
    if draft.labels:
        fit_labels(draft, 1)
    else:
        name_classes(draft, "face")


def count_anchors(sides: tuple[int | None, ...], strides: Mapping[int, int]) -> int:
    """How many anchors an input of these sides in pixels has, by stride -> anchors in each cell; 0: a side is open."""
    high, wide = (side or 0 for side in sides)
    return sum(-(-high // stride) * -(-wide // stride) * anchors for stride, anchors in strides.items())
