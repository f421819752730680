"""Fits: what is tried never loses, and estimates are near to what is coded."""

from __future__ import annotations

import numpy as np
import pytest

from delta.model_pairs import PAIRS, get_pair, read_records_of
from edgeferry.delta.bits import BitWriter
from edgeferry.delta.estimate import estimate
from edgeferry.delta.fit import NO_SIDE, fit_scales, fit_tensor
from edgeferry.delta.make import MIN_ELEMENTS, make_patch
from edgeferry.delta.match import match_tensors
from edgeferry.delta.predict import Files
from edgeferry.delta.rans import Encoder
from edgeferry.delta.records import Record
from edgeferry.delta.tensor_codec import Sink, make_model, write_tensor
from edgeferry.delta.tensors import find_tensors

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
NAMES = ["fine-tuned", "rows multiplied", "pruned with other signs", "lattice by rows", "bfloat16", "scales of rows"]


def get_candidates(name: str) -> tuple[tuple[Record, ...], Files]:
    """The records worth trying for a pair's largest tensor."""
    pair = get_pair(name)
    tensors = [find_tensors(data, min_elements=MIN_ELEMENTS) for data in (pair.base, pair.target)]
    files = Files(memoryview(pair.base), memoryview(pair.target))
    found = [each for _, each in match_tensors(tensors[0], tensors[1], files) if isinstance(each, tuple)]
    return max(found, key=lambda records: records[0].size_bytes), files


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_is_no_longer_than_any_of_its_candidates(name: str) -> None:
    candidates, files = get_candidates(name)
    best = fit_tensor(candidates, files)
    assert best.bits <= min(fit_scales(each, NO_SIDE, files).bits for each in candidates)
    assert best.bits == pytest.approx(estimate(best.record, best.side, files))


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_is_near_to_what_is_coded(name: str) -> None:
    candidates, files = get_candidates(name)
    best = fit_tensor(candidates, files)
    sink = Sink(Encoder(), BitWriter(), make_model())
    write_tensor(best.record, best.side, files, sink=sink)
    bits = 8 * sink.encoder.get_size_bytes() + sink.bits.size_bits
    assert best.bits == pytest.approx(bits, rel=0.25, abs=2000)


@pytest.mark.parametrize("name", PAIRS)
def test_a_fit_stays_inside_the_bounds_of_the_map(name: str) -> None:
    pair = get_pair(name)
    records = read_records_of(pair, make_patch(pair.base, pair.target).data)
    assert records
    for record in records:
        if isinstance(record, Record):
            assert abs(record.scale) <= 1024 and np.isfinite(record.scale)
