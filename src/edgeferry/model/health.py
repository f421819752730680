"""Health: how a version does while it serves, as counts that two versions can be compared by.

What this file leaves to others: counting (`serve/slot.py`), judging (`agent/probation.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Health:
    """What a version did since it began to serve.

    Attributes:
        deaths: of its worker, lately.
        answered: pictures answered.
        failed: pictures not answered through no fault of their sender.
        empty: of `answered`, how many named nothing.
        score_sum: the best scores of the others, added up (each 0..1).
        infer_ms: milliseconds in the engine of the latest answers.
    """

    deaths: int = 0
    answered: int = 0
    failed: int = 0
    empty: int = 0
    score_sum: float = 0.0
    infer_ms: tuple[float, ...] = ()

    @property
    def failed_share(self) -> float:
        """0..1."""
        return self.failed / max(1, self.answered + self.failed)

    @property
    def empty_share(self) -> float:
        """0..1."""
        return self.empty / max(1, self.answered)

    @property
    def named(self) -> int:
        """Answers that named something."""
        return self.answered - self.empty

    @property
    def mean_score(self) -> float:
        """Of the best scores, 0..1."""
        return self.score_sum / max(1, self.named)

    @property
    def median_ms(self) -> float:
        """0 before the first answer."""
        return median(self.infer_ms) if self.infer_ms else 0.0
