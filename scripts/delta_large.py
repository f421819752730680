"""Generates large version pairs for `make bench-delta`: the tensors of one fine-tune over and over, with noise.

Rules:
- Each repetition moves the base weights by a few per cent of themselves and scales the step of each weight, so that no
  repetition equals another, while weights and steps keep the statistics of a real fine-tune.
- The same pair and size give the same bytes.
- The files are ONNX on the wire (a graph of initializers) and are written in order: no whole file is held.

Source: onnx.proto3 (field numbers), the protobuf encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from delta_pairs import VersionPair
from delta_research import Tensor, pair_tensors

from edgeferry.delta.tensors import find_float_ranges

Floats = npt.NDArray[np.float32]
SEED = 20_240_601
METADATA_KIND = "metadata"
_BASE_NOISE, _STEP_NOISE = 0.03, 0.3


@dataclass(frozen=True, slots=True)
class Weights:
    """One tensor of the fine-tune: its base values and the step to the target's."""

    base: Floats
    step: Floats


def read_weights(pair: VersionPair) -> list[Weights]:
    """The float32 tensors that both versions have."""
    base, target = pair.base.read_bytes(), pair.target.read_bytes()
    one, two = ([Tensor(*found) for found in find_float_ranges(data)] for data in (base, target))
    found = []
    for match in pair_tensors(base, target, (one, two)):
        if match.width == 4:
            old = np.frombuffer(base, "<f4", match.elements, match.base)
            found.append(Weights(old, np.frombuffer(target, "<f4", match.elements, match.target) - old))
    return found


def write_large_pair(weights: list[Weights], size_bytes: int, pair: VersionPair) -> None:
    """Writes two versions of at least `size_bytes`; of METADATA_KIND only bytes outside the tensors differ."""
    once = sum(one.base.nbytes for one in weights)
    repetitions = -(-size_bytes // once)
    producers = (b"edgeferry bench", b"edgeferry bench, again")
    with pair.base.open("wb") as base, pair.target.open("wb") as target:
        for file, producer in zip((base, target), producers, strict=True):
            file.write(_make_head(weights, repetitions, producer))
        for name, old, new in _iterate_tensors(weights, repetitions):
            base.write(_make_tensor_head(name, len(old)) + old.astype("<f4").tobytes())
            kept = old if pair.kind == METADATA_KIND else new
            target.write(_make_tensor_head(name, len(kept)) + kept.astype("<f4").tobytes())


def _iterate_tensors(weights: list[Weights], repetitions: int) -> Iterator[tuple[bytes, Floats, Floats]]:
    for repetition in range(repetitions):
        rng = np.random.default_rng((SEED, repetition))
        for index, one in enumerate(weights):
            old = one.base * (1 + np.float32(_BASE_NOISE) * _draw(rng, one))
            new = old + one.step * (1 + np.float32(_STEP_NOISE) * _draw(rng, one))
            yield _make_name(repetition, index), old, new


def _draw(rng: np.random.Generator, one: Weights) -> Floats:
    return rng.standard_normal(len(one.base), dtype=np.float32)


# --- protobuf: keys, lengths, fields ----------------------------------------------------------------------------------
def _make_name(repetition: int, index: int) -> bytes:
    return b"layer%05d.weight%05d" % (repetition, index)


def _make_head(weights: list[Weights], repetitions: int, producer: bytes) -> bytes:
    """All that comes before the first initializer: version, producer, opset, and the graph's key and length."""
    name = _make_bytes_field(2, b"graph")
    tensors = sum(
        len(_make_tensor_head(_make_name(0, index), len(one.base))) + one.base.nbytes
        for index, one in enumerate(weights)
    )
    opset = _make_bytes_field(8, _make_number_field(2, 17))
    graph_bytes = len(name) + tensors * repetitions
    head = _make_number_field(1, 8) + _make_bytes_field(2, producer) + opset
    return head + _make_varint(7 << 3 | 2) + _make_varint(graph_bytes) + name


def _make_tensor_head(name: bytes, elements: int) -> bytes:
    """An initializer of the graph up to its raw data: one dimension, float, name."""
    fields = _make_number_field(1, elements) + _make_number_field(2, 1) + _make_bytes_field(8, name)
    raw = _make_varint(9 << 3 | 2) + _make_varint(elements * 4)
    return _make_varint(5 << 3 | 2) + _make_varint(len(fields) + len(raw) + elements * 4) + fields + raw


def _make_number_field(number: int, value: int) -> bytes:
    return _make_varint(number << 3) + _make_varint(value)


def _make_bytes_field(number: int, data: bytes) -> bytes:
    return _make_varint(number << 3 | 2) + _make_varint(len(data)) + data


def _make_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
