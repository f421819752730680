"""Whether two workers fit: never more than is free, and never less the more is free."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeferry.runtime.memory import MemoryReading
from edgeferry.serve.headroom import MARGIN_BYTES, fits_beside

MIB = 1 << 20
SIZES = st.integers(0, 1 << 40)


def test_a_second_worker_takes_what_the_first_took_and_a_margin_stays_free() -> None:
    for free_mib, fits in ((100, False), (131, False), (132, True), (1000, True)):
        reading = MemoryReading(free_mib * MIB, 100 * MIB)
        assert fits_beside(reading, new_bytes=5, old_bytes=5) is fits, free_mib


def test_a_larger_model_takes_more_and_a_smaller_one_is_not_trusted_to_take_less() -> None:
    reading = MemoryReading(200 * MIB, 100 * MIB)
    assert fits_beside(reading, new_bytes=20 * MIB, old_bytes=10 * MIB)
    assert not fits_beside(reading, new_bytes=60 * MIB, old_bytes=10 * MIB)
    tight = MemoryReading(131 * MIB, 100 * MIB)
    assert not fits_beside(tight, new_bytes=0, old_bytes=90 * MIB)


@given(SIZES, SIZES, SIZES, SIZES)
def test_what_fits_leaves_the_margin_and_fits_with_more_free_too(free: int, worker: int, new: int, old: int) -> None:
    if fits_beside(MemoryReading(free, worker), new_bytes=new, old_bytes=old):
        assert free >= worker + MARGIN_BYTES
        assert fits_beside(MemoryReading(free + 1, worker), new_bytes=new, old_bytes=old)
