"""Two readers that share nothing but the page agree on every patch, number by number."""

from __future__ import annotations

import numpy as np
import pytest

from delta.hostile_patches import make_samples
from delta.model_pairs import PAIRS, draw, get_full, get_pair, get_patch, make_onnx
from delta.plain_decoder import apply_plainly
from edgeferry.delta.make import make_patch


@pytest.mark.parametrize("name", PAIRS)
def test_another_reader_gets_the_same_target_from_a_patch(name: str) -> None:
    pair = get_pair(name)
    assert apply_plainly(pair.base, get_patch(name).data) == pair.target


@pytest.mark.parametrize("name", ["fine-tuned", "duplicates", "bfloat16", "odd numbers", "requantised"])
def test_another_reader_gets_the_same_target_from_a_full_file(name: str) -> None:
    assert apply_plainly(b"", get_full(name).data) == get_pair(name).target


def test_another_reader_understands_every_method_in_pieces() -> None:
    sample = make_samples()["in pieces"]
    assert apply_plainly(sample.base, sample.patch) == sample.target


def test_another_reader_goes_on_where_a_tensor_has_several_pieces() -> None:
    base, target = (make_onnx({"w": (draw(90 + at, 300, 230) * 100).astype(np.int8)}) for at in range(2))
    assert apply_plainly(base, make_patch(base, target).data) == target
