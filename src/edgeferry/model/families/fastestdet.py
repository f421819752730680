"""FastestDet: one grid of its input / 16, put together from a sigmoid (objectness), four numbers and a softmax."""

from __future__ import annotations

from edgeferry.model.facts import ModelFacts
from edgeferry.model.families.draft import Draft, Published, feed_as_published, find_planes, fit_labels

_FED = Published("FastestDet", fit="stretch", colour="bgr")
_STRIDE = 16


def draft_fastestdet(facts: ModelFacts, draft: Draft) -> bool:
    """As FastestDet exports to ONNX: [1, 5 + classes, rows, columns], made by Concat."""
    classes = _count_classes(facts)
    if classes is None:
        return False
    feed_as_published(facts, draft, _FED)
    draft.answer["family"] = "fastestdet"
    fit_labels(draft, classes)
    return True


def _count_classes(facts: ModelFacts) -> int | None:
    picture = find_planes(facts)
    if picture is None or len(facts.outputs) != 1:
        return None
    shape, sides, operators = facts.outputs[0].shape, picture.shape[2:], facts.operators
    made = facts.outputs[0].made_by == "Concat" and "Sigmoid" in operators and "Softmax" in operators
    if not made or len(shape) != 4 or None in sides or shape[1] is None or shape[1] < 6:
        return None
    fits = shape[2:] == tuple(side // _STRIDE for side in sides if side is not None)
    return shape[1] - 5 if fits else None
