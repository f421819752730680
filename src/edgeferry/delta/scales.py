"""Where the scales of quantised tensors stand in their file, and what a vector of scales is expected from.

A model file holds scales as float32 somewhere; a reader of patches refers to them by their place. This is the
operator's side; which tensors go together is `match.py`'s.

Rules:
- Scales are found by their bytes, wherever they stand but in large tensors. What is not found is not used.
- Time is linear in the file: the places that are searched are few beside the tensors.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from edgeferry.delta.kinds import KIND_BY_NAME
from edgeferry.delta.predict import Files
from edgeferry.delta.records import MAX_SIDE, Origin, Place, Record, find_gaps
from edgeferry.delta.tensors import Tensor

VECTOR_MIN, NEAREST = 8, 2
LARGE_ELEMENTS = 1 << 14
DIVISORS = (127, 128, 255)
_F4 = KIND_BY_NAME["f4"]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the scales of each tensor stand, by the tensor's first byte."""

    base: Mapping[int, Place]
    target: Mapping[int, Place]


NO_PLACES = Places({}, {})


def get_matrix(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns, so that output channels are one or the other."""
    shape = tensor.shape or (1,)
    elements = math.prod(shape)
    if len(shape) < 2 or not elements:
        return 1, elements
    if tensor.channel_axis == len(shape) - 1:
        return elements // shape[-1], shape[-1]
    rows = math.prod(shape[: tensor.channel_axis + 1])
    return rows, elements // rows


def find_places(base: Sequence[Tensor], target: Sequence[Tensor], files: Files) -> Places:
    """The scales of both files' tensors."""
    return Places(_find(base, files.base, in_base=True), _find(target, files.target, in_base=False))


def _find(tensors: Sequence[Tensor], data: memoryview, *, in_base: bool) -> dict[int, Place]:
    wanted = {each.start: np.array(each.scales, "<f4").tobytes() for each in tensors if _is_usable(each)}
    if not wanted:
        return {}
    large = ((each.start, each.end) for each in tensors if each.kind != "f4" or each.elements > LARGE_ELEMENTS)
    ranges = find_gaps(large, len(data))
    text = b"".join(data[start:end] for start, end in ranges)
    firsts = [0, *accumulate(end - start for start, end in ranges)]
    found: dict[int, Place] = {}
    for tensor, scales in wanted.items():
        at = text.find(scales)
        part = bisect_right(firsts, at) - 1
        if at >= 0 and at + len(scales) <= firsts[part + 1]:
            found[tensor] = Place(in_base, ranges[part][0] + at - firsts[part], len(scales) // 4)
    return found


def _is_usable(tensor: Tensor) -> bool:
    count = len(tensor.scales)
    return 0 < count <= MAX_SIDE and count in (1, *get_matrix(tensor)) and len(set(tensor.zeros)) == 1


# --- what vectors of scales are expected from -------------------------------------------------------------------------
def follow_scales(
    tensors: Sequence[Tensor], records: Mapping[int, Record], files: Files, *, places: Places
) -> Iterator[tuple[Record, ...]]:
    """Records worth trying for each vector of scales in the target.

    Args:
        tensors: the target's.
        records: how its tensors are coded, by their first byte.
        files: both.
        places: of scales.
    """
    quantised = [(each, places.target[each.start]) for each in tensors if each.start in places.target]
    weights = [place for tensor, place in quantised if tensor.kind != "i4"]
    seen: set[int] = set()
    for tensor, place in quantised:
        if place.length < VECTOR_MIN or place.start in seen:
            continue
        seen.add(place.start)
        plain = Record(place.start, _F4, 1, place.length, mantissa=_F4.mantissa)
        record = records.get(tensor.start)
        if record is None:
            continue  # a copy: its scales are likely the base's too
        # a bias has its weights' scales times that of the input
        others = _find_nearest(place, weights) if tensor.kind == "i4" else []
        theirs = places.base.get(record.origin.start) if record.origin and record.origin.in_base else None
        if theirs and theirs.length == place.length:
            if _read(theirs, files) == _read(place, files):
                continue
            others.append(theirs)
        followed = (replace(plain, origin=Origin(each.in_base, each.start, _F4, 1, each.length)) for each in others)
        yield (plain, *_list_peaks(plain, record), *followed)


def _find_nearest(place: Place, others: Sequence[Place]) -> list[Place]:
    alike = {each.start: each for each in others if each.length == place.length and each.start != place.start}
    return sorted(alike.values(), key=lambda each: abs(each.start - place.start))[:NEAREST]


def _read(place: Place, files: Files) -> memoryview:
    return files.get(in_base=place.in_base)[place.start : place.start + 4 * place.length]


def _list_peaks(plain: Record, record: Record) -> Iterator[Record]:
    """A scale is the greatest size in its channel, divided, where the origin was not quantised itself."""
    origin = record.origin
    if origin is None or not origin.kind.is_float or plain.columns not in (origin.rows, origin.columns):
        return
    peak = 1 if plain.columns == origin.rows else 2
    for divisor in DIVISORS:
        yield replace(plain, origin=origin, peak=peak, divisor=divisor)
