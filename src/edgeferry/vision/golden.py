"""Golden: whether a version's answers come near enough to what an operator knows to be true of some pictures.

What this file leaves to others: where golden truth comes from (`publish/`), asking the model (`runtime/worker.py`).

Rules:
- Detection: a truth is found when an answer of its label overlaps it with IoU >= tolerance.iou (lies anywhere, where
  the truth has no box). Answers choose by score, best first; one answer finds one truth, one truth is found once.
- Poses and landmarks are judged as detections: by the label and the box of what they belong to.
- Segmentation: a truth is found when the mask holds its label on at least 1 % of the picture (`LEAST_SHARE`) and, where
  the truth has a box, the box that those pixels span overlaps it with IoU >= tolerance.iou. Truths of one label count
  as one, in the box that spans theirs. The background is nothing that is seen where nothing is to be seen.
- Image: no truth speaks of a made picture. A picture with truths counts as one, found when the made picture shows
  something: laid on white, it is not of one colour throughout. One without truths is not judged.
- Classification: a picture counts as one truth, found when the best class is one of its labels.
- Pooled: the found truths of all pictures must reach the sum of share x truths. One hard picture fails nothing.
- A picture without truths says that nothing is to be seen: any answer at or above the threshold fails the version.
- No golden truth at all passes: there is nothing to miss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgeferry.model.manifest import Golden, TruthObject
from edgeferry.vision.answer import (
    LEAST_SHARE,
    Answer,
    Box,
    ClassificationAnswer,
    FoundObject,
    PictureAnswer,
    SegmentationAnswer,
    list_objects,
)

_DETAILS_MAX = 8
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """`found` of `total` truths, `needed` to pass, and one sentence on each picture that was missed (the first few)."""

    found: int
    total: int
    needed: float
    passed: bool
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Verdict:
    found: int
    total: int
    false_alarms: int
    detail: str


def judge(pairs: Iterable[tuple[Golden, Answer]]) -> GoldenReport:
    """Compares answers with what is true; see the module for the rules."""
    found, total, needed, alarms = 0, 0, 0.0, 0
    details: list[str] = []
    for number, (golden, answer) in enumerate(pairs, start=1):
        verdict = _judge_one(golden, answer)
        found, total = found + verdict.found, total + verdict.total
        needed += golden.tolerance.share * verdict.total
        alarms += verdict.false_alarms
        if verdict.detail and len(details) < _DETAILS_MAX:
            details.append(f"picture {number}: {verdict.detail}")
    passed = alarms == 0 and found >= needed - _ROUNDING
    return GoldenReport(found, total, needed, passed, tuple(details))


def get_iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes (top, left, bottom, right)."""
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    if height <= 0 or width <= 0:
        return 0.0
    shared = height * width
    return shared / (_get_area(one) + _get_area(other) - shared)


def _get_area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _judge_one(golden: Golden, answer: Answer) -> _Verdict:
    if isinstance(answer, PictureAnswer):
        return _judge_picture(golden, answer)
    if not golden.truth:
        return _judge_empty(answer)
    if isinstance(answer, ClassificationAnswer):
        return _judge_classes(golden, answer)
    if isinstance(answer, SegmentationAnswer):
        return _judge_mask(golden, answer)
    return _judge_objects(golden, list_objects(answer))


def _judge_empty(answer: Answer) -> _Verdict:
    seen = answer.classes if isinstance(answer, ClassificationAnswer) else list_objects(answer)
    if not seen:
        return _Verdict(0, 0, 0, "")
    return _Verdict(0, 0, len(seen), f"expected nothing, found {seen[0].label!r:.60} with {seen[0].score:.2f}")


def _judge_picture(golden: Golden, answer: PictureAnswer) -> _Verdict:
    if not golden.truth:
        return _Verdict(0, 0, 0, "")
    # only here: the device's main process compares answers too, and never loads numpy
    from edgeferry.vision.image import PictureLimits, read_picture

    pixels = read_picture(answer.png, PictureLimits(len(answer.png), answer.width * answer.height)).pixels
    if (pixels != pixels[0, 0]).any():
        return _Verdict(1, 1, 0, "")
    return _Verdict(0, 1, 0, "the made picture is of one colour throughout")


def _judge_mask(golden: Golden, answer: SegmentationAnswer) -> _Verdict:
    boxes = {one.label: one.box for one in answer.classes if one.share >= LEAST_SHARE}
    wanted = _join_truths(golden.truth)
    missed = sorted(
        label
        for label, box in wanted.items()
        if label not in boxes or (box is not None and get_iou(boxes[label], box) < golden.tolerance.iou)
    )
    if not missed:
        return _Verdict(len(wanted), len(wanted), 0, "")
    seen = ", ".join(f"{one.label} {one.share:.0%}" for one in answer.classes[:5])
    detail = f"missed {', '.join(missed):.120}; the mask holds {seen:.160}"
    return _Verdict(len(wanted) - len(missed), len(wanted), 0, detail)


def _join_truths(truths: Iterable[TruthObject]) -> dict[str, Box | None]:
    """For each label the box that spans its truths; None where one of them lies anywhere."""
    joined: dict[str, Box | None] = {}
    for truth in truths:
        other = joined.get(truth.label, truth.box)
        both = None if truth.box is None or other is None else (truth.box, other)
        joined[truth.label] = both and (
            min(box[0] for box in both),
            min(box[1] for box in both),
            max(box[2] for box in both),
            max(box[3] for box in both),
        )
    return joined


def _judge_classes(golden: Golden, answer: ClassificationAnswer) -> _Verdict:
    wanted = [truth.label for truth in golden.truth]
    if answer.classes and answer.classes[0].label in wanted:
        return _Verdict(1, 1, 0, "")
    best = f"{answer.classes[0].label!r:.60} with {answer.classes[0].score:.2f}" if answer.classes else "nothing"
    return _Verdict(0, 1, 0, f"expected {wanted!r:.120}, found {best}")


def _judge_objects(golden: Golden, objects: tuple[FoundObject, ...]) -> _Verdict:
    open_truths = list(golden.truth)
    for seen in sorted(objects, key=lambda one: -one.score):
        match = _find_best_match(seen, open_truths, golden.tolerance.iou)
        if match is not None:
            open_truths.remove(match)
    found = len(golden.truth) - len(open_truths)
    if not open_truths:
        return _Verdict(found, found, 0, "")
    return _Verdict(found, len(golden.truth), 0, _describe_missed(open_truths, objects))


def _find_best_match(seen: FoundObject, truths: list[TruthObject], least_iou: float) -> TruthObject | None:
    """The truth of this label that the answer overlaps most, if enough."""
    overlaps = [(_get_overlap(seen, truth), truth) for truth in truths if truth.label == seen.label]
    enough = [pair for pair in overlaps if pair[0] >= least_iou]
    return max(enough, key=lambda pair: pair[0])[1] if enough else None


def _get_overlap(seen: FoundObject, truth: TruthObject) -> float:
    return 1.0 if truth.box is None else get_iou(seen.box, truth.box)


def _describe_missed(missed: list[TruthObject], objects: tuple[FoundObject, ...]) -> str:
    wanted = ", ".join(sorted({truth.label for truth in missed}))
    seen = ", ".join(f"{one.label} {one.score:.2f}" for one in objects[:5]) or "nothing"
    return f"missed {wanted:.120}; answered {seen:.160}"
