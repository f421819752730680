"""What is expected of numbers: the same in any pieces; borders of pruning in their order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta.coded_tensors import code, draw_side
from edgeferry.delta.predict import PRUNE_STEPS, Files, expect, find_prune_contexts

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@given(st.integers(0, 1 << 32), st.integers(1, 40))
@settings(max_examples=150)
def test_what_is_expected_does_not_depend_on_where_pieces_are_cut(seed: int, step: int) -> None:
    coded = code(seed)
    record, side = coded.record, draw_side(np.random.default_rng(seed), coded.record)
    files = Files(memoryview(coded.base), memoryview(coded.target))
    whole = expect(record, side, files, start=0, end=record.elements)
    for start in range(0, record.elements, step):
        end = min(start + step, record.elements)
        part = expect(record, side, files, start=start, end=end)
        picked = whole.pick(np.arange(start, end))
        for one, other in zip(part, picked, strict=True):
            assert (one is None and other is None) or np.asarray(one).tobytes() == np.asarray(other).tobytes()


@given(st.integers(0, 1 << 32))
@settings(max_examples=100)
def test_no_number_is_expected_that_is_none(seed: int) -> None:
    coded = code(seed)
    side = draw_side(np.random.default_rng(seed), coded.record)
    files = Files(memoryview(coded.base), memoryview(coded.target))
    found = expect(coded.record, side, files, start=0, end=coded.record.elements)
    assert not np.isnan(found.numbers).any() and not np.isnan(found.sizes).any()
    assert np.abs(found.scales).max() <= (1200 if coded.record.kind.is_float and not coded.record.lattice else 96)


@given(st.floats(2.0**-100, 2.0**100, width=32), st.floats(0, 2.0**110))
def test_a_size_is_above_more_borders_the_larger_it_is(threshold: float, size: float) -> None:
    bits = int(np.float32(threshold).view(np.uint32))
    found = find_prune_contexts(np.array([0.0, size, size * 1.5, threshold, np.inf]), bits).tolist()
    assert found[0] == 0 and found[-1] == 2 * PRUNE_STEPS
    assert found[1] <= found[2]
    assert found[3] == PRUNE_STEPS + 1
    assert (found[1] > PRUNE_STEPS) == (size >= threshold)
