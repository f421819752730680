"""Symbols, bits and cells as docs/formats/patch.md has them: the lower half of plain_decoder.py, a number at a time."""

from __future__ import annotations

import ctypes
import math
import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from math import isqrt

WIDTHS = (4, 2, 2, 1, 1, 2, 2, 4)
FORMATS = ("<f", "<e", "", "<b", "<B", "<h", "<H", "<i")
MANTISSAS = (23, 10, 7, 0, 0, 0, 0, 0)
LEAST_EXPONENTS = (-126, -14, -126)
RANGES = {3: (-128, 127), 4: (0, 255), 5: (-32768, 32767), 6: (0, 65535), 7: (-(1 << 31), (1 << 31) - 1)}
BF2, FLOATS, I4, COPY = 2, 3, 7, 8
ALPHABET, SLOTS, SET = 114, 1 << 14, 78


# --- bytes and numbers ------------------------------------------------------------------------------------------------
@dataclass
class Bytes:
    """Bytes that are read from the front."""

    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        number, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)


def unfold(number: int) -> int:
    return number // 2 if number % 2 == 0 else -(number + 1) // 2


def to_float32(value: float) -> float:
    return ctypes.c_float(value).value


def read_number(data: bytes, kind: int) -> float:
    if kind == BF2:
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    return float(struct.unpack(FORMATS[kind], data)[0])


def write_number(value: float, kind: int) -> bytes:
    if kind == BF2:
        return struct.pack("<f", value)[2:]
    return struct.pack(FORMATS[kind], int(value) if kind >= FLOATS else value)


def round_to_kind(value: float, kind: int) -> float:
    """The nearest number of the kind, ties to even; infinite where there is none."""
    if kind >= FLOATS:
        low, high = RANGES[kind]
        return float(round(min(max(value, low), high)))
    if kind == 1:
        try:
            return float(struct.unpack("<e", struct.pack("<e", value))[0])
        except OverflowError:
            return math.copysign(math.inf, value)
    value = to_float32(value)
    if kind == BF2 and math.isfinite(value):
        bits = struct.unpack("<I", struct.pack("<f", value))[0]
        bits += 0x7FFF + (bits >> 16 & 1)
        return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0])
    return value


def divide(one: float, other: float) -> float:
    """As IEEE 754 has it."""
    if other:
        return one / other
    if not one or math.isnan(one):
        return math.nan
    return math.copysign(math.inf, one) * math.copysign(1.0, other)


