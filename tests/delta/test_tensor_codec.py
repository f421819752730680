"""One tensor as symbols and bits: any record gives the same numbers, to us and to another reader."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta.coded_tensors import code
from delta.plain_decoder import apply_plainly
from edgeferry.delta import cells
from edgeferry.delta.apply import apply_patch
from edgeferry.delta.tensor_codec import make_model

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@given(st.integers(0, 1 << 40))
@settings(max_examples=250)
def test_any_record_says_the_same_numbers_to_two_readers(seed: int) -> None:
    coded = code(seed)
    found = bytearray(len(coded.target))
    apply_patch(coded.base, coded.patch, memoryview(found))
    assert found == coded.target
    assert apply_plainly(coded.base, coded.patch) == coded.target


@pytest.mark.parametrize("seed", [10_000_101, 10_002_437])
def test_a_quotient_that_is_no_number_is_zero_of_one_sign_on_every_machine(seed: int) -> None:
    """Pruned numbers that are expected to be 0 / 0, with scales of 0."""
    coded = code(seed)
    assert coded.record.scales and coded.record.threshold is not None
    assert apply_plainly(coded.base, coded.patch) == coded.target


def test_the_records_that_are_drawn_are_of_every_make() -> None:
    seen: Counter[str] = Counter()
    for seed in range(400):
        record = code(seed).record
        seen[f"kind {record.kind.name}"] += 1
        seen[f"division {record.division}"] += record.scales is not None
        for name in ("origin", "peak", "row_scales", "column_scales", "rank", "threshold", "scales", "zero"):
            seen[name] += bool(getattr(record, name))
        seen[f"multiplied {record.multiplied}"] += 1
        seen[f"lattice {record.lattice}"] += 1
        seen["origin's scales"] += record.origin is not None and record.origin.scales is not None
    assert len(seen) == 8 + 3 + 8 + 3 + 3 + 1
    assert min(seen.values()) >= 5


def test_a_model_begins_with_a_guess_for_each_context_that_may_be_used() -> None:
    model = make_model()
    model.require_built(np.arange(len(model._built)))
    slots = model.tables.counts.reshape(len(model._built), cells.ALPHABET)
    assert (slots.sum(1) == 1 << 14).all()
    assert ((slots > 0).sum(1) >= 3).all()
