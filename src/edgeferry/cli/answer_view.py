"""Answers of every task as rows of text, for `predict`.

Rules:
- A row for each thing found, best first: how sure (of a mask: the share of the picture), what, where.
- Points follow their object, a row each; more than POINTS_MAX of them (a face mesh) are counted.
- Labels come out of model files: they are shown without control characters.
"""

from __future__ import annotations

from edgeferry.cli.plain_text import clean_name
from edgeferry.vision.answer import (
    Answer,
    Box,
    ClassificationAnswer,
    FoundObject,
    MaskClass,
    PictureAnswer,
    SegmentationAnswer,
    list_objects,
)

POINTS_MAX = 40


def tabulate_answer(answer: Answer) -> list[str]:
    """The rows; none where nothing was found."""
    if isinstance(answer, ClassificationAnswer):
        return [f"  {found.score:.3f}  {clean_name(found.label)}" for found in answer.classes]
    if isinstance(answer, SegmentationAnswer):
        return [f"  mask {answer.width}x{answer.height}", *map(_tabulate_class, answer.classes)]
    if isinstance(answer, PictureAnswer):
        return [f"  made a picture of {answer.width}x{answer.height}, {len(answer.png)} bytes as PNG (--draw OUT)"]
    return [row for found in list_objects(answer) for row in _tabulate_object(found)]


def _tabulate_object(found: FoundObject) -> list[str]:
    rows = [f"  {found.score:.3f}  {clean_name(found.label):<16}  {_name_sides(found.box)}"]
    rows += [f"    {one.score:.3f}  {clean_name(one.label)}" for one in found.attributes]
    if len(found.points) > POINTS_MAX:
        return [*rows, f"    {len(found.points)} points"]
    return rows + [f"    {one.score:.3f}  {one.name:<14}  x {one.x:.3f}  y {one.y:.3f}" for one in found.points]


def _tabulate_class(one: MaskClass) -> str:
    return f"  {one.share:6.1%}  {clean_name(one.label):<16}  {_name_sides(one.box)}"


def _name_sides(box: Box) -> str:
    return "  ".join(f"{side} {value:.3f}" for side, value in zip(("top", "left", "bottom", "right"), box, strict=True))
