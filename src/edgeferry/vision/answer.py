"""Answer: what a model says about one picture, as typed values that travel between processes and become JSON.

Left to others: making answers (`answers/`), judging (`golden.py`), drawing (`draw.py`), wire formats (`serve/`).

Rules:
- No numpy here: the device's main process reads answers and never loads numpy.
- Scores are 0..1. Boxes are (top, left, bottom, right) in 0..1 of the upright picture, points (x, y) in the same unit.
- Results stand best first.
- A pose, a set of landmarks and a class of a mask are objects too: whoever knows boxes alone can read them
  (`list_objects`).
"""

from __future__ import annotations

import msgspec

from edgeferry.model.labels import is_placeholder

Box = tuple[float, float, float, float]
"""(top, left, bottom, right), each 0..1 of the upright picture."""


class ClassScore(msgspec.Struct, frozen=True, kw_only=True):
    """One class and how sure the model is of it. `label` is the class index as text where no label is known."""

    class_index: int
    label: str
    score: float


class Point(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A named point of an object: `x`, `y` in 0..1 of the upright picture, `z` in widths of it. It may lie outside.

    `score` is 1 where the model gives none, `z` 0 where it has no depth.
    """

    name: str
    x: float
    y: float
    z: float = 0.0
    score: float = 1.0


class FoundObject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object in the picture; `points` of its body, face or hand, `attributes` such as gestures, best first."""

    class_index: int
    label: str
    score: float
    box: Box
    points: tuple[Point, ...] = ()
    attributes: tuple[ClassScore, ...] = ()


class MaskClass(msgspec.Struct, frozen=True, kw_only=True):
    """One class of a mask, its `share` of all pixels, 0..1, and the `box` that its pixels span."""

    class_index: int
    label: str
    share: float
    box: Box


class ClassificationAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="classification"):
    """What the picture shows as a whole: classes at or above the threshold, best first."""

    classes: tuple[ClassScore, ...]


class DetectionAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="detection"):
    """What is where: objects at or above the threshold, best first."""

    objects: tuple[FoundObject, ...]


class PoseAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="pose"):
    """Bodies with their joints, best first. A box spans the joints at or above the threshold."""

    objects: tuple[FoundObject, ...]


class LandmarksAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="landmarks"):
    """Faces or hands with their landmarks, best first."""

    objects: tuple[FoundObject, ...]


class SegmentationAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="segmentation"):
    """Which pixel belongs to what. The mask covers the whole upright picture, in its own resolution.

    Attributes:
        width, height: of the mask, pixels.
        classes: those that the mask holds, largest share first.
        runs: run lengths of the class map, row by row from the top left: (class_index, pixels), ...
        png: 8-bit grey PNG; pixel values are class indices, or 255 x probability where `probability` is true.
        probability: whether the PNG holds the probability of class 1 instead of class indices.
    """

    width: int
    height: int
    classes: tuple[MaskClass, ...]
    runs: tuple[tuple[int, int], ...]
    png: bytes
    probability: bool = False


class PictureAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="image"):
    """A picture that the model made: `png`, with an alpha channel where something was cut out."""

    width: int
    height: int
    png: bytes


Answer = ClassificationAnswer | DetectionAnswer | PoseAnswer | LandmarksAnswer | SegmentationAnswer | PictureAnswer

ObjectsAnswer = DetectionAnswer | PoseAnswer | LandmarksAnswer


LEAST_SHARE = 0.01
"""Of a mask: a class on fewer of its pixels is specks."""


def list_regions(answer: Answer) -> tuple[MaskClass, ...]:
    """What a mask shows: its classes but the background, from `LEAST_SHARE` on; none where the answer is no mask."""
    if not isinstance(answer, SegmentationAnswer):
        return ()
    return tuple(one for one in answer.classes if one.share >= LEAST_SHARE and not is_placeholder(one.label))


def list_objects(answer: Answer) -> tuple[FoundObject, ...]:
    """The objects of an answer, for whoever knows boxes alone; none where its task locates nothing.

    A class that a mask shows is an object in the box of its pixels, largest first. Its score is 1: a mask says of each
    pixel what it is, not how sure that is.
    """
    if isinstance(answer, ObjectsAnswer):
        return answer.objects
    return tuple(
        FoundObject(class_index=one.class_index, label=one.label, score=1.0, box=one.box)
        for one in list_regions(answer)
    )