# --- symbols and bits -------------------------------------------------------------------------------------------------
def weigh(step: int, distance: int) -> int:
    q = isqrt(1 << (24 + step))
    return int((q << 20) * q // (q + 4096 * distance * distance) ** 2)


def make_guess(step: int) -> list[int]:
    weights = [weigh(step, abs(symbol - 32)) for symbol in range(65)]
    for _ in range(2):
        for j in range(24):
            g = 4 + j // 2
            v = (1 << g) + (j % 2 << (g - 1))
            weights.append(weigh(step, 17 + v) << (g - 1))
    weights.append(0)
    return [max(1, weight * 2048 // sum(weights)) for weight in weights]


class Context:
    """Counts of one context, and the slots that follow from them."""

    def __init__(self, counts: list[int], allowed: list[bool]) -> None:
        self.counts = [count if can else 0 for count, can in zip(counts, allowed, strict=True)]
        self.allowed = allowed
        self.share()

    def share(self) -> None:
        whole, spare = max(sum(self.counts), 1), SLOTS - sum(self.allowed)
        self.slots = [count * spare // whole + can for count, can in zip(self.counts, self.allowed, strict=True)]
        self.slots[self.slots.index(max(self.slots))] += SLOTS - sum(self.slots)
        self.firsts = [0, *accumulate(self.slots)][:-1]

    def find(self, slot: int) -> int:
        """The symbol whose slots hold it: the last one that begins at or before it and has any."""
        at = bisect_right(self.firsts, slot) - 1
        while not self.slots[at]:
            at -= 1
        return at

    def learn(self, symbols: list[int]) -> None:
        for symbol in symbols:
            self.counts[symbol] += 32
        if sum(self.counts) > 1 << 22:
            self.counts = [(count + 1) // 2 for count in self.counts]
        self.share()


def make_context(number: int) -> Context:
    if number < 4 * SET:
        at = number % SET
        step = -11 + 2 * (at // 7) if at < 70 else 8 + at - 70
        narrow = at < 42
        return Context(make_guess(step), [not narrow or 24 <= s <= 40 or s == 113 for s in range(ALPHABET)])
    most = 63 if number < 4 * SET + 4 else 2 if number < 4 * SET + 4 + 17 else 64
    return Context([4] * ALPHABET, [symbol <= most for symbol in range(ALPHABET)])


@dataclass
class Streams:
    """Both streams, and what the contexts have learned."""

    lanes: int
    symbols: Bytes
    bits: str
    states: list[int] = field(default_factory=list)
    contexts: dict[int, Context] = field(default_factory=dict)
    coded: int = 0
    bit_at: int = 0

    def take_symbols(self, contexts: list[int]) -> list[int]:
        """One call."""
        if not self.states:
            self.states = [int.from_bytes(self.symbols.take(4), "little") for _ in range(self.lanes)]
        found: list[int] = []
        while len(found) < len(contexts):
            size = max(256, min(8192, self.coded // 4))
            piece = contexts[len(found) : len(found) + size]
            symbols = [self.take_symbol(at % self.lanes, number) for at, number in enumerate(piece)]
            for number in set(piece):
                self.contexts[number].learn([s for s, each in zip(symbols, piece, strict=True) if each == number])
            self.coded += len(piece)
            found += symbols
        return found

    def take_symbol(self, lane: int, number: int) -> int:
        if number not in self.contexts:
            self.contexts[number] = make_context(number)
        context, state = self.contexts[number], self.states[lane]
        slot = state % SLOTS
        symbol = context.find(slot)
        state = context.slots[symbol] * (state // SLOTS) + slot - context.firsts[symbol]
        if state < 1 << 16:
            state = (state << 16) + int.from_bytes(self.symbols.take(2), "little")
        self.states[lane] = state
        return symbol

    def take_field(self, width: int) -> int:
        self.bit_at += width
        assert self.bit_at <= len(self.bits)
        return int(self.bits[self.bit_at - width : self.bit_at] or "0", 2)

    def take_beside(self, count: int, context: int) -> list[int]:
        """Numbers beside a tensor: context 0 for scales, 1 for multipliers and steps."""
        symbols = self.take_symbols([4 * SET + 4 + 17 + context] * count)
        found = []
        for symbol in symbols:
            log = (symbol - 1) // 2 if symbol > 2 else 0
            size = (1 << log) + self.take_field(log) if symbol else 0
            found.append(size if symbol % 2 else -size)
        return found

    def require_end(self) -> None:
        assert self.symbols.at == len(self.symbols.data)
        assert all(state == 1 << 16 for state in self.states)
        assert len(self.bits) - self.bit_at < 8 and "1" not in self.bits[self.bit_at :]


# --- cells ------------------------------------------------------------------------------------------------------------
@dataclass
class Grid:
    """The cells around what is expected of one number."""

    e: int
    cell: int
    context: int


def get_exponent(value: float) -> int:
    return math.frexp(value)[1] - 1 if value else -5000


def make_grid(expected: float, scale: int, kind: int, mantissa: int) -> Grid:
    rounded = 0.0 if math.isnan(expected) else round_to_kind(expected, kind)
    rounded = rounded if math.isfinite(rounded) else 0.0
    u = max(get_exponent(rounded), LEAST_EXPONENTS[kind]) - mantissa if kind < FLOATS else 0
    e = max(scale // 4 - 3, u)
    if kind < FLOATS:
        cell = math.floor(math.ldexp(abs(rounded), -e))
        cell = -1 - cell if math.copysign(1, rounded) < 0 else cell
    else:
        e = min(e, 31)
        cell = int(rounded) >> e
    relative = scale - 4 * u
    if relative < 8:
        part = (expected - rounded) / 2.0**u if u > -1000 else 0.0
        seventh = 0 if math.isnan(part) else math.floor(min(max(7 * (part + 0.5), 0.0), 6.0))
        return Grid(e, cell, 7 * ((max(relative, -12) + 12) // 2) + seventh)
    return Grid(e, cell, 62 + relative if relative < 12 else 74 + scale % 4)


def read_cells(streams: Streams, kind: int, mantissa: int, which: int, wanted: list[tuple[float, int]]) -> list[bytes]:
    """The bytes of numbers of which something is expected, with a scale each."""
    grids = [make_grid(expected, scale, kind, mantissa) for expected, scale in wanted]
    symbols = streams.take_symbols([which * SET + grid.context for grid in grids])
    found: list[bytes] = [b""] * len(grids)
    cells = [0] * len(grids)
    for at, (symbol, grid) in enumerate(zip(symbols, grids, strict=True)):
        if symbol == 113:
            found[at] = streams.take_field(8 * WIDTHS[kind]).to_bytes(WIDTHS[kind], "little")
        elif symbol <= 64:
            cells[at] = grid.cell + symbol - 32
        else:
            j = (symbol - 65) % 24
            g = 4 + j // 2
            distance = 17 + (1 << g) + (j % 2 << (g - 1)) + streams.take_field(g - 1)
            cells[at] = grid.cell + (distance if symbol < 89 else -distance)
    tiny = [at for at, cell in enumerate(cells) if kind < FLOATS and not found[at] and cell in (0, -1)]
    seconds = dict(zip(tiny, streams.take_symbols([4 * SET + which] * len(tiny)), strict=True))
    for at, grid in enumerate(grids):
        if not found[at]:
            value = read_inside(streams, grid, cells[at], kind, mantissa, second=seconds.get(at))
            found[at] = write_number(value, kind)
    return found


def read_inside(streams: Streams, grid: Grid, cell: int, kind: int, mantissa: int, *, second: int | None) -> float:
    """Where in its cell a number is."""
    if kind >= FLOATS:
        return float((cell << grid.e) | streams.take_field(min(grid.e, 32)))
    size = cell if cell >= 0 else -1 - cell
    sign = 1.0 if cell >= 0 else -1.0
    if second is None:
        exponent, top = grid.e, grid.e + size.bit_length() - 1
    elif second < 62:
        exponent = top = grid.e - 1 - second
        size = 1
    else:
        return math.copysign(0.0, sign)
    n = min(max(exponent - (max(top, LEAST_EXPONENTS[kind]) - mantissa), 0), 32)
    return sign * math.ldexp((size << n) + streams.take_field(n), exponent - n)
