"""Examiner: asks versions of one model file about an operator's pictures, with the engine that devices use.

What this file leaves to others: arithmetic on answers (`vision/measure.py`), what to do with a loss (`slim.py`).

Rules:
- The loss is the task's metric on labelled pictures: mean average precision at IoU 0.5 (detection) or top-1
  (classification). Where no picture has a truth it is disagreement with the operator's own version; of masks always,
  since truths are boxes.
- Other tasks are refused: nothing here measures what they lose.
- Either all pictures have a truth beside them or none has.
- The smooth difference that steers the search looks at answers of any score and at DIFFERENCE_PICTURES at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeferry.errors import ConfigInvalid, ModelUnsupported, RequestError
from edgeferry.model.spec import ModelSpec, Stage, Task
from edgeferry.names import get_stem
from edgeferry.publish.golden import PICTURE_SUFFIXES, read_truth
from edgeferry.runtime.served import PictureSettings, ServedModel, load_served, make_terms
from edgeferry.runtime.session import EngineSettings
from edgeferry.storage.files import write_atomically
from edgeferry.vision.answer import Answer, ClassificationAnswer, DetectionAnswer
from edgeferry.vision.image import PictureLimits
from edgeferry.vision.measure import (
    Truths,
    measure_difference,
    measure_disagreement,
    measure_precision,
    measure_top1,
)
from edgeferry.wire.worker_frames import Terms

MAX_PICTURES = 5_000
DIFFERENCE_PICTURES = 32
_TASKS = ("classification", "detection", "segmentation")
_DISAGREEMENT = "disagreement"


@dataclass(frozen=True, slots=True)
class EvalSet:
    """Pictures in the order of their names; `truths` beside each, or none at all."""

    pictures: tuple[bytes, ...]
    truths: tuple[Truths, ...] | None


def read_eval_set(files: Mapping[str, bytes]) -> EvalSet:
    """Pairs pictures with their truths.

    Args:
        files: name -> bytes of everything in the operator's folder; other files are left alone.

    Raises:
        ConfigInvalid: no picture, too many, truths beside some of them only, or a truth that is none.
    """
    names = sorted(name for name in files if name.lower().endswith(PICTURE_SUFFIXES))
    if not 0 < len(names) <= MAX_PICTURES:
        raise ConfigInvalid(f"expected 1 to {MAX_PICTURES} pictures to evaluate on, found {len(names)}")
    pictures = tuple(files[name] for name in names)
    beside = [f"{get_stem(name)}.json" for name in names]
    if not any(name in files for name in beside):
        return EvalSet(pictures, None)
    truths = (read_truth(name, files.get(path)) for name, path in zip(names, beside, strict=True))
    return EvalSet(pictures, tuple(truth.list_objects() for truth in truths))


class Examiner:
    """Knows the pictures, the truths, and what the operator's own version answers.

    Attributes:
        metric: what the loss is measured by, in words.
        score: the own version's, in points; None where it is itself the measure.
        outcomes: how many objects, or pictures where no objects are found, can turn out one way or the other.
        by_label: outcomes of each label, where the metric is a mean over labels; else empty.
    """

    def __init__(self, spec: ModelSpec, files: Mapping[str, bytes], eval_set: EvalSet, *, folder: Path) -> None:
        """Asks the operator's version about every picture.

        Args:
            spec: of the version.
            files: of its bundle; the model file is the operator's version.
            eval_set: the pictures.
            folder: an empty folder to work in.

        Raises:
            ConfigInvalid: a picture cannot be read, or a truth names a label that the model does not know.
            ModelUnreadable, ModelUnsupported, ToolMissing: the engine does not take the file.
        """
        self._stage, self._folder, self._eval_set = _require_stage(spec), folder, eval_set
        for name, data in files.items():
            write_atomically(folder / name, data)
        self._spec = spec
        self._terms = _open_thresholds(make_terms(folder, spec), self._stage.task)
        _check_labels(eval_set, self._terms.labels[0])
        self._own = self._ask(files[self._stage.file], len(eval_set.pictures))
        self.metric = self._name_metric()
        self.score = None if self.metric == _DISAGREEMENT else self._measure_score(self._own)
        self.outcomes = self._count_outcomes()
        self.by_label = self._count_by_label()

    def measure_difference(self, data: bytes) -> float:
        """See `slim.Judge`."""
        count = min(DIFFERENCE_PICTURES, len(self._own))
        return measure_difference(self._own[:count], self._ask(data, count))

    def measure_loss(self, data: bytes) -> float:
        """See `slim.Judge`."""
        answers = self._ask(data, len(self._own))
        if self.score is None:
            return measure_disagreement(self._own, answers, score=self._stage.thresholds.score)
        return self.score - self._measure_score(answers)

    def _ask(self, data: bytes, count: int) -> list[Answer]:
        """The answers of a model file to the first `count` pictures."""
        write_atomically(self._folder / self._stage.file, data)
        served = load_served(self._folder, self._spec, EngineSettings(), PictureSettings(PictureLimits()))
        return [_answer(served, picture, self._terms) for picture in self._eval_set.pictures[:count]]

    def _measure_score(self, answers: Sequence[Answer]) -> float:
        truths = self._eval_set.truths or ()
        if self._stage.task == "classification":
            return measure_top1(truths, [each for each in answers if isinstance(each, ClassificationAnswer)])
        return measure_precision(truths, [each for each in answers if isinstance(each, DetectionAnswer)])

    def _name_metric(self) -> str:
        if self._eval_set.truths is None or self._stage.task == "segmentation":
            return _DISAGREEMENT
        return "top-1" if self._stage.task == "classification" else "mAP@0.5"

    def _count_by_label(self) -> dict[str, int]:
        if self._stage.task != "detection":
            return {}
        return dict(Counter(truth.label for picture in self._eval_set.truths or () for truth in picture))

    def _count_outcomes(self) -> int:
        if self._stage.task != "detection":
            return len(self._own)
        if self._eval_set.truths is not None:
            return sum(map(len, self._eval_set.truths))
        least = self._stage.thresholds.score
        return sum(
            one.score >= least for each in self._own if isinstance(each, DetectionAnswer) for one in each.objects
        )


def _require_stage(spec: ModelSpec) -> Stage:
    if len(spec.stages) != 1:
        raise ModelUnsupported(f"expected one stage to slim, found {len(spec.stages)}: pipelines are not slimmed")
    if spec.stages[0].task not in _TASKS:
        raise ModelUnsupported(f"expected a task among {', '.join(_TASKS)} to slim, found {spec.stages[0].task!r:.40}")
    return spec.stages[0]


def _open_thresholds(terms: Terms, task: Task) -> Terms:
    """Answers of any score count: precision is an area, and a score that sinks is a difference. Masks keep theirs."""
    if task == "segmentation":
        return terms
    opened = tuple(msgspec.structs.replace(each, score=0.0) for each in terms.thresholds)
    return msgspec.structs.replace(terms, thresholds=opened)


def _check_labels(eval_set: EvalSet, labels: Collection[str]) -> None:
    wanted = {truth.label for picture in eval_set.truths or () for truth in picture}
    unknown = sorted(wanted - set(labels))
    if unknown:
        raise ConfigInvalid(f"truths name labels that this model cannot answer: {', '.join(unknown)[:200]}")


def _answer(served: ServedModel, picture: bytes, terms: Terms) -> Answer:
    try:
        return served.answer(picture, terms).answer
    except RequestError as error:
        raise ConfigInvalid(f"a picture to evaluate on cannot be read: {error}") from error
