"""Tally: what one version did while it served, counted answer by answer.

What this file leaves to others: what the counts mean (`model/health.py`, `agent/probation.py`).

Rules:
- A request counts for the version that answered it, also when the switch came in between.
- Bounded: of the times in the engine only the latest are kept, and of the deaths the latest.
- Health counts the deaths of the last hour: what dies once a week is well.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from edgeferry.model.health import Health
from edgeferry.runtime.child import InferReply
from edgeferry.vision.answer import Answer, ClassificationAnswer, PictureAnswer, SegmentationAnswer

_TIMES_MAX = 200
_DEATHS_MAX = 100
_DEATHS_SPAN_S = 3600.0


class Tally:
    """Counts since a version began to serve."""

    def __init__(self) -> None:
        self.deaths = 0
        """All of them; see `get_health` for those that count."""
        self.answered = 0
        self.failed = 0
        self._empty = 0
        self._score_sum = 0.0
        self._died_at: deque[float] = deque(maxlen=_DEATHS_MAX)
        self._times_ms: deque[float] = deque(maxlen=_TIMES_MAX)

    def note_death(self) -> None:
        """The worker died."""
        self.deaths += 1
        self._died_at.append(time.monotonic())

    def note_answer(self, reply: InferReply) -> None:
        """A picture was answered."""
        score = _find_best_score(reply.answer)
        self.answered += 1
        self._empty += score is None
        self._score_sum += score or 0.0
        self._times_ms.append(reply.timings_ms.get("infer", 0.0))

    def note_tensors(self, timings_ms: Mapping[str, float], *, counts: bool) -> None:
        """Tensors were answered. They name nothing: they count as answers of models that answer nothing else."""
        self._times_ms.append(timings_ms.get("infer", 0.0))
        if counts:
            self.answered += 1
            self._score_sum += 1.0

    def get_health(self) -> Health:
        """The counts of this moment."""
        times = tuple(self._times_ms)
        now = time.monotonic()
        deaths = sum(now - died_at < _DEATHS_SPAN_S for died_at in self._died_at)
        return Health(deaths, self.answered, self.failed, self._empty, self._score_sum, times)


def _find_best_score(answer: Answer) -> float | None:
    """Of what is named first: results stand best first. None when nothing is named."""
    match answer:
        case PictureAnswer():
            return 1.0
        case SegmentationAnswer():
            return sum(one.share for one in answer.classes if one.class_index) or None  # class 0 is the background
        case ClassificationAnswer():
            return answer.classes[0].score if answer.classes else None
    return answer.objects[0].score if answer.objects else None
