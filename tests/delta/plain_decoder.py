"""Another reader of patches, written from docs/formats/patch.md: slow, plain Python, a number at a time.

It shares no line with `edgeferry.delta`, so that where both agree, the page says enough. It trusts its input: what is
damaged may raise anything. Archives (docs/formats/patch-zip.md) are not read.
"""

from __future__ import annotations

import bz2
import lzma
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hdiffpatch
import zstandard

from delta.plain_streams import (
    COPY,
    FLOATS,
    I4,
    MANTISSAS,
    SET,
    WIDTHS,
    Bytes,
    Streams,
    divide,
    read_cells,
    read_number,
    round_to_kind,
    to_float32,
    unfold,
    write_number,
)


# --- methods ----------------------------------------------------------------------------------------------------------
def decode(method: int, base: bytes, data: bytes, size: int) -> bytes:
    if method == 0:
        return data
    if method == 1:
        return zstandard.ZstdDecompressor(max_window_size=1 << 26).decompress(data, max_output_size=size)
    if method == 2:
        return decode_lzma(data)
    if method == 3:
        return bytes(hdiffpatch.apply(base, data))
    if method in (4, 5):
        plain = decode_lzma(data) if method == 4 else bz2.decompress(data)
        return bytes(hdiffpatch.apply(base, b"HDIFF13&\0" + plain))
    if method == 6:
        words = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return zstandard.ZstdDecompressor(dict_data=words).decompress(data, max_output_size=size)
    return bz2.decompress(data)


def decode_lzma(data: bytes) -> bytes:
    size = (1 << 16, 1 << 20, 1 << 23, 1 << 25)[data[0]]
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": size}]
    return lzma.decompress(data[1:], lzma.FORMAT_RAW, filters=filters)


# --- the map ----------------------------------------------------------------------------------------------------------
Record = dict[str, Any]
TENSOR_COLUMNS = ("rows", "columns", "scale", "mantissa", "zero", "rank")
SIGNED = {"start", "scale", "zero", "step", "lattice_bits", "source", "origin_rows", "origin_columns", "origin_zero"}


def read_map(data: bytes) -> list[Record]:
    numbers = Bytes(data)
    records: list[Record] = [{} for _ in range(numbers.varint())]

    def fill(name: str, chosen: list[Record]) -> None:
        for record in chosen:
            number = numbers.varint()
            record[name] = unfold(number) if name in SIGNED else number

    for name in ("kind", "start", "flags"):
        fill(name, records)
    tensors = [each for each in records if each["kind"] != COPY]
    fill("length", [each for each in records if each["kind"] == COPY])
    for name in TENSOR_COLUMNS:
        fill(name, tensors)
    fill("step", [each for each in tensors if each["rank"]])
    fill("multiplier_bits", [each for each in tensors if each["flags"] >> 9 & 3])
    fill("lattice_bits", [each for each in tensors if each["flags"] >> 15 & 3])
    fill("threshold", [each for each in tensors if each["flags"] & 16])
    fill("divisor", [each for each in tensors if each["flags"] >> 11 & 3])
    places: list[Record] = []
    for each in tensors:
        for flag, base_flag, name in ((32, 64, "own"), (128, 256, "theirs")):
            if each["flags"] & flag:
                each[name] = {"in_base": bool(each["flags"] & base_flag)}
                places.append(each[name])
    fill("place", places)
    fill("count", places)
    with_origin = [each for each in tensors if each["flags"] & 1]
    fill("source", [each for each in records if each["kind"] == COPY or each["flags"] & 1])
    for name in ("origin_kind", "origin_rows", "origin_columns", "origin_zero"):
        fill(name, with_origin)
    assert numbers.at == len(data)
    place_records(records)
    return records


def place_records(records: list[Record]) -> None:
    """From distances to places."""
    end, source_end = 0, 0
    for each in records:
        each["start"] += end
        each["in_base"] = not each["flags"] & 2
        if each["kind"] != COPY:
            each["length"] = each["rows"] * each["columns"] * WIDTHS[each["kind"]]
            each["mantissa"] = MANTISSAS[each["kind"]] - each["mantissa"]
        end = each["start"] + each["length"]
        if "source" in each:
            each["source"] += source_end
            each["source_length"] = each["length"]
            if each["kind"] != COPY:
                each["origin_rows"] += each["rows"]
                each["origin_columns"] += each["columns"]
                numbers = each["origin_rows"] * each["origin_columns"]
                each["source_length"] = numbers * WIDTHS[each["origin_kind"]]
            source_end = each["source"] + each["source_length"]


# --- tensors ----------------------------------------------------------------------------------------------------------
@dataclass
class Beside:
    """The numbers beside a tensor."""

    row_scales: list[int]
    column_scales: list[int]
    multipliers: list[int]
    row_factors: list[list[int]]
    column_factors: list[list[int]]
    steps: list[int]


