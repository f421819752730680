"""YOLOv5 and YOLOv8 (to YOLO11 and on), as Ultralytics exports them to ONNX.

metadata_props: `names` ("{0: 'person', 1: ...}" or a list), `task`, `imgsz` ("[height, width]"), `args`, `end2end`;
YOLOv5 writes `names` alone, old ones nothing. The number of classes tells which axis of the output holds them.

Rules:
- The number of classes comes from `names`, else from the operator's labels; without either nothing is recognised.
- The number of candidates must be what strides 8, 16, 32 (and 64) make of the input: other detectors with such metadata
  (RT-DETR) have another number, and other units. Where sizes are open the metadata must say what it is.
- `names` is a literal of Python: read by its grammar of strings and numbers alone, nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from edgeferry.errors import BundleError
from edgeferry.model.facts import ModelFacts
from edgeferry.model.families.draft import Draft, Published, feed_as_published, find_planes, fit_labels
from edgeferry.model.families.yolox import count_cells
from edgeferry.model.labels import LABELS_MAX_BYTES, read_labels

NAMES_KEY = "names"

_FED = Published("YOLO of Ultralytics", fit="letterbox", pad=114)
_ANCHORS = 3
"""Of YOLOv5, in each cell."""
_SUPPRESSED_NUMBERS = 6
_SUPPRESSING = ("NonMaxSuppression", "TopK")

_ITEM = re.compile(r"""\s*(?:(\d{1,6})\s*:\s*)?(?:'((?:[^'\\\n]|\\.)*)'|"((?:[^"\\\n]|\\.)*)")\s*(,|$)""")
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)")
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "t": "\t"}
_SIZE = re.compile(r"\[(\d{1,5}), (\d{1,5})\]")


def draft_yolov5(facts: ModelFacts, draft: Draft) -> bool:
    """rows [1, n, 5 + classes], three for each cell."""
    shape, classes = _get_table(facts), _count_classes(facts, draft)
    if shape is None or not classes or shape[2] != 5 + classes:
        return False
    if not _fits(shape[1], facts, each=_ANCHORS, unknown=NAMES_KEY in facts.metadata):
        return False
    _fill(facts, draft, classes)
    draft.answer |= {"family": "yolov5", "parameters": {"units": "pixels"}}
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
    _fill(facts, draft, classes)
    draft.answer |= {"family": "yolov8", "parameters": {"units": "pixels", "layout": layouts[0]}}
    return True


def find_names(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """The labels that `names` holds, in the order of their numbers 0, 1, ...; None where it holds no such thing."""
    text = metadata.get(NAMES_KEY, "").strip()
    if len(text) > LABELS_MAX_BYTES or text[:1] + text[-1:] not in ("{}", "[]"):
        return None
    try:
        names = list(_read_items(text[1:-1], numbered=text[0] == "{"))
        return read_labels("\n".join(names).encode()) or None
    except (ValueError, BundleError):
        return None


def _read_items(text: str, *, numbered: bool) -> Iterator[str]:
    """Yields the strings of the items; ValueError for any other grammar, or numbers that do not count up from 0."""
    place, end = 0, ","
    count = 0
    while place < len(text):
        item = _ITEM.match(text, place)
        if item is None or (item[1] is not None) != numbered or (numbered and int(item[1]) != count):
            raise ValueError("no literal of names")
        yield _ESCAPE.sub(_unescape, item[2] if item[2] is not None else item[3])
        place, end, count = item.end(), item[4], count + 1
    if end == "," and count > 1:
        raise ValueError("a comma too many")


def _unescape(found: re.Match[str]) -> str:
    """One escape of a Python string; a line break in a label would shift all below it."""
    what = found[1]
    letter = chr(int(what[1:], 16)) if len(what) > 1 else _ESCAPED.get(what, "")
    if not letter or letter in "\r\n\x00":
        raise ValueError("no escape of a label")
    return letter


def _count_classes(facts: ModelFacts, draft: Draft) -> int:
    return len(find_names(facts.metadata) or draft.labels)


def _get_table(facts: ModelFacts) -> tuple[int | None, ...] | None:
    """The shape of the only output, three axes; None for another graph."""
    shape = facts.outputs[0].shape
    if find_planes(facts) is None or len(facts.outputs) != 1:
        return None
    return shape if len(shape) == 3 and shape[0] in (1, None) else None


def _fits(count: int | None, facts: ModelFacts, *, each: int = 1, unknown: bool = False) -> bool:
    """Whether so many candidates are what the cells of the input make; `unknown`: what to say where sizes are open."""
    picture = find_planes(facts)
    cells = count_cells(picture.shape[2:]) if picture is not None else []
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
    fit_labels(draft, classes)
