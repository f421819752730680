"""How far two versions agree on the same pictures: what they name, how their boxes lie, what their scores do.

What this file leaves to others: asking both (`serve/shadow.py`), whether it is enough (`agent/shadowing.py`).

Rules:
- Of one picture: twice the pairs by all objects of both (Dice); of classes, whether the best is the same; of masks, the
  share of pixels of one class; of pictures that were made, whether they are equal. Two answers that name nothing agree.
- The shift is the candidate's score less the live one's, over what both name; it may be below 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from edgeferry.vision.answer import Answer, ClassificationAnswer, PictureAnswer, SegmentationAnswer, list_objects
from edgeferry.vision.golden import get_iou
from edgeferry.vision.measure import overlay_runs, pair_objects


class AgreementReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of an agreement: pictures, mean agreement, mean IoU and mean shift of score. Under 100 bytes."""

    n: int = 0
    agree: float = 0.0
    iou: float = 0.0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """Sums over pictures; they add up."""

    pictures: int = 0
    agreed: float = 0.0
    pairs: int = 0
    iou: float = 0.0
    shift: float = 0.0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.pictures + other.pictures,
            self.agreed + other.agreed,
            self.pairs + other.pairs,
            self.iou + other.iou,
            self.shift + other.shift,
        )

    @property
    def share(self) -> float:
        """Mean agreement of a picture, 0..1."""
        return self.agreed / self.pictures if self.pictures else 0.0

    def make_report(self) -> AgreementReport:
        """The means."""
        pairs = max(1, self.pairs)
        return AgreementReport(
            n=self.pictures,
            agree=round(self.share, 3),
            iou=round(self.iou / pairs, 3),
            shift=round(self.shift / pairs, 3),
        )


def compare(live: Answer, candidate: Answer) -> Agreement:
    """The agreement of two answers to one picture; answers of different tasks agree in nothing."""
    match live, candidate:
        case ClassificationAnswer(), ClassificationAnswer():
            return _compare_classes(live, candidate)
        case SegmentationAnswer(), SegmentationAnswer():
            return Agreement(1, _compare_masks(live, candidate))
        case PictureAnswer(), PictureAnswer():
            return Agreement(1, float(live.png == candidate.png))
    return _compare_objects(live, candidate) if type(live) is type(candidate) else Agreement(1)


def _compare_classes(live: ClassificationAnswer, candidate: ClassificationAnswer) -> Agreement:
    if not live.classes or not candidate.classes:
        return Agreement(1, float(not live.classes and not candidate.classes))
    one, other = live.classes[0], candidate.classes[0]
    if one.label != other.label:
        return Agreement(1)
    return Agreement(1, 1.0, pairs=1, iou=1.0, shift=other.score - one.score)


def _compare_objects(live: Answer, candidate: Answer) -> Agreement:
    ones, others = list_objects(live), list_objects(candidate)
    if not ones and not others:
        return Agreement(1, 1.0)
    pairs = [(one, other) for one, other in pair_objects(ones, others) if one is not None and other is not None]
    return Agreement(
        1,
        2 * len(pairs) / (len(ones) + len(others)),
        pairs=len(pairs),
        iou=sum(get_iou(one.box, other.box) for one, other in pairs),
        shift=sum(other.score - one.score for one, other in pairs),
    )


def _compare_masks(live: SegmentationAnswer, candidate: SegmentationAnswer) -> float:
    pixels = live.width * live.height
    if (live.width, live.height) != (candidate.width, candidate.height) or not pixels:
        return 0.0
    return sum(size for one, other, size in overlay_runs(live.runs, candidate.runs) if one == other) / pixels
