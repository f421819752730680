"""TokenBucket: how long to wait so that bytes flow at a given rate.

Sleeping is the caller's, so is the clock.

Rules:
- A bucket is a value: `take` returns the next one.
- What has arrived has arrived: `take` never refuses, it goes into debt and says how long to wait until it is paid off.
- A clock that jumps back adds nothing and takes nothing away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """`rate_bytes_per_s` flows in, at most `burst_bytes` are saved up; `tokens_bytes` below zero is debt at `now_s`."""

    rate_bytes_per_s: float
    burst_bytes: float
    tokens_bytes: float
    now_s: float

    def take(self, size_bytes: int, now_s: float) -> tuple[TokenBucket, float]:
        """Spends `size_bytes` at `now_s` (any monotonic clock); returns the new bucket and the seconds to wait."""
        elapsed_s = max(0.0, now_s - self.now_s)
        saved = min(self.burst_bytes, self.tokens_bytes + elapsed_s * self.rate_bytes_per_s)
        left = saved - size_bytes
        return replace(self, tokens_bytes=left, now_s=now_s), max(0.0, -left / self.rate_bytes_per_s)


def make_bucket(rate_bytes_per_s: float, *, now_s: float, burst_s: float = 0.5) -> TokenBucket:
    """A full bucket that saves up at most `burst_s` seconds of its rate; ValueError unless both are above 0."""
    if rate_bytes_per_s <= 0 or burst_s <= 0:
        raise ValueError(f"expected a rate and a burst above 0, found {rate_bytes_per_s} and {burst_s}")
    burst = rate_bytes_per_s * burst_s
    return TokenBucket(rate_bytes_per_s, burst, burst, now_s)
