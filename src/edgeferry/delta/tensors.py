"""Where the tensors of an .onnx or .tflite file lie, as byte ranges of the file, and what they are for.

This file is the door: ONNX is read in `tensors_onnx.py`, TensorFlow Lite in `tensors_litert.py`, what operators tell
about a tensor is in `roles.py`. A file that does not parse is opaque bytes: the answer is then an empty tuple, never an
error.

Rules:
- Tensors are sorted, never overlap, lie inside the file and hold at least MIN_ELEMENTS elements.
- Data that two tensors share counts once, for the one that an operator reads.
- Used where files are coded (the operator's side); decoding reads its ranges from the coded file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from edgeferry.delta.roles import WIDTHS, Tensor
from edgeferry.delta.tensors_litert import LITERT_IDENTIFIER, walk_litert
from edgeferry.delta.tensors_onnx import walk_onnx
from edgeferry.errors import ModelUnreadable

__all__ = [
    "MAX_RANGES",
    "MIN_ELEMENTS",
    "WIDTHS",
    "Buffer",
    "FloatRange",
    "Tensor",
    "find_float_ranges",
    "find_tensors",
]

Buffer = bytes | bytearray | memoryview
MIN_ELEMENTS = 64
MAX_RANGES = 16_384
_FLOATS = frozenset({"f2", "f4", "f8", "bf2"})


class FloatRange(NamedTuple):
    """`elements` floats of `width` bytes each, little-endian, from byte `start` of the file."""

    start: int
    elements: int
    width: int

    @property
    def end(self) -> int:
        """First byte after the range."""
        return self.start + self.elements * self.width


def find_tensors(data: Buffer, *, min_elements: int = MIN_ELEMENTS) -> tuple[Tensor, ...]:
    """The tensors of a model file; empty when it is neither ONNX nor TensorFlow Lite."""
    view = memoryview(data)
    walk = walk_litert if bytes(view[4:8]) == LITERT_IDENTIFIER else walk_onnx
    try:
        found = [each for each in walk(view) if each.elements >= max(1, min_elements) and each.end <= len(view)]
    except ModelUnreadable:
        return ()
    return _keep_disjoint(found)


def find_float_ranges(data: Buffer) -> tuple[FloatRange, ...]:
    """The float tensors of a model file; empty when it is neither ONNX nor TensorFlow Lite."""
    return tuple(
        FloatRange(each.start, each.elements, WIDTHS[each.kind]) for each in find_tensors(data) if each.kind in _FLOATS
    )


def _keep_disjoint(found: Iterable[Tensor]) -> tuple[Tensor, ...]:
    kept: list[Tensor] = []
    for one in sorted(found, key=lambda each: (each.start, not each.role)):
        if (not kept or one.start >= kept[-1].end) and len(kept) < MAX_RANGES:
            kept.append(one)
    return tuple(kept)