def read_beside(record: Record, streams: Streams) -> Beside:
    rows, columns, flags = record["rows"], record["columns"], record["flags"]
    row_scales = streams.take_beside(rows, 0) if flags & 4 else []
    column_scales = streams.take_beside(columns, 0) if flags & 8 else []
    multipliers = streams.take_beside((0, rows, columns)[flags >> 9 & 3], 1)
    scales = [min(max(scale, 0), 64) for scale in streams.take_beside(record["rank"], 0)]
    factors = [read_factors(streams, scales, count) for count in (rows, columns)]
    steps = streams.take_beside((0, rows, columns)[flags >> 15 & 3], 1)
    return Beside(row_scales, column_scales, multipliers, factors[0], factors[1], steps)


def read_whole(streams: Streams, scales: list[int]) -> list[int]:
    words = read_cells(streams, I4, 0, 3, [(0.0, scale) for scale in scales])
    return [int.from_bytes(word, "little", signed=True) for word in words]


def read_factors(streams: Streams, scales: list[int], count: int) -> list[list[int]]:
    wanted = [scale for scale in scales for _ in range(count)]
    flat: list[int] = []
    for start in range(0, len(wanted), 65_536):
        flat += read_whole(streams, wanted[start : start + 65_536])
    return [flat[at * count : (at + 1) * count] for at in range(len(scales))]


@dataclass
class Reader:
    """A base, and a target that grows."""

    base: bytes
    target: bytearray
    streams: Streams

    def read(self, in_base: bool, start: int, length: int) -> bytes:
        return bytes((self.base if in_base else self.target)[start : start + length])

    def read_scale(self, place: Record, sides: tuple[int, int], row: int, column: int) -> float:
        at = 0
        if place["count"] == sides[0]:
            at = min(row, sides[0] - 1)
        elif place["count"] == sides[1]:
            at = min(column, sides[1] - 1)
        scale = read_number(self.read(place["in_base"], place["place"] + 4 * at, 4), 0)
        return scale if math.isfinite(scale) else 0.0

    def read_origin(self, record: Record, row: int, column: int) -> float:
        if row >= record["origin_rows"] or column >= record["origin_columns"]:
            return 0.0
        width = WIDTHS[record["origin_kind"]]
        start = record["source"] + width * (row * record["origin_columns"] + column)
        number = read_number(self.read(record["in_base"], start, width), record["origin_kind"])
        return number if math.isfinite(number) else 0.0

    def find_peak(self, record: Record, number: int) -> float:
        rows, columns = record["origin_rows"], record["origin_columns"]
        if record["flags"] >> 11 & 3 == 1:
            places = [(number, column) for column in range(columns)] if number < rows else []
        else:
            places = [(row, number) for row in range(rows)] if number < columns else []
        return max((abs(self.read_origin(record, *place)) for place in places), default=0.0) / record["divisor"]

    def expect(self, record: Record, beside: Beside, row: int, column: int) -> tuple[float, int, float]:
        """What is expected, the scale of its error, and the size that pruning looks at."""
        flags, number = record["flags"], 0.0
        if flags >> 11 & 3:
            number = self.find_peak(record, row * record["columns"] + column)
        elif flags & 1:
            number = self.read_origin(record, row, column) - record["origin_zero"]
            if "theirs" in record:
                sides = (record["origin_rows"], record["origin_columns"])
                number *= self.read_scale(record["theirs"], sides, row, column)
        if flags >> 9 & 3:
            multiplier = beside.multipliers[row if flags >> 9 & 3 == 1 else column]
            number *= 1.0 + math.ldexp(multiplier, -record["multiplier_bits"])
        size = abs(number)
        if "own" in record:
            scale = self.read_scale(record["own"], (record["rows"], record["columns"]), row, column)
            number = quantise(number, scale, flags >> 13 & 3)
        if record["zero"]:  # plus 0 would make +0.0 of -0.0
            number += record["zero"]
        if record["rank"]:
            total = sum(a[row] * b[column] for a, b in zip(beside.row_factors, beside.column_factors, strict=True))
            number += math.ldexp((total + (1 << 31)) % (1 << 32) - (1 << 31), -record["step"])
        error = record["scale"] + 2 * (beside.row_scales[row] if flags & 4 else 0)
        error += 2 * (beside.column_scales[column] if flags & 8 else 0)
        most = 1200 if record["kind"] < FLOATS and not flags >> 15 & 3 else 96
        return number, min(max(error, -most), most), size

    def fill_tensor(self, record: Record) -> None:
        beside = read_beside(record, self.streams)
        width, columns = WIDTHS[record["kind"]], record["columns"]
        places = [(row, column) for row in range(record["rows"]) for column in range(columns)]
        for start in range(0, len(places), 65_536):
            piece = places[start : start + 65_536]
            words = b"".join(self.read_piece(record, beside, piece))
            at = record["start"] + start * width
            self.target[at : at + len(words)] = words

    def read_piece(self, record: Record, beside: Beside, places: list[tuple[int, int]]) -> list[bytes]:
        wanted = [self.expect(record, beside, *place) for place in places]
        found = [b""] * len(places)
        if record["flags"] & 16:
            contexts = [4 * SET + 4 + count_borders(record["threshold"], size) for _, _, size in wanted]
            for at, symbol in enumerate(self.streams.take_symbols(contexts)):
                if symbol:
                    negative = (math.copysign(1.0, wanted[at][0]) < 0) != (symbol == 2)
                    found[at] = write_number(-0.0 if negative else 0.0, record["kind"])
        kept = [at for at, word in enumerate(found) if not word]
        expected = [(wanted[at][0], wanted[at][1]) for at in kept]
        if record["flags"] >> 15 & 3:
            words = self.read_lattice(record, beside, expected, [places[at] for at in kept])
        else:
            which = 2 if record["kind"] >= FLOATS else 0 if record["flags"] & 1 else 1
            words = read_cells(self.streams, record["kind"], record["mantissa"], which, expected)
        for at, word in zip(kept, words, strict=True):
            found[at] = word
        return found

    def read_lattice(
        self, record: Record, beside: Beside, expected: list[tuple[float, int]], places: list[tuple[int, int]]
    ) -> list[bytes]:
        multiples = read_whole(self.streams, [scale for _, scale in expected])
        words = []
        for (number, _), multiple, (row, column) in zip(expected, multiples, places, strict=True):
            step = beside.steps[row if record["flags"] >> 15 & 3 == 1 else column]
            moved = number + multiple * math.ldexp(step, -record["lattice_bits"])
            words.append(write_number(round_to_kind(moved, record["kind"]), record["kind"]))
        return words


