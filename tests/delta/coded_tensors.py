"""Tensors coded by records that nobody would choose: any that the map allows, with any numbers beside them.

Seeded. `code` gives a patch of one such tensor, and what `apply_patch` makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeferry.delta import codecs, tensor_codec
from edgeferry.delta.apply import fill_record, open_source
from edgeferry.delta.bits import BitWriter
from edgeferry.delta.container import Container, Header, Piece, Streams, make_container
from edgeferry.delta.kinds import KINDS, Kind
from edgeferry.delta.predict import Files, Side, expect
from edgeferry.delta.rans import I64, Encoder
from edgeferry.delta.record_bytes import make_records
from edgeferry.delta.records import Origin, Place, Record
from edgeferry.delta.tensor_codec import Sink, make_model, write_tensor
from edgeferry.model.digest import Digest

SCALES_AT, ORIGIN_AT, TENSOR_AT = 64, 1024, 1024
"""Both files begin with float32 that serve as scales; the tensor, and what it comes from, lie behind them."""
LANES = 8


@dataclass(frozen=True)
class Coded:
    """A patch of one tensor; `target` is what a reader must make of it."""

    record: Record
    base: bytes
    target: bytes
    patch: bytes


def draw_words(dice: np.random.Generator, kind: Kind, count: int) -> bytes:
    """Numbers of a kind: near to zero, or as they come, some of them odd."""
    words = dice.integers(0, 1 << (8 * kind.width), count, np.uint64)
    if kind.is_float and dice.random() < 0.8:
        sign, top = 8 * kind.width - 1, (1 << (8 * kind.width - 1 - kind.mantissa)) // 2
        exponents = dice.integers(max(top - 12, 1), top + 1, count, np.uint64)
        plain = words & np.uint64((1 << kind.mantissa) - 1) | exponents << np.uint64(kind.mantissa)
        plain |= (words >> np.uint64(sign)) << np.uint64(sign)
        words = np.where(dice.random(count) < 0.1, words, plain)
    words[dice.random(count) < 0.1] = 0
    return words.astype(f"<u{kind.width}").tobytes()


def draw_record(dice: np.random.Generator) -> Record:
    """A record as the map allows it, small."""

    def flip(share: float = 0.3) -> bool:
        return bool(dice.random() < share)

    kind, rows, columns = KINDS[dice.integers(len(KINDS))], int(dice.integers(1, 12)), int(dice.integers(1, 14))
    origin = draw_origin(dice, rows, columns) if flip(0.8) else None
    peak = int(dice.integers(1, 3)) if origin and flip(0.15) else 0
    lattice = int(dice.integers(1, 3)) if kind.name in ("f4", "f2") and flip(0.15) else 0
    multiplied, rank = int(dice.integers(0, 3)) * flip(), int(dice.integers(0, 4)) * flip()
    return Record(
        start=TENSOR_AT,
        kind=kind,
        rows=rows,
        columns=columns,
        origin=origin,
        peak=peak,
        divisor=int(dice.integers(1, 300)) if peak else 0,
        mantissa=kind.mantissa,
        scale=int(dice.integers(-150, 60)),
        row_scales=flip(),
        column_scales=flip(),
        multiplied=multiplied,
        multiplier_bits=int(dice.integers(0, 41)) if multiplied else 0,
        rank=rank,
        step=int(dice.integers(-4, 60)) if rank else 0,
        lattice=lattice,
        lattice_bits=int(dice.integers(-2, 40)) if lattice else 0,
        threshold=int(np.float32(10.0 ** dice.integers(-3, 3)).view(np.uint32)) if flip() else None,
        scales=draw_place(dice, rows, columns) if flip() else None,
        zero=int(dice.integers(-130, 130)) if flip() else 0,
        division=int(dice.integers(0, 3)),
    )


def draw_origin(dice: np.random.Generator, rows: int, columns: int) -> Origin:
    """As large as the tensor, or not."""
    grown = [int(dice.integers(-3, 4)) if dice.random() < 0.3 else 0 for _ in range(2)]
    sides = (max(1, rows + grown[0]), max(1, columns + grown[1]))
    scales = draw_place(dice, *sides) if dice.random() < 0.4 else None
    zero = int(dice.integers(-130, 130)) if dice.random() < 0.3 else 0
    return Origin(True, ORIGIN_AT, KINDS[dice.integers(len(KINDS))], *sides, scales, zero)


def draw_place(dice: np.random.Generator, rows: int, columns: int) -> Place:
    """Scales for all, rows, columns, or of a number that fits none."""
    count = int(dice.choice([1, rows, columns, 3]))
    return Place(bool(dice.random() < 0.5), 4 * int(dice.integers(0, 40)), count)


def draw_side(dice: np.random.Generator, record: Record) -> Side:
    """The numbers beside it."""
    along = {0: 0, 1: record.rows, 2: record.columns}
    factor_scales = dice.integers(0, 40, record.rank)
    return Side(
        dice.integers(-9, 10, record.rows * record.row_scales),
        dice.integers(-9, 10, record.columns * record.column_scales),
        dice.integers(-(1 << 20), 1 << 20, along[record.multiplied]),
        factor_scales,
        dice.integers(-(1 << 16), 1 << 16, (record.rank, record.rows)),
        dice.integers(-(1 << 20), 1 << 20, (record.rank, record.columns)),
        dice.integers(1, 1 << 12, along[record.lattice]),
    )


def draw_head(dice: np.random.Generator) -> bytes:
    """Scales, some of them none that one would use."""
    scales = np.exp(dice.normal(size=TENSOR_AT // 4) * 2).astype(np.float32)
    odd = dice.choice(np.array([0.0, -0.0, np.inf, np.nan, -1.0, 1e-45, 1e38], np.float32), len(scales))
    return bytes(np.where(dice.random(len(scales)) < 0.08, odd, scales).astype("<f4").tobytes())


def code(seed: int) -> Coded:
    """One tensor, coded by a record that has nothing to do with it."""
    dice = np.random.default_rng(seed)
    record = draw_record(dice)
    origin = record.origin
    words = draw_words(dice, origin.kind, origin.rows * origin.columns) if origin else b""
    base = draw_head(dice) + words + bytes(64)
    target = draw_head(dice) + draw_words(dice, record.kind, record.elements)
    side, sink = draw_side(dice, record), Sink(Encoder(), BitWriter(), make_model())
    if record.lattice:  # numbers beside the lattice would not come back: it is walked on, and what is there is found
        record = replace(record, threshold=None, scales=None)
        multiples = dice.integers(-3000, 3000, record.elements)
        _write_multiples(record, side, Files(memoryview(base), memoryview(target)), multiples, sink)
    else:
        write_tensor(record, side, Files(memoryview(base), memoryview(target)), sink=sink)
    return _make(record, base, target, sink)


def _write_multiples(record: Record, side: Side, files: Files, multiples: I64, sink: Sink) -> None:
    tensor_codec._write_side(record, side, sink)
    scales = expect(record, side, files, start=0, end=record.elements).scales
    tensor_codec._write_whole(multiples, scales, sink)


def _make(record: Record, base: bytes, target: bytes, sink: Sink) -> Coded:
    plain = make_records([record])
    streams = Streams(codecs.RAW, len(plain), plain, LANES, sink.encoder.finish(LANES), sink.bits.finish())
    found = bytearray(target[:TENSOR_AT] + bytes(len(target) - TENSOR_AT))
    source = open_source(streams)
    fill_record(record, Files(memoryview(base), memoryview(found)), source)
    source.require_end()
    digests = [bytes.fromhex(Digest.of(data).hex)[:12] for data in (base, bytes(found))]
    header = Header(True, *digests, len(target), 32 << 20)
    piece = Piece(codecs.RAW, -1, target[:TENSOR_AT], 0, -1)
    if not record.lattice:  # on a lattice only what lies on it comes back
        assert found == target, "a record changed what its tensor is"
    return Coded(record, base, bytes(found), make_container(Container(header, streams, (piece,))))
