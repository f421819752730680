"""Weights on grids: what may move, by how much, and that everything else stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeferry.delta.apply import apply_patch
from edgeferry.delta.kinds import KIND_BY_NAME, read_numbers
from edgeferry.delta.make import make_patch
from edgeferry.delta.slim import (
    MULTIPLIER_MAX,
    Grid,
    Point,
    SlimModel,
    Weights,
    draw_curve,
    estimate_bits,
    make_grid,
    make_slim,
    open_slim_model,
    pick_point,
    put_on_grid,
    read_expected,
    read_weights,
)
from edgeferry.delta.tensors import find_tensors

DETECTORS = Path(__file__).parents[2] / "models" / "detector"
RNG = np.random.default_rng(4)
FILES = ("detector.onnx", "detector-fp32.tflite", "detector-fp16.tflite")
Numbers = NDArray[np.float32] | NDArray[np.float16]


def make_model(weights: Mapping[str, Numbers], *, operator: str = "MatMul") -> bytes:
    """A chain of operators, one for each tensor; no engine will run it."""
    nodes = [
        helper.make_node(operator, ["x" if not at else f"y{at - 1}", name], [f"y{at}"])
        for at, name in enumerate(weights)
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])]
    outputs = [helper.make_tensor_value_info(f"y{len(weights) - 1}", TensorProto.FLOAT, [1, 8])]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, stored)
    return bytes(helper.make_model(graph).SerializeToString())


def make_weights(*shape: int, size: float = 0.1) -> NDArray[np.float32]:
    return (RNG.normal(size=shape) * size).astype(np.float32)


def move(weights: NDArray[np.float32], size: float = 0.01) -> NDArray[np.float32]:
    return weights + make_weights(*weights.shape, size=size)


def read_pair(file: str) -> tuple[bytes, bytes]:
    old, new = ((DETECTORS / version / file).read_bytes() for version in ("1.0.0", "1.2.0"))
    return old, new


def choose(model: SlimModel, bits: float) -> list[tuple[Weights, Grid]]:
    """For each tensor the grid that comes nearest to so many bits per number."""
    chosen = []
    for weights in model.weights:
        curve = draw_curve(model, weights)
        best = min(curve, key=lambda each: abs(each.bits / weights.tensor.elements - bits), default=None)
        chosen += [(weights, best.grid)] if best else []
    return chosen


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("with_base", [True, False])
def test_every_number_of_a_real_model_lies_on_its_grid_and_all_other_bytes_stay(file: str, with_base: bool) -> None:
    old, new = read_pair(file)
    model = open_slim_model(old if with_base else b"", new)
    chosen = choose(model, 3.0)
    assert sum(weights.tensor.elements for weights, _ in chosen) > 190_000
    slim = make_slim(model, chosen)
    assert len(slim) == len(new)
    rest, slim_rest = bytearray(new), bytearray(slim)
    for weights, grid in chosen:
        tensor = weights.tensor
        check_on_grid(model, slim, weights, grid)
        rest[tensor.start : tensor.end] = slim_rest[tensor.start : tensor.end] = bytes(tensor.size_bytes)
    assert rest == slim_rest
    assert {grid.around_base for _, grid in chosen} <= ({True, False} if with_base else {False})
    assert [each.shape for each in find_tensors(slim)] == [each.shape for each in find_tensors(new)]


def check_on_grid(model: SlimModel, slim: bytes, weights: Weights, grid: Grid) -> None:
    """Finds k again from the numbers alone, as whoever makes a patch must."""
    after = read_weights(SlimModel(slim, model.files, model.weights), weights)
    expected = read_expected(model, weights, around_base=grid.around_base)
    assert grid.multipliers.min() >= 1
    assert grid.multipliers.max() <= MULTIPLIER_MAX
    steps = grid.multipliers[:, None] * 2.0**-grid.exponent
    whole = np.rint((after - expected) / steps)
    dtype = np.float32 if weights.kind.name == "f4" else np.float16
    assert np.array_equal((expected + whole * steps).astype(dtype).astype(np.float64), after)


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    st.sampled_from(["f4", "f2"]),
    st.floats(0.002, 4.0),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_no_number_moves_by_more_than_half_a_step(
    shape: tuple[int, int], kind: str, step: float, around: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    dtype = KIND_BY_NAME[kind].dtype
    numbers = rng.normal(size=shape).astype(dtype).astype(np.float64)
    expected = (numbers + rng.normal(size=numbers.shape) * 0.1).astype(dtype).astype(np.float64) * around
    grid = make_grid(step * rng.uniform(0.5, 2.0, shape[0]), around_base=around)
    whole, placed = put_on_grid(numbers, expected, grid, kind=KIND_BY_NAME[kind])
    rounding = np.spacing(np.abs(placed).astype(dtype)).astype(np.float64) / 2
    assert (np.abs(placed - numbers) <= grid.steps / 2 * (1 + 1e-9) + rounding).all()
    assert np.array_equal((expected + whole * grid.steps).astype(dtype), placed.astype(dtype))


@given(st.lists(st.floats(2.0**-40, 2.0**20), min_size=1, max_size=30))
def test_steps_are_few_bits_and_near_to_what_was_asked(wanted: list[float]) -> None:
    steps = np.array(wanted)
    grid = make_grid(steps, around_base=True)
    assert 1 <= grid.multipliers.min() <= grid.multipliers.max() <= MULTIPLIER_MAX
    fits = steps >= steps.max() / 16
    assert grid.steps[fits, 0] == pytest.approx(steps[fits], rel=1 / 7)
    assert (np.diff(grid.steps[np.argsort(steps), 0]) >= 0).all()


def test_what_no_weights_are_stays() -> None:
    """Anchors, numbers of other operators, tensors with numbers that are none."""
    old, new = read_pair("detector-fp32.tflite")
    roles = [weights.tensor.role for weights in open_slim_model(b"", new).weights]
    assert roles
    assert all("CONV" in role for role in roles)
    added = make_model({"a": make_weights(1, 64)}, operator="Add")
    assert open_slim_model(b"", added).weights == ()
    odd = make_weights(8, 8)
    odd[3, 3] = np.nan
    assert open_slim_model(b"", make_model({"odd": odd})).weights == ()
    assert open_slim_model(b"", make_model({"zero": np.zeros((8, 8), np.float32)})).weights == ()
    assert open_slim_model(old, b"no model at all").weights == ()


def test_numbers_near_the_greatest_of_their_kind_stay() -> None:
    big = np.full((8, 8), 60_000, np.float16)
    assert open_slim_model(b"", make_model({"big": big})).weights == ()
    assert len(open_slim_model(b"", make_model({"small": big / np.float16(4)})).weights) == 1


def test_tensors_that_share_their_content_still_share_it() -> None:
    twin = make_weights(16, 16)
    new = make_model({"one": twin, "two": make_weights(16, 16), "three": twin})
    model = open_slim_model(make_model({"one": move(twin)}), new)
    slim = make_slim(model, choose(model, 2.0))
    one, two, three = (
        read_numbers(slim[each.start : each.end], KIND_BY_NAME["f4"])
        for each in sorted(find_tensors(slim), key=lambda each: each.start)
    )
    assert np.array_equal(one, three)
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, twin.reshape(-1).astype(np.float64))


def test_zeros_of_a_pruned_tensor_stay_zeros() -> None:
    weights = make_weights(32, 32)
    pruned = np.where(np.abs(weights) < 0.08, np.float32(0), weights)
    model = open_slim_model(make_model({"w": weights}), make_model({"w": pruned}))
    [(each, grid)] = choose(model, 2.0)
    after = read_weights(SlimModel(make_slim(model, [(each, grid)]), model.files, model.weights), each)
    assert (after.reshape(-1)[pruned.T.reshape(-1) == 0] == 0).all()


def test_a_little_change_lies_around_the_base_and_a_new_tensor_around_zero() -> None:
    old = make_weights(64, 64)
    model = open_slim_model(make_model({"w": old}), make_model({"w": move(old), "new": make_weights(48, 32)}))
    points = {weights.tensor.name: pick_point(draw_curve(model, weights), 1e5) for weights in model.weights}
    found = {name: point.grid.around_base for name, point in points.items() if point}
    assert found == {"w": True, "new": False}


def test_a_worse_error_buys_fewer_bits() -> None:
    old = make_weights(64, 64)
    model = open_slim_model(make_model({"w": old}), make_model({"w": move(old)}))
    curve = draw_curve(model, model.weights[0])
    points = [pick_point(curve, 2.0**slope) for slope in range(-10, 60, 5)]
    assert all(isinstance(each, Point) for each in points)
    bits, errors = [each.bits for each in points if each], [each.error for each in points if each]
    assert bits == sorted(bits)
    assert errors == sorted(errors, reverse=True)
    assert bits[0] < 0.1 * old.size
    assert bits[-1] > 6 * old.size
    assert pick_point((), 1.0) is None


def test_no_grid_is_finer_than_the_kind_of_number() -> None:
    weights = make_weights(32, 32)
    for dtype, kind in ((np.float16, "f2"), (np.float32, "f4")):
        model = open_slim_model(b"", make_model({"w": weights.astype(dtype)}))
        [each] = model.weights
        finest = float(np.spacing(np.abs(weights).max().astype(dtype)))
        curve = draw_curve(model, each)
        assert each.kind.name == kind
        assert curve[0].bits > 5 * weights.size
        assert all(2.0**-point.grid.exponent >= 2 * finest for point in curve)


def test_channels_may_have_steps_that_follow_their_size() -> None:
    weights = make_weights(4, 256) * np.array([[1.0], [0.25], [1.0], [0.0625]], np.float32)
    model = open_slim_model(b"", make_model({"w": np.ascontiguousarray(weights.T)}))
    even, spread = (draw_curve(model, model.weights[0], spread=power)[-1].grid.steps[:, 0] for power in (0.0, 1.0))
    assert len(set(even)) == 1
    assert spread[0] == spread[2]
    assert spread[1] / spread[0] == pytest.approx(0.25, rel=0.2)
    assert spread[3] / spread[0] == pytest.approx(0.0625, rel=0.2)


@pytest.mark.parametrize("size", [0.15, 0.5, 2.0, 20.0])
def test_the_estimate_of_normal_numbers_is_near_their_entropy(size: float) -> None:
    numbers = np.rint(RNG.normal(size=(64, 1024)) * size).astype(np.int64)
    _, counts = np.unique(numbers, return_counts=True)
    entropy = float((counts * np.log2(numbers.size / counts)).sum())
    assert estimate_bits(numbers) == pytest.approx(entropy, rel=0.05)


@pytest.mark.parametrize("file", FILES)
def test_a_patch_takes_about_what_was_estimated_and_gives_the_slim_file(file: str) -> None:
    old, new = read_pair(file)
    model = open_slim_model(old, new)
    points = [(each, pick_point(draw_curve(model, each), 1e4)) for each in model.weights]
    chosen = [(each, point) for each, point in points if point]
    slim = make_slim(model, [(each, point.grid) for each, point in chosen])
    patch = make_patch(old, slim)
    estimated = sum(point.bits for _, point in chosen) / 8
    assert patch.way == "tensors"
    assert estimated < len(patch.data) < 1.05 * estimated + 4_000
    target = bytearray(len(slim))
    apply_patch(old, patch.data, memoryview(target))
    assert target == slim


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_the_grid_is_found_again_where_most_numbers_are_expected_and_channels_differ(spread: float) -> None:
    old = make_weights(128, 64) * np.exp2(RNG.integers(-3, 1, (1, 64))).astype(np.float32)
    new = old.copy()
    new[64:] += make_weights(64, 64, size=0.02)  # the first thousands of numbers are the base's
    base, target = make_model({"w": old}), make_model({"w": new})
    model = open_slim_model(base, target)
    curve = draw_curve(model, model.weights[0], spread=spread)
    for bits in (0.3, 1.0, 2.5):
        point = min(curve, key=lambda each: abs(each.bits / old.size - bits) + 9 * (not each.grid.around_base))
        slim = make_slim(model, [(model.weights[0], point.grid)])
        patch = make_patch(base, slim)
        assert patch.way == "tensors"
        assert len(patch.data) < 1.1 * point.bits / 8 + 400
