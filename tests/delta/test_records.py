"""The map: any record comes back, every bound holds, and no bytes make another error than ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.delta.kinds import KINDS
from edgeferry.delta.record_bytes import make_records, read_records
from edgeferry.delta.records import (
    MAX_RANK,
    MAX_SIDE,
    AnyRecord,
    Copy,
    Origin,
    Place,
    Record,
    check_records,
    find_gaps,
    list_base_ranges,
)
from edgeferry.delta.varint import MAX_NUMBER_BITS, make_varint, read_varint
from edgeferry.errors import DeltaDamaged

SIZE = 1 << 20
F4, I1 = KINDS[0], KINDS[3]
ORIGIN = Origin(True, 400, F4, 10, 20)
PLAIN = Record(1000, F4, 10, 20, ORIGIN, mantissa=23)


def read(data: bytes, *, base_bytes: int = SIZE, target_bytes: int = SIZE) -> tuple[AnyRecord, ...]:
    return read_records(data, base_bytes=base_bytes, target_bytes=target_bytes)


# --- there and back ---------------------------------------------------------------------------------------------------
PLACES = st.none() | st.builds(Place, st.booleans(), st.integers(0, 1000), st.integers(1, 1000))
ZEROS = st.integers(-(1 << 32) + 1, (1 << 32) - 1)


@st.composite
def draw_origin(draw: st.DrawFn) -> Origin:
    kind, rows, columns = draw(st.sampled_from(KINDS)), draw(st.integers(1, 90)), draw(st.integers(1, 90))
    return Origin(draw(st.booleans()), draw(st.integers(0, 1000)), kind, rows, columns, draw(PLACES), draw(ZEROS))


@st.composite
def draw_record(draw: st.DrawFn) -> Record:
    kind = draw(st.sampled_from(KINDS))
    origin = draw(st.none() | draw_origin())
    peak = draw(st.integers(0, 2)) if origin else 0
    rank, multiplied = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    lattice = draw(st.integers(0, 2)) if kind.name in {"f4", "f2"} else 0
    return Record(
        start=0,
        kind=kind,
        rows=draw(st.integers(1, 90)),
        columns=draw(st.integers(1, 90)),
        origin=origin,
        peak=peak,
        divisor=draw(st.integers(1, 1 << 40)) if peak else 0,
        mantissa=draw(st.integers(0, kind.mantissa)),
        scale=draw(st.integers(-1024, 1024)),
        row_scales=draw(st.booleans()),
        column_scales=draw(st.booleans()),
        multiplied=multiplied,
        multiplier_bits=draw(st.integers(0, 40)) if multiplied else 0,
        rank=rank,
        step=draw(st.integers(-200, 200)) if rank else 0,
        lattice=lattice,
        lattice_bits=draw(st.integers(-200, 200)) if lattice else 0,
        threshold=draw(st.none() | st.integers(0, 0x7F7FFFFF)),
        scales=draw(PLACES),
        zero=draw(ZEROS),
        division=draw(st.integers(0, 2)),
    )


COPIES = st.builds(Copy, st.just(0), st.integers(0, 5000), st.booleans(), st.integers(0, 5000))


def make_apart(record: AnyRecord) -> AnyRecord:
    """The record, reading from the base where it would read from itself."""
    if isinstance(record, Copy):
        apart = record.source >= record.end or record.source + record.size_bytes <= record.start
        return record if apart else replace(record, in_base=True)
    origin = record.origin
    if origin is None or origin.start >= record.end or origin.start + origin.size_bytes <= record.start:
        return record
    return replace(record, origin=origin._replace(in_base=True))


@st.composite
def draw_maps(draw: st.DrawFn) -> tuple[AnyRecord, ...]:
    """Records with gaps between them, in any order."""
    at, found = 0, []
    for record in draw(st.lists(draw_record() | COPIES, max_size=8)):
        found.append(make_apart(replace(record, start=at + draw(st.integers(0, 500)))))
        at = found[-1].end
    return tuple(draw(st.permutations(found)))


@given(draw_maps())
@settings(max_examples=300)
def test_any_records_come_back(records: tuple[AnyRecord, ...]) -> None:
    data = make_records(records)
    assert read(data) == records
    with pytest.raises(DeltaDamaged):
        read(data + b"\0")
    with pytest.raises(DeltaDamaged):
        read(data[:-1])


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_records_or_damage(data: bytes) -> None:
    with contextlib.suppress(DeltaDamaged):
        check_records(read(data), base_bytes=SIZE, target_bytes=SIZE)


@given(draw_maps(), st.data())
@settings(max_examples=200)
def test_a_changed_map_is_records_or_damage(records: tuple[AnyRecord, ...], data: st.DataObject) -> None:
    damaged = bytearray(make_records(records))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DeltaDamaged):
        check_records(read(bytes(damaged)), base_bytes=SIZE, target_bytes=SIZE)


def test_equal_distances_make_maps_that_compress() -> None:
    records = [replace(PLAIN, start=1000 + 900 * at, origin=ORIGIN._replace(start=400 + 900 * at)) for at in range(50)]
    data = make_records(records)
    assert len(data) < 50 * 18
    assert read(data) == tuple(records)


# --- bounds -----------------------------------------------------------------------------------------------------------
def with_origin(**changes: object) -> Record:
    return replace(PLAIN, origin=ORIGIN._replace(**changes))


BAD: dict[str, AnyRecord] = {
    "a start before the file": replace(PLAIN, start=-1),
    "an end behind the file": replace(PLAIN, start=SIZE - 799),
    "no rows": replace(PLAIN, rows=0),
    "no columns": replace(PLAIN, columns=0),
    "a mantissa below nothing": replace(PLAIN, mantissa=-1),
    "a scale out of sight": replace(PLAIN, scale=1025),
    "a scale far below": replace(PLAIN, scale=-1025),
    "multipliers too fine": replace(PLAIN, multiplied=1, multiplier_bits=41),
    "a third way to multiply": replace(PLAIN, multiplied=3),
    "a third way of peaks": replace(PLAIN, peak=3, divisor=1),
    "a fourth division": replace(PLAIN, division=3),
    "a third lattice": replace(PLAIN, lattice=3),
    "a lattice too fine": replace(PLAIN, lattice=1, lattice_bits=201),
    "a lattice too coarse": replace(PLAIN, lattice=1, lattice_bits=-201),
    "a lattice of integers": Record(0, I1, 4, 4, lattice=1),
    "a lattice of bfloat16": Record(0, KINDS[2], 4, 4, lattice=1),
    "a rank too high": replace(PLAIN, rank=MAX_RANK + 1),
    "a step too fine": replace(PLAIN, rank=1, step=201),
    "a step too coarse": replace(PLAIN, rank=1, step=-201),
    "a threshold of more than 32 bits": replace(PLAIN, threshold=1 << 32),
    "a threshold that is infinite": replace(PLAIN, threshold=0x7F800000),
    "a threshold that is no number": replace(PLAIN, threshold=0x7FA00000),
    "a threshold below zero": replace(PLAIN, threshold=0xBF800000),
    "a zero point too large": replace(PLAIN, zero=1 << 32),
    "a zero point too small": replace(PLAIN, zero=-(1 << 32)),
    "a zero point of the origin too large": with_origin(zero=1 << 32),
    "an origin before its file": with_origin(start=-1),
    "an origin behind its file": with_origin(start=SIZE - 799),
    "an origin without rows": with_origin(rows=0),
    "an origin with fewer than no rows": with_origin(rows=-3, columns=-3),
    "an origin far too large": with_origin(rows=1 << 40, columns=1 << 40),
    "scales behind the file": replace(PLAIN, scales=Place(False, SIZE - 3, 1)),
    "scales behind the base": replace(PLAIN, scales=Place(True, SIZE - 39, 10)),
    "no scales": replace(PLAIN, scales=Place(True, 0, 0)),
    "too many scales": replace(PLAIN, scales=Place(True, 0, MAX_SIDE + 1)),
    "scales of the origin behind the file": with_origin(scales=Place(True, SIZE, 1)),
    "peaks without a divisor": replace(PLAIN, peak=1),
    "peaks of nothing": replace(PLAIN, origin=None, peak=1, divisor=1),
    "too many peaks": replace(PLAIN, rows=1, columns=MAX_SIDE + 1, peak=2, divisor=1),
    "too many rows to have peaks": with_origin(kind=I1, rows=MAX_SIDE + 1, columns=1),
    "a copy from before the file": Copy(0, 10, True, -1),
    "a copy from behind the base": Copy(0, 10, True, SIZE - 9),
    "a copy from behind the target": Copy(0, 10, False, SIZE - 9),
    "a copy from itself": Copy(10, 10, False, 10),
    "a copy from a part of itself": Copy(10, 10, False, 19),
    "an origin in the tensor itself": with_origin(in_base=False, start=PLAIN.start),
    "a copy to behind the target": Copy(SIZE - 9, 10, True, 0),
    "too many rows with scales": Record(0, I1, MAX_SIDE + 1, 1, row_scales=True),
    "too many columns with scales": Record(0, I1, 1, MAX_SIDE + 1, column_scales=True),
    "too many rows with multipliers": Record(0, I1, MAX_SIDE + 1, 1, multiplied=1),
    "too many columns with multipliers": Record(0, I1, 1, MAX_SIDE + 1, multiplied=2),
    "too many rows on a lattice": Record(0, KINDS[1], MAX_SIDE + 1, 1, lattice=1),
    "too many columns on a lattice": Record(0, KINDS[1], 1, MAX_SIDE + 1, lattice=2),
    "too many rows with factors": Record(0, I1, MAX_SIDE + 1, 1, rank=1),
    "too many columns with factors": Record(0, I1, 1, MAX_SIDE + 1, rank=1),
}
BAD["too many rows to have peaks"] = replace(BAD["too many rows to have peaks"], peak=1, divisor=1)  # type: ignore[type-var]


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_a_rule_is_damage(name: str) -> None:
    assert read(make_records([PLAIN])) == (PLAIN,)
    with pytest.raises(DeltaDamaged):
        read(make_records([BAD[name]]))


def change_number(records: list[AnyRecord], at: int, number: int) -> bytes:
    """The map with one of its numbers changed."""
    view, numbers, place = memoryview(make_records(records)), [], 0
    while place < len(view):
        value, place = read_varint(view, place)
        numbers.append(value)
    numbers[at] = number
    return b"".join(map(make_varint, numbers))


@pytest.mark.parametrize(
    ("at", "number"),
    [(0, (1 << 16) + 1), (0, 2), (0, 0), (1, len(KINDS) + 1), (3, 1 << 17), (11, len(KINDS))],
    ids=["too many records", "one too many", "none", "an unknown kind", "an unknown flag", "an unknown kind of origin"],
)
def test_numbers_that_mean_nothing_are_damage(at: int, number: int) -> None:
    with pytest.raises(DeltaDamaged):
        read(change_number([PLAIN], at, number))


@pytest.mark.parametrize("shift", [-1, 0, 1], ids=["overlap", "touch", "apart"])
def test_ranges_may_touch_but_not_overlap(shift: int) -> None:
    records = [PLAIN, replace(PLAIN, start=PLAIN.end + shift), Copy(PLAIN.start - 40 - shift, 40, True, 0)]
    for ordered in (records, records[::-1]):
        if shift < 0:
            with pytest.raises(DeltaDamaged):
                read(make_records(ordered))
        else:
            assert read(make_records(ordered)) == tuple(ordered)


def test_a_tensor_reaches_exactly_to_the_end_of_its_file() -> None:
    last = replace(PLAIN, start=SIZE - 800, origin=ORIGIN._replace(start=SIZE - 800), scales=Place(True, SIZE - 40, 10))
    assert read(make_records([last])) == (last,)
    with pytest.raises(DeltaDamaged):
        read(make_records([last]), base_bytes=SIZE - 1)
    with pytest.raises(DeltaDamaged):
        read(make_records([last]), target_bytes=SIZE - 1)


# --- ranges and numbers -----------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20))), st.integers(80, 90))
@settings(max_examples=200)
def test_gaps_are_what_no_range_holds(pairs: list[tuple[int, int]], size_bytes: int) -> None:
    ranges = [(start, start + length) for start, length in pairs]
    held = {at for start, end in ranges for at in range(start, end)}
    gaps = find_gaps(ranges, size_bytes)
    assert [at for start, end in gaps for at in range(start, end)] == [at for at in range(size_bytes) if at not in held]
    assert all(start < end for start, end in gaps)


def test_ranges_of_the_base_are_those_of_origins_and_copies_from_it() -> None:
    records = [
        PLAIN,
        with_origin(in_base=False),
        replace(PLAIN, origin=None),
        Copy(0, 9, True, 5),
        Copy(9, 9, False, 5),
    ]
    assert list_base_ranges(records) == [(400, 1200), (5, 14)]


@given(st.integers(0, (1 << MAX_NUMBER_BITS) - 1), st.binary(max_size=3))
def test_numbers_come_back_and_tell_where_they_end(number: int, rest: bytes) -> None:
    coded = make_varint(number)
    assert read_varint(memoryview(coded + rest), 0) == (number, len(coded))
    assert len(coded) == max(1, -(-number.bit_length() // 7))


READERS: dict[str, Callable[[], object]] = {
    "nothing": lambda: read_varint(memoryview(b""), 0),
    "cut": lambda: read_varint(memoryview(b"\x80\x80"), 0),
    "too long": lambda: read_varint(memoryview(b"\x80" * 9 + b"\x01"), 0),
    "behind the end": lambda: read_varint(memoryview(b"\x01"), 5),
}


@pytest.mark.parametrize("name", READERS)
def test_a_number_that_is_cut_or_too_long_is_damage(name: str) -> None:
    with pytest.raises(DeltaDamaged):
        READERS[name]()
