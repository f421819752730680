"""YOLOX: as its exporter names things: `images` in, rows `output` [1, cells, 5 + classes] out.

YOLOv5 has three rows for each cell, YOLOv6 calls them `outputs`: neither is taken for YOLOX.
"""

from __future__ import annotations

from edgeferry.model.facts import ModelFacts
from edgeferry.model.families.draft import Draft, Published, feed_as_published, find_planes, fit_labels

_FED = Published("YOLOX (since 0.2)", fit="letterbox_top_left", colour="bgr", std=1.0, pad=114)
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))


def draft_yolox(facts: ModelFacts, draft: Draft) -> bool:
    """With an exponential in the graph the boxes are made there (`--decode_in_inference`), without one they are not."""
    classes = _count_classes(facts)
    if classes is None:
        return False
    feed_as_published(facts, draft, _FED)
    draft.answer |= {"family": "yolox", "parameters": {"decoded": "Exp" in facts.operators}}
    fit_labels(draft, classes)
    return True


def _count_classes(facts: ModelFacts) -> int | None:
    picture = find_planes(facts)
    if picture is None or picture.name != "images" or [each.name for each in facts.outputs] != ["output"]:
        return None
    shape = facts.outputs[0].shape
    if len(shape) != 3 or shape[2] is None or shape[2] < 6 or shape[1] not in count_cells(picture.shape[2:]):
        return None
    return shape[2] - 5


def count_cells(sides: tuple[int | None, ...]) -> list[int]:
    """How many cells the grids have in all, for an input of these sides in pixels and each set of strides."""
    known = [side for side in sides if side is not None]
    if len(known) != 2:
        return []
    return [sum((known[0] // stride) * (known[1] // stride) for stride in strides) for strides in _STRIDES]
