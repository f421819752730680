"""Whether a version on probation does well: against its predecessor on this device's own pictures. Pure.

What this file leaves to others: counting (`serve/`), watching the time and rolling back (`steps.py`).

Rules:
- Golden truth has spoken before; here only what is plainly wrong counts. A scene that changes at the same time as the
  version must not roll it back, so that shares and scores have to differ widely, over enough pictures.
- Without a predecessor only deaths and failures count.
"""

from __future__ import annotations

from edgeferry.model.health import Health

FEW = 10
"""Fewer pictures than this say nothing."""
FAILED_SHARE_MAX = 0.1
SLOWER_FACTOR, SLOWER_MS = 3.0, 50.0
"""Slow is what takes three times as long as before, and this much longer."""
EMPTY_SHARE, EMPTY_SHARE_BEFORE = 0.95, 0.5
SCORE_FACTOR = 0.5


def find_ailment(now: Health, before: Health | None, *, deaths_max: int) -> str:
    """What is wrong with the version that serves, in words; '' while nothing is.

    Args:
        now: of the version on probation, since it serves.
        before: of the version that served before it, if one did.
        deaths_max: so many deaths of the worker are too many.
    """
    if now.deaths >= deaths_max:
        return f"its worker died {now.deaths} times"
    if now.answered + now.failed >= FEW and now.failed_share > max(FAILED_SHARE_MAX, 3 * _get_failed_share(before)):
        return f"{now.failed} of {now.answered + now.failed} pictures were not answered"
    if before is None or min(now.answered, before.answered) < FEW:
        return ""
    return _compare(now, before)


def _get_failed_share(before: Health | None) -> float:
    return before.failed_share if before is not None else 0.0


def _compare(now: Health, before: Health) -> str:
    if now.median_ms > max(SLOWER_FACTOR * before.median_ms, before.median_ms + SLOWER_MS):
        return f"it takes {now.median_ms:.0f} ms for a picture, the version before took {before.median_ms:.0f} ms"
    if now.empty_share >= EMPTY_SHARE and before.empty_share <= EMPTY_SHARE_BEFORE:
        return f"{now.empty} of {now.answered} answers name nothing; before it were {before.empty_share:.0%}"
    if min(now.named, before.named) >= FEW and now.mean_score < SCORE_FACTOR * before.mean_score:
        return f"its best scores are {now.mean_score:.2f} on average; before they were {before.mean_score:.2f}"
    return ""