def quantise(number: float, scale: float, division: int) -> float:
    """0 / 0 counts as 0."""
    if division == 0:
        found = divide(number, scale)
    elif division == 1:
        found = to_float32(divide(number, scale))
    else:
        found = to_float32(to_float32(number) * to_float32(divide(1.0, scale)))
    return 0.0 if math.isnan(found) else found


def count_borders(threshold: int, size: float) -> int:
    number = read_number(threshold.to_bytes(4, "little"), 0)
    quarters = (1.0, 1.1875, 1.4140625, 1.6796875)
    return sum(number * 2.0 ** (k // 4) * quarters[k % 4] <= size for k in range(-8, 8))


# --- the whole --------------------------------------------------------------------------------------------------------
def find_rest(ranges: list[tuple[int, int]], size: int) -> Iterator[int]:
    """Places of bytes that no range holds."""
    held = bytearray(size)
    for start, end in ranges:
        held[start:end] = b"\1" * (end - start)
    return (at for at in range(size) if not held[at])


def read_pieces(data: Bytes, method: int) -> list[list[Any]]:
    """Method, size, bytes, start and size of the base; a single piece: sizes are None."""
    if method != 15:
        return [[method, None, data.rest(), 0, None]]
    pieces: list[list[Any]] = []
    for _ in range(data.varint()):
        kind = data.take(1)[0]
        size, length = data.varint(), data.varint()
        pieces.append([kind, size, length, *((data.varint(), data.varint()) if kind in (3, 4, 5, 6) else (0, 0))])
    for piece in pieces:
        piece[2] = data.take(piece[2])
    return pieces


def read_streams(data: Bytes) -> tuple[list[Record], Streams]:
    method = data.take(1)[0]
    map_bytes, map_length, lanes, symbols_length, bits_length = (data.varint() for _ in range(5))
    records = read_map(decode(method, b"", data.take(map_length), map_bytes))
    symbols = Bytes(data.take(symbols_length))
    return records, Streams(lanes, symbols, "".join(f"{byte:08b}" for byte in data.take(bits_length)))


def apply_plainly(base: bytes, patch: bytes) -> bytes:
    """The target; what the patch holds is believed."""
    data = Bytes(patch)
    assert data.take(4) == b"EFD\1"
    way = data.take(1)[0]
    data.take((32 if way & 64 else 12) * (1 + bool(way & 32)))
    target = bytearray(data.varint())
    data.varint()
    records, streams = read_streams(data) if way & 16 else ([], None)
    rest = list(find_rest([(each["start"], each["start"] + each["length"]) for each in records], len(target)))
    sources = [each for each in records if "source" in each and each["in_base"]]
    used = [(each["source"], each["source"] + each["source_length"]) for each in sources]
    base_rest = bytes(base[at] for at in find_rest(used, len(base)))
    done = 0
    for method, size, words, start, base_bytes in read_pieces(data, way & 15):
        length = len(rest) if size is None else size
        part = base_rest if base_bytes is None else base_rest[start : start + base_bytes]
        for at, byte in zip(rest[done : done + length], decode(method, part, words, length), strict=True):
            target[at] = byte
        done += length
    assert done == len(rest) and data.at == len(patch)
    if streams:
        fill_records(Reader(base, target, streams), records)
    return bytes(target)


def fill_records(reader: Reader, records: list[Record]) -> None:
    for record in records:
        if record["kind"] == COPY:
            found = reader.read(record["in_base"], record["source"], record["length"])
            reader.target[record["start"] : record["start"] + record["length"]] = found
        else:
            reader.fill_tensor(record)
    reader.streams.require_end()
