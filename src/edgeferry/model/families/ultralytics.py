"""YOLOv5 and YOLOv8 (to YOLO11 and on), as Ultralytics exports them to ONNX and LiteRT.

Metadata (of LiteRT: in a packed file of notes): `names` ("{0: 'person', 1: ...}" or a list), `task`, `imgsz`
("[height, width]"), `args`, `end2end`; YOLOv5 writes `names` alone, old ones nothing. The number of classes tells which
axis of the output holds them. Boxes are in pixels in ONNX, in fractions of the input in LiteRT.

Rules:
- The number of classes comes from `names`, else from the operator's labels; without either nothing is recognised.
- The number of candidates must be what strides 8, 16, 32 (and 64) make of the input: other detectors with such metadata
  (RT-DETR) have another number, and other units. Where sizes are open the metadata must say what it is.
- Metadata is text in Python's notation; `model/literals.py` reads it, nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgeferry.errors import BundleError
from edgeferry.model.facts import ModelFacts
from edgeferry.model.families.draft import Draft, Published, feed_as_published, find_layout, find_picture, fit_labels
from edgeferry.model.families.yolox import count_cells
from edgeferry.model.labels import read_labels
from edgeferry.model.literals import read_literal

NAMES_KEY = "names"

_FED = Published("YOLO of Ultralytics", fit="letterbox", pad=114)
_UNITS = {"onnx": "pixels", "litert": "fractions"}
_ANCHORS = 3
"""Of YOLOv5, in each cell."""
_SUPPRESSED_NUMBERS = 6
_SUPPRESSING = ("NonMaxSuppression", "TopK", "NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5", "TOPK_V2")

_SIZE = re.compile(r"\[(\d{1,5}), (\d{1,5})\]")


def draft_yolov5(facts: ModelFacts, draft: Draft) -> bool:
    """rows [1, n, 5 + classes], three for each cell; or with suppression in the graph four outputs."""
    shape, classes, roles = _get_table(facts), _count_classes(facts, draft), _find_suppressed(facts)
    if classes and roles:
        parameters = {"units": _UNITS[facts.format], "layout": "suppressed"}
        draft.answer |= {"family": "yolov5", "outputs": roles, "parameters": parameters}
        _fill(facts, draft, classes)
        return True
    if shape is None or not classes or shape[2] != 5 + classes:
        return False
    if not _fits(shape[1], facts, each=_ANCHORS, unknown=NAMES_KEY in facts.metadata):
        return False
    draft.answer |= {"family": "yolov5", "parameters": {"units": _UNITS[facts.format]}}
    _fill(facts, draft, classes)
    return True


def draft_yolov8(facts: ModelFacts, draft: Draft) -> bool:
    """[1, 4 + classes, n], [1, n, 4 + classes], or with suppression in the graph [1, n, 6]."""
    shape, classes = _get_table(facts), _count_classes(facts, draft)
    task = facts.metadata.get("task", "")
    if shape is None or not classes or task not in ("", "detect"):
        return False
    suppresses = _suppresses(facts)
    fits = {
        "suppressed": suppresses and bool(task) and shape[2] == _SUPPRESSED_NUMBERS,
        "columns": shape[1] == 4 + classes and _fits(shape[2], facts, unknown=bool(task)),
        "rows": not suppresses and shape[2] == 4 + classes and _fits(shape[1], facts),
    }
    layouts = [layout for layout, fit in fits.items() if fit]
    if len(layouts) != 1:
        return False
    draft.answer |= {"family": "yolov8", "parameters": {"units": _UNITS[facts.format], "layout": layouts[0]}}
    _fill(facts, draft, classes)
    return True


def find_names(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """The labels that `names` holds, in the order of their numbers 0, 1, ...; None where it holds no such thing."""
    try:
        names = read_literal(metadata.get(NAMES_KEY, ""))
        if isinstance(names, dict):  # JSON has no numbers as keys
            names = [names.get(number, names.get(str(number))) for number in range(len(names))]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        lines = "\n".join(names)
        whole = lines.count("\n") + 1 == len(names) and not any(mark in lines for mark in "\r\x00")
        return read_labels(lines.encode()) or None if whole else None
    except (ValueError, BundleError):
        return None


def _count_classes(facts: ModelFacts, draft: Draft) -> int:
    return len(find_names(facts.metadata) or draft.labels)


def _get_table(facts: ModelFacts) -> tuple[int | None, ...] | None:
    """The shape of the only output, three axes, of a graph that takes a picture in colour; None for another graph."""
    shape = facts.outputs[0].shape
    if _get_sides(facts) is None or len(facts.outputs) != 1 or len(shape) != 3 or shape[0] not in (1, None):
        return None
    return shape


def _find_suppressed(facts: ModelFacts) -> dict[str, str]:
    """Role -> output of YOLOv5's LiteRT export with `--nms`, whose outputs are numbered in this order; {}: no such."""
    outputs = sorted(facts.outputs, key=lambda each: each.name)
    n = outputs[0].shape[1:2]
    told = facts.format == "litert" and NAMES_KEY in facts.metadata and "task" not in facts.metadata
    if not told or [each.shape for each in outputs] != [(1, *n, 4), (1, *n), (1, *n), (1,)] or not _get_sides(facts):
        return {}
    return dict(zip(("boxes", "scores", "classes", "count"), (each.name for each in outputs), strict=True))


def _get_sides(facts: ModelFacts) -> tuple[int | None, int | None] | None:
    """Height and width of the only input, where it is a picture in colour, floats."""
    picture = find_picture(facts)
    if picture is None or len(facts.inputs) != 1 or not picture.dtype.startswith("float"):
        return None
    sides = dict(zip(find_layout(picture, facts), picture.shape, strict=True))
    return (sides["h"], sides["w"]) if sides["c"] == 3 else None


def _fits(count: int | None, facts: ModelFacts, *, each: int = 1, unknown: bool = False) -> bool:
    """Whether so many candidates are what the cells of the input make; `unknown`: what to say where sizes are open."""
    cells = count_cells(_get_sides(facts) or ())
    return count in [each * number for number in cells] if count is not None and cells else unknown


def _suppresses(facts: ModelFacts) -> bool:
    said = facts.metadata
    declared = said.get("end2end") == "True" or "'nms': True" in said.get("args", "")
    return declared or any(operator in facts.operators for operator in _SUPPRESSING)


def _fill(facts: ModelFacts, draft: Draft, classes: int) -> None:
    feed_as_published(facts, draft, _FED)
    size = _SIZE.fullmatch(facts.metadata.get("imgsz", ""))
    if size is not None:
        for side, pixels in zip(("height", "width"), size.groups(), strict=True):
            if draft.missing.pop(f"input.{side}", ""):
                draft.input[side] = int(pixels)
                draft.notes.append(f"input.{side}: {pixels}, by imgsz of the metadata; the graph leaves it open")
    if tuple(draft.labels) != find_names(facts.metadata):  # class i is name i, whatever it is called
        fit_labels(draft, classes)
