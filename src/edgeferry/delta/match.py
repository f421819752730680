"""Which tensor of the base each tensor of the target is best expected from. The operator's side.

Tensors are matched by content, name, role and shape, never by where they lie: a file that was written anew has them
elsewhere. What follows from a match is `fit.py`'s to try.

Rules:
- Content that stands somewhere else, in the base or before in the target, is a copy; such a match needs no other.
- A few candidates for each tensor at most: the time to make a patch is linear in its size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgeferry.delta.kinds import KIND_BY_NAME, Kind, read_bits, read_numbers
from edgeferry.delta.predict import Files
from edgeferry.delta.records import Copy, Origin, Record
from edgeferry.delta.scales import NO_PLACES, Places, get_matrix
from edgeferry.delta.tensors import Tensor
from edgeferry.model.digest import Digest

CANDIDATES_MAX = 3
SAME_SHAPE_MAX = 4
COPY_MIN_BYTES = 32
DIVISIONS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class _Index:
    """The tensors of the base, by what they can be found by."""

    by_digest: dict[tuple[int, str], tuple[bool, int]] = field(default_factory=dict)
    by_name: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    by_role: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    by_shape: dict[tuple[int, ...], list[Tensor]] = field(default_factory=lambda: defaultdict(list))


def match_tensors(
    base: Sequence[Tensor], target: Sequence[Tensor], files: Files, *, places: Places = NO_PLACES
) -> Iterator[tuple[Tensor, Copy | tuple[Record, ...]]]:
    """Each tensor of the target with its copy, or the records worth trying: at least one, without an origin."""
    index = _make_index(base, files)
    for tensor in target:
        key = (tensor.size_bytes, _digest(files.target, tensor))
        found = index.by_digest.get(key)
        if found and tensor.size_bytes >= COPY_MIN_BYTES:
            yield tensor, Copy(tensor.start, tensor.size_bytes, *found)
            continue
        index.by_digest[key] = (False, tensor.start)
        if tensor.kind in KIND_BY_NAME:
            candidates = _find_candidates(tensor, index, files)
            yield tensor, tuple(_make_records(tensor, candidates, files, places=places))


def _make_index(base: Sequence[Tensor], files: Files) -> _Index:
    index = _Index()
    for tensor in base:
        index.by_digest.setdefault((tensor.size_bytes, _digest(files.base, tensor)), (True, tensor.start))
        if tensor.kind not in KIND_BY_NAME:
            continue
        index.by_name[tensor.name].append(tensor)
        index.by_shape[_get_shape(tensor)].append(tensor)
        if tensor.role:
            index.by_role[tensor.role].append(tensor)
    return index


def _digest(data: memoryview, tensor: Tensor) -> str:
    return Digest.of(data[tensor.start : tensor.start + tensor.size_bytes]).hex


# --- candidates -------------------------------------------------------------------------------------------------------
def _find_candidates(tensor: Tensor, index: _Index, files: Files) -> list[Tensor]:
    named = [*index.by_name.get(tensor.name, ())[:1], *index.by_role.get(tensor.role, ())[:1]]
    found = [each for each in named if _can_follow(tensor, each)]
    if not any(_get_shape(each) == _get_shape(tensor) for each in found):
        alike = index.by_shape.get(_get_shape(tensor), [])
        nearest = sorted(alike, key=lambda each: abs(each.start - tensor.start))[:SAME_SHAPE_MAX]
        found += [each for each in nearest if _resembles(tensor, each, files)]
    unique = list({each.start: each for each in found}.values())
    return unique[:CANDIDATES_MAX]


def _can_follow(tensor: Tensor, other: Tensor) -> bool:
    """Rows or columns may have been added or taken away; a tensor of another make is no help."""
    rows, columns = get_matrix(tensor)
    other_rows, other_columns = get_matrix(other)
    return (rows == other_rows) or (columns == other_columns)


def _get_shape(tensor: Tensor) -> tuple[int, ...]:
    return tensor.shape if math.prod(tensor.shape) else (0,)


def _resembles(tensor: Tensor, other: Tensor, files: Files) -> bool:
    """Whether two tensors that share no name go together: by the correlation of their first numbers."""
    mine = _read_some(tensor, files.target)
    theirs = _read_some(other, files.base)
    length = min(len(mine), len(theirs))
    mine, theirs = mine[:length] - mine[:length].mean(), theirs[:length] - theirs[:length].mean()
    spread = math.sqrt(float((mine * mine).sum() * (theirs * theirs).sum()))
    return spread > 0 and float((mine * theirs).sum()) / spread > 0.3


def _read_some(tensor: Tensor, data: memoryview) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    kind = KIND_BY_NAME[tensor.kind]
    length = min(tensor.size_bytes, 4096 * kind.width)
    numbers = read_numbers(data[tensor.start : tensor.start + length], kind)
    return np.where(np.isfinite(numbers) & (np.abs(numbers) < 1e30), numbers, 0.0)


# --- records ----------------------------------------------------------------------------------------------------------
def _make_records(tensor: Tensor, candidates: Sequence[Tensor], files: Files, *, places: Places) -> Iterator[Record]:
    kind = KIND_BY_NAME[tensor.kind]
    rows, columns = get_matrix(tensor)
    used = _find_mantissa(tensor, kind, files.target)
    plain = Record(tensor.start, kind, rows, columns, mantissa=used, zero=_find_zero(tensor))
    yield plain
    for other in candidates:
        yield from _follow(plain, tensor, other, places=places)


def _find_mantissa(tensor: Tensor, kind: Kind, data: memoryview) -> int:
    """Stored bits of the mantissa that any number of it uses: float16 values are often kept as float32."""
    if not kind.is_float:
        return 0
    bits = read_bits(data[tensor.start : tensor.start + tensor.size_bytes], kind)
    used = int(np.bitwise_or.reduce(bits & np.uint64((1 << kind.mantissa) - 1))) if len(bits) else 0
    unused = (used & -used).bit_length() - 1 if used else kind.mantissa
    return kind.mantissa - min(unused, kind.mantissa)


def _find_zero(tensor: Tensor) -> int:
    """The zero point that all channels share; without one, the middle of an unsigned kind."""
    if tensor.zeros:
        return tensor.zeros[0]
    return 128 if tensor.kind == "u1" else 0


def _follow(plain: Record, tensor: Tensor, other: Tensor, *, places: Places) -> Iterator[Record]:
    kind = KIND_BY_NAME[other.kind]
    rows, columns = get_matrix(other)
    origin = Origin(True, other.start, kind, rows, columns)
    if plain.kind.is_float and kind.is_float:
        yield replace(plain, origin=origin, zero=0)
        return
    if not kind.is_float:
        if not plain.kind.is_float and _get_zeros(tensor) == _get_zeros(other):
            yield replace(plain, origin=origin, zero=0)
        origin = origin._replace(scales=places.base.get(other.start), zero=other.zeros[0] if other.zeros else 0)
        if origin.scales is None:
            return
    if plain.kind.is_float:
        yield replace(plain, origin=origin, zero=0)
        return
    scales = places.target.get(tensor.start)
    if scales is not None:
        for division in DIVISIONS if kind.is_float else (0,):
            yield replace(plain, origin=origin, scales=scales, division=division, zero=tensor.zeros[0])


def _get_zeros(tensor: Tensor) -> set[int]:
    return set(tensor.zeros) or {0}
