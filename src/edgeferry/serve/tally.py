"""Tally: what one version did while it served, counted answer by answer.

What this file leaves to others: what the counts mean (`model/health.py`, `agent/probation.py`).

Rules:
- A request counts for the version that answered it, also when the switch came in between.
- Bounded: of the times in the engine only the latest are kept.
"""

from __future__ import annotations

from collections import deque

from edgeferry.model.health import Health
from edgeferry.runtime.child import InferReply
from edgeferry.vision.answer import Answer, ClassificationAnswer

_TIMES_MAX = 200


class Tally:
    """Counts since a version began to serve."""

    def __init__(self) -> None:
        self.deaths = 0
        self.answered = 0
        self.failed = 0
        self._empty = 0
        self._score_sum = 0.0
        self._times_ms: deque[float] = deque(maxlen=_TIMES_MAX)

    def note_answer(self, reply: InferReply) -> None:
        """A picture was answered."""
        score = _find_best_score(reply.answer)
        self.answered += 1
        self._empty += score is None
        self._score_sum += score or 0.0
        self._times_ms.append(reply.timings_ms.get("infer", 0.0))

    def get_health(self) -> Health:
        """The counts of this moment."""
        times = tuple(self._times_ms)
        return Health(self.deaths, self.answered, self.failed, self._empty, self._score_sum, times)


def _find_best_score(answer: Answer) -> float | None:
    """Of what is named first: results stand best first. None when nothing is named."""
    results = answer.classes if isinstance(answer, ClassificationAnswer) else answer.objects
    return results[0].score if results else None
