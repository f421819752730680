"""Which tensors go together: by content, name, role and shape, never by where they lie."""

from __future__ import annotations

import numpy as np
import pytest

from delta.model_pairs import draw, make_onnx
from edgeferry.delta.match import match_tensors
from edgeferry.delta.predict import Files
from edgeferry.delta.records import Copy, Record
from edgeferry.delta.tensors import find_tensors

Matches = dict[str, Copy | tuple[Record, ...]]


def match(base: dict[str, np.ndarray], target: dict[str, np.ndarray]) -> tuple[Matches, bytes, bytes]:
    old, new = make_onnx(base), make_onnx(target)
    tensors = [find_tensors(data, min_elements=16) for data in (old, new)]
    files = Files(memoryview(old), memoryview(new))
    return {tensor.name: found for tensor, found in match_tensors(tensors[0], tensors[1], files)}, old, new


def list_origins(found: Copy | tuple[Record, ...]) -> set[int]:
    assert isinstance(found, tuple)
    return {record.origin.start for record in found if record.origin}


def test_content_that_stands_elsewhere_is_a_copy_whatever_its_name() -> None:
    weights = {"a": draw(300), "b": draw(301)}
    found, old, _ = match(weights, {"c": weights["b"], "d": weights["a"], "e": weights["a"]})
    for name, wanted in (("c", "b"), ("d", "a"), ("e", "a")):
        one = found[name]
        assert isinstance(one, Copy) and one.in_base
        assert old[one.source : one.source + one.size_bytes] == weights[wanted].tobytes()


def test_content_that_stands_before_in_the_same_file_is_a_copy_of_that() -> None:
    found, _, new = match({"a": draw(302)}, {"b": draw(303), "c": draw(303)})
    assert isinstance(found["b"], tuple)
    one = found["c"]
    assert isinstance(one, Copy) and not one.in_base
    assert new[one.source : one.source + one.size_bytes] == draw(303).tobytes()


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "backwards"])
def test_tensors_of_one_name_go_together_wherever_they_lie(order: int) -> None:
    base = {name: draw(310 + at) for at, name in enumerate("abc")}
    target = {name: base[name] + 0.01 * draw(320) for name in list(base)[::order]}
    found, old, _ = match(base, target)
    for name, weights in base.items():
        assert list_origins(found[name]) == {old.index(weights.tobytes())}


def test_without_a_common_name_numbers_that_resemble_each_other_go_together() -> None:
    base = {name: draw(330 + at) for at, name in enumerate("abc")}
    found, old, _ = match(base, {f"new {name}": value + 0.02 * draw(340) for name, value in base.items()})
    for name, weights in base.items():
        assert list_origins(found[f"new {name}"]) == {old.index(weights.tobytes())}


def test_a_tensor_that_resembles_nothing_is_tried_without_an_origin_alone() -> None:
    found, _, _ = match({"a": draw(350)}, {"b": draw(351)})
    assert list_origins(found["b"]) == set()
    assert len(found["b"]) == 1  # type: ignore[arg-type]
