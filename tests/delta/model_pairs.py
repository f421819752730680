"""Small pairs of models made by hand, one for each way in which a tensor can be expected from another one.

Rules:
- Seeded, so that every run has the same bytes; a few thousand numbers each, so that making a patch takes a moment.
- `Pair.uses` says by which record a pair must be patched: a pair that is not would test something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgeferry.delta.apply import read_map
from edgeferry.delta.container import read_container
from edgeferry.delta.make import Patch, make_full, make_patch
from edgeferry.delta.records import AnyRecord, Copy, Record

Array = np.ndarray[Any, Any]
ROWS, COLUMNS = 40, 64


@dataclass(frozen=True)
class Pair:
    """Two versions of a model, and what a patch between them must make use of."""

    base: bytes
    target: bytes
    uses: Callable[[AnyRecord], bool]


def make_onnx(arrays: Mapping[str, Array | Any], *, scales: Mapping[str, int] | None = None) -> bytes:
    """An ONNX file; `scales` names quantised tensors (`x` with `x_scale` and `x_zero`) and the axis of their scales."""
    tensors = [
        value if hasattr(value, "dims") else numpy_helper.from_array(value, name) for name, value in arrays.items()
    ]
    nodes = [
        helper.make_node("DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_real"], axis=axis)
        for name, axis in (scales or {}).items()
    ]
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    return bytes(helper.make_model(graph).SerializeToString())


def read_records_of(pair: Pair, patch: bytes) -> tuple[AnyRecord, ...]:
    """The map of a patch; empty when it has none."""
    streams = read_container(patch, base_bytes=len(pair.base)).streams
    return read_map(streams, base_bytes=len(pair.base), target_bytes=len(pair.target)) if streams else ()


# --- what changes -----------------------------------------------------------------------------------------------------
def draw(seed: int, *shape: int) -> Array:
    """Weights as training leaves them, float32."""
    return (np.random.default_rng(seed).normal(size=shape or (ROWS, COLUMNS)) * 0.1).astype(np.float32)


def draw_scales(seed: int, count: int) -> Array:
    """Positive float32, a decade apart at most."""
    return np.exp(np.random.default_rng(seed).normal(size=count) * 0.7).astype(np.float32)


def quantise(weights: Array, scales: Array, axis: int, division: int) -> Array:
    """int8 as exporters make it: divided in float64 or float32, or multiplied with the reciprocal."""
    each = scales.reshape([-1 if at == axis else 1 for at in range(weights.ndim)]) if scales.size > 1 else scales
    if division == 0:
        real = weights.astype(np.float64) / each.astype(np.float64)
    elif division == 1:
        real = (weights / each).astype(np.float64)
    else:
        real = (weights * (np.float32(1) / each)).astype(np.float64)
    return np.clip(np.rint(real), -128, 127).astype(np.int8)


def make_quantised(weights: Array, scales: Array, axis: int, division: int = 0) -> dict[str, Array]:
    """The initialisers of one quantised tensor `w`."""
    zero = np.zeros(scales.shape, np.int8)
    return {"w_scale": scales, "w_zero": zero, "w": quantise(weights, scales, axis, division)}


def to_bfloat(values: Array) -> Array:
    """The upper halves of float32, uint16."""
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def make_bfloat(name: str, values: Array) -> Any:
    """An initialiser of bfloat16 numbers."""
    return helper.make_tensor(name, TensorProto.BFLOAT16, values.shape, to_bfloat(values).tobytes(), raw=True)


def prune(weights: Array, share: float) -> Array:
    """The smallest numbers become zero, negative ones -0.0."""
    border = np.quantile(np.abs(weights), share)
    return np.where(np.abs(weights) < border, np.copysign(np.float32(0), weights), weights).astype(np.float32)


def find_peaks(weights: Array, axis: int, divisor: int) -> Array:
    """The scales of a symmetric quantisation, float32."""
    return (np.abs(weights).max(1 - axis).astype(np.float64) / divisor).astype(np.float32)


# --- the pairs --------------------------------------------------------------------------------------------------------
def _is_tensor(check: Callable[[Record], bool]) -> Callable[[AnyRecord], bool]:
    return lambda record: isinstance(record, Record) and check(record)


def _make_fine_tuned() -> Pair:
    base = {f"w{at}": draw(at) for at in range(2)}
    target = {name: value + 0.01 * draw(7 + at) for at, (name, value) in enumerate(base.items())}
    return Pair(make_onnx(base), make_onnx(target), _is_tensor(lambda one: one.origin is not None))


def _make_cast() -> Pair:
    weights = draw(1)
    half = make_onnx({"w": weights.astype(np.float16)})
    return Pair(
        make_onnx({"w": weights}), half, _is_tensor(lambda one: one.kind.name == "f2" and one.origin is not None)
    )


def _make_requantised() -> Pair:
    weights = draw(3)
    before, after = find_peaks(weights, 0, 127), find_peaks(weights * 1.3, 0, 127)
    base = make_onnx(make_quantised(weights, before, 0), scales={"w": 0})
    target = make_onnx(make_quantised(weights + 0.001 * draw(4), after, 0), scales={"w": 0})
    return Pair(base, target, _is_tensor(lambda one: one.origin is not None and one.origin.scales is not None))


def _make_shifted() -> Pair:
    """From int8 to uint8: the scales stay, so that they are copies, and weights need them."""
    weights = draw(35)
    scales = find_peaks(weights, 0, 127)
    one = make_quantised(weights, scales, 0)
    other = one | {"w": (one["w"].astype(np.int16) + 128).astype(np.uint8), "w_zero": np.full(ROWS, 128, np.uint8)}
    pair = make_onnx(one, scales={"w": 0}), make_onnx(other, scales={"w": 0})
    return Pair(*pair, _is_tensor(lambda one: one.scales is not None and one.origin is not None))


def _make_quantising(division: int, axis: int = 0) -> Callable[[], Pair]:
    def make() -> Pair:
        weights = draw(5, 60, 96)
        scales = draw_scales(6, weights.shape[axis]) * np.float32(0.003)
        target = make_onnx(make_quantised(weights, scales, axis, division), scales={"w": axis})
        return Pair(make_onnx({"w": weights}), target, _is_tensor(lambda one: one.scales is not None))

    return make


def _make_peaks(axis: int) -> Callable[[], Pair]:
    def make() -> Pair:
        weights = draw(8)
        target = make_onnx(make_quantised(weights, find_peaks(weights, axis, 127), axis), scales={"w": axis})
        return Pair(make_onnx({"w": weights}), target, _is_tensor(lambda one: one.peak == axis + 1))

    return make


def _make_multiplied(axis: int) -> Callable[[], Pair]:
    def make() -> Pair:
        weights = draw(9)
        factors = draw_scales(10, weights.shape[axis])
        shape = (-1, 1) if axis == 0 else (1, -1)
        target = make_onnx({"w": (weights * factors.reshape(shape)).astype(np.float32)})
        return Pair(make_onnx({"w": weights}), target, _is_tensor(lambda one: one.multiplied == axis + 1))

    return make


def _make_pruned() -> Pair:
    weights = draw(11)
    pair = make_onnx({"w": weights}), make_onnx({"w": prune(weights, 0.5)})
    return Pair(*pair, _is_tensor(lambda one: one.threshold is not None))


def _make_pruned_otherwise() -> Pair:
    """What is pruned has the other sign for a part of the numbers."""
    weights = draw(12)
    pruned = prune(weights + 0.003 * draw(13), 0.4)
    flipped = np.where((pruned == 0) & (draw(14) > 0.1), -pruned, pruned)
    return Pair(make_onnx({"w": weights}), make_onnx({"w": flipped}), _is_tensor(lambda one: one.threshold is not None))


def _make_low_rank() -> Pair:
    weights = draw(15, 96, 128)
    change = 0.3 * draw(16, 96, 2) @ draw(17, 2, 128)
    target = (weights + change + 1e-6 * draw(18, 96, 128)).astype(np.float32)
    return Pair(make_onnx({"w": weights}), make_onnx({"w": target}), _is_tensor(lambda one: one.rank > 0))


def _make_lattice(axis: int) -> Callable[[], Pair]:
    def make() -> Pair:
        dice = np.random.default_rng(19)
        shape = (-1, 1) if axis == 0 else (1, -1)
        steps = dice.integers(3, 200, (ROWS, COLUMNS)[axis]).reshape(shape) * 2.0**-16
        weights = draw(20)
        moved = (weights + dice.integers(-4, 5, (ROWS, COLUMNS)) * steps).astype(np.float32)
        return Pair(make_onnx({"w": weights}), make_onnx({"w": moved}), _is_tensor(lambda one: one.lattice == axis + 1))

    return make


def _make_grown(rows: int, columns: int) -> Callable[[], Pair]:
    def make() -> Pair:
        weights = draw(21)
        grown = draw(22, ROWS + rows, COLUMNS + columns)
        grown[:ROWS, :COLUMNS] = weights + 0.001 * draw(23)
        grew = _is_tensor(
            lambda one: one.origin is not None and (one.origin.rows, one.origin.columns) != (one.rows, one.columns)
        )
        return Pair(make_onnx({"w": weights}), make_onnx({"w": grown}), grew)

    return make


def _make_duplicates() -> Pair:
    weights = draw(24)
    target = make_onnx({"a": weights, "b": draw(25), "c": draw(25)})
    return Pair(make_onnx({"a": weights}), target, lambda one: isinstance(one, Copy) and not one.in_base)


def _make_bfloat_pair() -> Pair:
    weights = draw(26)
    base, target = (make_onnx({"w": make_bfloat("w", each)}) for each in (weights, weights + 0.02 * draw(27)))
    return Pair(base, target, _is_tensor(lambda one: one.kind.name == "bf2"))


def _make_float_from_quantised() -> Pair:
    weights = draw(28)
    scales = find_peaks(weights, 0, 127)
    base = make_onnx(make_quantised(weights, scales, 0), scales={"w": 0})
    return Pair(base, make_onnx({"w": weights}), _is_tensor(lambda one: one.origin is not None and one.kind.is_float))


def _make_odd_numbers() -> Pair:
    """NaN with payloads, infinities, denormals and both zeros, on both sides and in different places."""
    odd = np.array(
        [0x7FC00001, 0xFFC12345, 0x7F800001, 0xFF800000, 0x7F800000, 0x80000000, 0, 1, 0x807FFFFF, 0x7F7FFFFF],
        np.uint32,
    ).view(np.float32)
    base, target = draw(29), draw(29) + 0.01 * draw(30)
    base.reshape(-1)[::37] = np.resize(odd, base.size)[::37]
    target.reshape(-1)[::23] = np.resize(odd[::-1], target.size)[::23]
    return Pair(make_onnx({"w": base}), make_onnx({"w": target}), _is_tensor(lambda one: one.origin is not None))


def _make_row_scales() -> Pair:
    """Some rows were trained hard, others hardly."""
    weights = draw(31)
    change = draw(32) * np.where(np.arange(ROWS) % 3 == 0, 1e-1, 1e-4)[:, None]
    target = make_onnx({"w": (weights + change).astype(np.float32)})
    return Pair(make_onnx({"w": weights}), target, _is_tensor(lambda one: one.row_scales))


def _make_column_scales() -> Pair:
    weights = draw(33)
    change = draw(34) * np.where(np.arange(COLUMNS) % 4 == 0, 1e-1, 1e-4)
    target = make_onnx({"w": (weights + change).astype(np.float32)})
    return Pair(make_onnx({"w": weights}), target, _is_tensor(lambda one: one.column_scales))


PAIRS: dict[str, Callable[[], Pair]] = {
    "fine-tuned": _make_fine_tuned,
    "cast to float16": _make_cast,
    "quantised in float64": _make_quantising(0),
    "quantised in float32": _make_quantising(1),
    "quantised by reciprocals": _make_quantising(2),
    "quantised by columns": _make_quantising(0, axis=1),
    "requantised": _make_requantised,
    "shifted to unsigned": _make_shifted,
    "float again": _make_float_from_quantised,
    "scales that are peaks of rows": _make_peaks(0),
    "scales that are peaks of columns": _make_peaks(1),
    "rows multiplied": _make_multiplied(0),
    "columns multiplied": _make_multiplied(1),
    "pruned": _make_pruned,
    "pruned with other signs": _make_pruned_otherwise,
    "of low rank": _make_low_rank,
    "lattice by rows": _make_lattice(0),
    "lattice by columns": _make_lattice(1),
    "rows grown": _make_grown(5, 0),
    "columns grown": _make_grown(0, 7),
    "duplicates": _make_duplicates,
    "bfloat16": _make_bfloat_pair,
    "odd numbers": _make_odd_numbers,
    "scales of rows": _make_row_scales,
    "scales of columns": _make_column_scales,
}


@cache
def get_pair(name: str) -> Pair:
    """One of PAIRS, made once."""
    return PAIRS[name]()


@cache
def get_patch(name: str) -> Patch:
    """The patch of a pair, made once."""
    pair = get_pair(name)
    return make_patch(pair.base, pair.target)


@cache
def get_full(name: str) -> Patch:
    """A pair's target without its base, made once."""
    return make_full(get_pair(name).target)
