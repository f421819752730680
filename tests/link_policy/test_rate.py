"""Bytes flow at the rate that was set, whatever their sizes and however the clock jumps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.link.rate import make_bucket


def test_a_burst_goes_at_once_and_the_rest_waits() -> None:
    bucket = make_bucket(1000, now_s=0.0, burst_s=0.5)
    bucket, wait_s = bucket.take(500, 0.0)
    assert wait_s == 0.0
    bucket, wait_s = bucket.take(250, 0.0)
    assert wait_s == 0.25
    bucket, wait_s = bucket.take(100, 0.25)
    assert wait_s == pytest.approx(0.1)


def test_a_long_pause_saves_up_no_more_than_one_burst() -> None:
    bucket, _ = make_bucket(1000, now_s=0.0).take(500, 0.0)
    _, wait_s = bucket.take(1500, 3600.0)
    assert wait_s == 1.0


def test_a_clock_that_jumps_back_adds_nothing() -> None:
    bucket, _ = make_bucket(1000, now_s=1000.0).take(500, 1000.0)
    bucket, wait_s = bucket.take(100, 10.0)
    assert wait_s == pytest.approx(0.1)
    _, wait_s = bucket.take(0, 10.1)
    assert wait_s == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("rate", "burst_s"), [(0, 1), (-1, 1), (1, 0)])
def test_a_rate_that_would_never_let_anything_through_is_refused(rate: float, burst_s: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        make_bucket(rate, now_s=0.0, burst_s=burst_s)


@given(
    st.floats(1, 1e7),
    st.floats(0.01, 10),
    st.lists(st.tuples(st.integers(0, 100_000), st.floats(0, 5)), min_size=1, max_size=50),
)
def test_who_waits_as_told_never_exceeds_rate_and_burst_and_never_waits_too_long(
    rate: float, burst_s: float, steps: list[tuple[int, float]]
) -> None:
    bucket = make_bucket(rate, now_s=0.0, burst_s=burst_s)
    now_s, sent, idle_s = 0.0, 0, 0.0
    for size, pause_s in steps:
        now_s, idle_s = now_s + pause_s, idle_s + pause_s
        bucket, wait_s = bucket.take(size, now_s)
        now_s, sent = now_s + wait_s, sent + size
        assert sent <= (rate * burst_s + rate * now_s) * (1 + 1e-9) + 1e-3
    assert now_s <= (idle_s + sent / rate) * (1 + 1e-9) + 1e-6
