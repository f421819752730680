"""Answer: what a model says about one picture, as typed values that travel between processes and become JSON.

Left to others: making answers (`answers/`), judging (`golden.py`), drawing (`draw.py`), wire formats (`serve/`).

Rules:
- No numpy here: the device's main process reads answers and never loads numpy.
- Scores are 0..1. Boxes are (top, left, bottom, right) in 0..1 of the upright picture.
- Results stand best first.
"""

from __future__ import annotations

import msgspec

Box = tuple[float, float, float, float]
"""(top, left, bottom, right), each 0..1 of the upright picture."""


class ClassScore(msgspec.Struct, frozen=True, kw_only=True):
    """One class and how sure the model is of it. `label` is the class index as text where no label is known."""

    class_index: int
    label: str
    score: float


class FoundObject(msgspec.Struct, frozen=True, kw_only=True):
    """One object in the picture."""

    class_index: int
    label: str
    score: float
    box: Box


class ClassificationAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="classification"):
    """What the picture shows as a whole: classes at or above the threshold, best first."""

    classes: tuple[ClassScore, ...]


class DetectionAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="detection"):
    """What is where: objects at or above the threshold, best first."""

    objects: tuple[FoundObject, ...]


Answer = ClassificationAnswer | DetectionAnswer
