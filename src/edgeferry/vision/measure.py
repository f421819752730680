"""Measures of a model's answers over many pictures: against what is true, and against another version's answers.

What this file leaves to others: asking the model, and whether a loss is small enough (`publish/`).

Rules:
- Points are hundredths: 0..100.
- Average precision is at IoU 0.5 over all points of the precision-recall curve (PASCAL VOC 2010 onwards); its mean is
  over the labels that some truth has. The answers choose best first, each the truth that it overlaps most.
- A truth without a box is overlapped by every answer of its label.
- Answers are compared best first too: each takes the other's object of its label that it overlaps most, if by IoU 0.5.
- Masks are compared by the IoU of each class that either holds, pixel by pixel; its mean is over those classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from edgeferry.model.manifest import TruthObject
from edgeferry.vision.answer import Answer, ClassificationAnswer, DetectionAnswer, FoundObject, SegmentationAnswer
from edgeferry.vision.golden import get_iou

Truths = tuple[TruthObject, ...]
Runs = tuple[tuple[int, int], ...]
LEAST_IOU = 0.5


# --- against what is true ---------------------------------------------------------------------------------------------
def measure_precision(truths: Sequence[Truths], answers: Sequence[DetectionAnswer]) -> float:
    """Mean average precision at IoU 0.5, in points; 0 where no truth says anything."""
    labels = sorted({truth.label for picture in truths for truth in picture})
    found = [_measure_label(label, truths, answers) for label in labels]
    return 100.0 * sum(found) / len(found) if found else 0.0


def measure_top1(truths: Sequence[Truths], answers: Sequence[ClassificationAnswer]) -> float:
    """Share of the pictures whose best class is one of the true labels, in points."""
    right = sum(
        _get_best(answer) in {truth.label for truth in true} for true, answer in zip(truths, answers, strict=True)
    )
    return 100.0 * right / max(1, len(truths))


def _get_best(answer: ClassificationAnswer) -> str | None:
    return answer.classes[0].label if answer.classes else None


def _measure_label(label: str, truths: Sequence[Truths], answers: Sequence[DetectionAnswer]) -> float:
    hits: list[tuple[float, bool]] = []
    total = 0
    for picture, answer in zip(truths, answers, strict=True):
        wanted = [truth for truth in picture if truth.label == label]
        total += len(wanted)
        hits += _find_hits([seen for seen in answer.objects if seen.label == label], wanted)
    hits.sort(key=lambda hit: -hit[0])
    return _get_area_under_curve([right for _, right in hits], total)


def _find_hits(seen: Sequence[FoundObject], wanted: Sequence[TruthObject]) -> Iterator[tuple[float, bool]]:
    """Score of each answer, and whether it is the first to find its truth."""
    open_truths = set(range(len(wanted)))
    for one in sorted(seen, key=lambda each: -each.score):
        overlaps = [1.0 if truth.box is None else get_iou(one.box, truth.box) for truth in wanted]
        # among equals, one that is not found yet
        best = max(range(len(wanted)), key=lambda at: (overlaps[at], at in open_truths), default=None)
        right = best is not None and overlaps[best] >= LEAST_IOU and best in open_truths
        open_truths.discard(best if right and best is not None else -1)
        yield one.score, right


def _get_area_under_curve(hits: Sequence[bool], total: int) -> float:
    right, precisions = 0, []
    for number, hit in enumerate(hits, start=1):
        right += hit
        precisions.append(right / number)
    area, best = 0.0, 0.0
    for hit, precision in zip(reversed(hits), reversed(precisions), strict=True):
        best = max(best, precision)
        area += best / total if hit else 0.0
    return area


# --- against another version ------------------------------------------------------------------------------------------
def measure_disagreement(ones: Sequence[Answer], others: Sequence[Answer], *, score: float) -> float:
    """In points, what part of the objects (from `score` on) have no partner in the other answers; of classifications,
    how many pictures have another best class; of masks, what their mean IoU lacks.
    """
    apart, total = 0.0, 0
    for one, other in zip(ones, others, strict=True):
        if isinstance(one, ClassificationAnswer) and isinstance(other, ClassificationAnswer):
            apart, total = apart + (_get_best(one) != _get_best(other)), total + 1
        elif isinstance(one, DetectionAnswer) and isinstance(other, DetectionAnswer):
            mine, theirs = _keep(one, score), _keep(other, score)
            pairs = sum(None not in pair for pair in pair_objects(mine, theirs))
            apart, total = apart + len(mine) + len(theirs) - 2 * pairs, total + len(mine) + len(theirs)
        elif isinstance(one, SegmentationAnswer) and isinstance(other, SegmentationAnswer):
            apart, total = apart + 1.0 - get_mask_iou(one, other), total + 1
    return 100.0 * apart / max(1, total)


def measure_difference(ones: Sequence[Answer], others: Sequence[Answer]) -> float:
    """How far answers lie apart, as a sum of squares per picture that grows smoothly with what was changed."""
    total = sum(_differ(one, other) for one, other in zip(ones, others, strict=True))
    return total / max(1, len(ones))


def _differ(one: Answer, other: Answer) -> float:
    if isinstance(one, ClassificationAnswer) and isinstance(other, ClassificationAnswer):
        mine = {each.class_index: each.score for each in one.classes}
        theirs = {each.class_index: each.score for each in other.classes}
        return float(sum((mine.get(at, 0.0) - theirs.get(at, 0.0)) ** 2 for at in mine.keys() | theirs.keys()))
    if isinstance(one, DetectionAnswer) and isinstance(other, DetectionAnswer):
        return sum(_differ_objects(mine, theirs) for mine, theirs in pair_objects(one.objects, other.objects))
    if isinstance(one, SegmentationAnswer) and isinstance(other, SegmentationAnswer):
        return 1.0 - get_mask_iou(one, other)
    return 1.0


def get_mask_iou(one: SegmentationAnswer, other: SegmentationAnswer) -> float:
    """Mean over classes of the pixels that both give to it, of those that either gives; 0 for masks of other sizes."""
    if (one.width, one.height) != (other.width, other.height):
        return 0.0
    shared: Counter[int] = Counter()
    held: Counter[int] = Counter()
    for mine, theirs, pixels in overlay_runs(one.runs, other.runs):
        shared[mine] += pixels if mine == theirs else 0
        for index in {mine, theirs}:
            held[index] += pixels
    return sum(shared[index] / held[index] for index in held) / max(1, len(held))


def overlay_runs(ones: Runs, others: Runs) -> Iterator[tuple[int, int, int]]:
    """Two maps laid over each other: (class of one, class of the other, pixels), as long as neither changes."""
    left, right = iter(ones), iter(others)
    (mine, first), (theirs, second) = next(left, (0, 0)), next(right, (0, 0))
    while first and second:
        pixels = min(first, second)
        yield mine, theirs, pixels
        first, second = first - pixels, second - pixels
        if not first:
            mine, first = next(left, (0, 0))
        if not second:
            theirs, second = next(right, (0, 0))


def _differ_objects(mine: FoundObject | None, theirs: FoundObject | None) -> float:
    if mine is None or theirs is None:
        lone = mine or theirs
        return lone.score**2 if lone else 0.0
    return (mine.score - theirs.score) ** 2 + (mine.score * (1.0 - get_iou(mine.box, theirs.box))) ** 2


def _keep(answer: DetectionAnswer, score: float) -> list[FoundObject]:
    return [one for one in answer.objects if one.score >= score]


def pair_objects(
    ones: Sequence[FoundObject], others: Sequence[FoundObject]
) -> Iterator[tuple[FoundObject | None, FoundObject | None]]:
    """Every object of both sides once, beside its partner where it has one."""
    left = list(others)
    for one in sorted(ones, key=lambda each: -each.score):
        alike = [(get_iou(one.box, other.box), at) for at, other in enumerate(left) if other.label == one.label]
        best = max(alike, key=lambda each: each[0], default=(0.0, -1))
        yield one, left.pop(best[1]) if best[0] >= LEAST_IOU else None
    yield from ((None, other) for other in left)
