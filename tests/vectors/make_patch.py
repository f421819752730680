"""Writes the vectors of docs/formats/patch.md: `python tests/vectors/make_patch.py`. What is committed is the norm.

`good-<words>.efd` turns `good-<words>.base` (missing: it is a full file) into `good-<words>.target`. `bad-<words>.efd`
must be refused when it is applied to `bad.base` for a target as long as `bad.target`.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from delta.hostile_patches import make_samples, make_texts, make_zip, wrap
from delta.model_pairs import draw, find_peaks, get_pair, make_onnx, make_quantised
from edgeferry.delta import codecs
from edgeferry.delta.apply import read_map
from edgeferry.delta.container import (
    MEMORY_UNIT,
    Container,
    Piece,
    Streams,
    make_container,
    read_container,
)
from edgeferry.delta.kinds import KINDS
from edgeferry.delta.make import make_full, make_patch
from edgeferry.delta.record_bytes import make_records
from edgeferry.delta.records import AnyRecord, Place, Record

FOLDER = Path(__file__).parent / "patch"
PAIRS = {
    "float16-cast-from-float32": "cast to float16",
    "int8-requantised": "requantised",
    "uint8-from-int8-with-the-same-scales": "shifted to unsigned",
    "scales-that-are-peaks": "scales that are peaks of rows",
    "rows-that-were-multiplied": "rows multiplied",
    "pruned-with-both-zeros": "pruned with other signs",
    "a-lattice-by-columns": "lattice by columns",
    "rows-that-were-added": "rows grown",
    "columns-that-were-added": "columns grown",
    "bfloat16": "bfloat16",
    "numbers-that-are-none": "odd numbers",
    "scales-of-rows": "scales of rows",
}
MAGIC_BYTES, WAY_AT = 3, 4


# --- good -------------------------------------------------------------------------------------------------------------
def make_good() -> dict[str, tuple[bytes | None, bytes, bytes]]:
    """Words -> base, target, patch."""
    found: dict[str, tuple[bytes | None, bytes, bytes]] = {}
    for words, name in PAIRS.items():
        pair = get_pair(name)
        found[words] = (pair.base, pair.target, make_patch(pair.base, pair.target).data)
    weights = draw(200, 48, 64)
    moved = (weights + 0.3 * draw(201, 48, 1) @ draw(202, 1, 64)).astype("f4")
    base, target = make_onnx({"w": weights}), make_onnx({"w": moved})
    found["a-change-of-low-rank"] = (base, target, make_patch(base, target).data)
    twice = make_onnx({"a": draw(203, 20, 30), "b": draw(203, 20, 30), "c": draw(204, 20, 30)})
    found["equal-tensors-in-one-file"] = (base, twice, make_patch(base, twice).data)
    found["a-full-file"] = (None, twice, make_full(twice).data)
    texts = make_texts()
    found["whole-digests"] = (*texts, make_patch(*texts, full_digests=True).data)
    found["nothing-from-something"] = (texts[0], b"", make_patch(texts[0], b"").data)
    found["something-from-nothing"] = (b"", texts[1], make_patch(b"", texts[1]).data)
    found["nothing-changed"] = (texts[0], texts[0], make_patch(texts[0], texts[0]).data)
    for method, words in codecs.METHODS.items():
        sample = make_samples()[words]
        found[f"method-{method}-alone"] = (sample.base, sample.target, sample.patch)
    sample = make_samples()["in pieces"]
    found["all-methods-in-pieces"] = (sample.base, sample.target, sample.patch)
    archives = [
        make_zip(model, zipfile.ZIP_STORED) for model in (get_pair("requantised").base, get_pair("requantised").target)
    ]
    found["an-archive"] = (archives[0], archives[1], make_patch(archives[0], archives[1]).data)
    return found


# --- bad --------------------------------------------------------------------------------------------------------------
WEIGHTS = draw(210, 24, 40)
SCALES = find_peaks(WEIGHTS, 0, 127)
BASE = make_onnx(make_quantised(WEIGHTS, SCALES, 0), scales={"w": 0})
TARGET = make_onnx(make_quantised(WEIGHTS + 0.01 * draw(211, 24, 40), SCALES * 2, 0), scales={"w": 0})
GOOD = make_patch(BASE, TARGET).data
PARTS = read_container(GOOD, base_bytes=len(BASE))
WAYS = 32 | 15


def change_streams(**changes: object) -> bytes:
    """The good patch with something else in its streams."""
    assert PARTS.streams
    return make_container(replace(PARTS, streams=replace(PARTS.streams, **changes)))


def read_records() -> list[AnyRecord]:
    assert PARTS.streams
    return list(read_map(PARTS.streams, base_bytes=len(BASE), target_bytes=len(TARGET)))


def put_map(data: bytes, *, map_bytes: int | None = None) -> bytes:
    """The good patch with another map, as it is."""
    size = len(data) if map_bytes is None else map_bytes
    return change_streams(map_method=codecs.RAW, map_bytes=size, map_data=data)


def change_tensor(change: Callable[[Record], Record]) -> bytes:
    """The good patch with its largest tensor's record changed."""
    records = read_records()
    tensors = [at for at, record in enumerate(records) if isinstance(record, Record)]
    at = max(tensors, key=lambda index: records[index].size_bytes)
    record = records[at]
    assert isinstance(record, Record) and record.origin
    records[at] = change(record)
    return put_map(make_records(records))


def move_origin(record: Record, **changes: object) -> Record:
    assert record.origin
    return replace(record, origin=record.origin._replace(**changes))


def by_method(method: int, data: bytes) -> bytes:
    """The target in one piece, whose bytes are `data`."""
    return wrap(BASE, TARGET, (Piece(method, len(TARGET), data, 0, len(BASE)),))


def in_pieces(*pieces: Piece) -> bytes:
    """Two pieces that are good, and something else."""
    half = len(TARGET) // 2
    return wrap(
        BASE,
        TARGET,
        (Piece(codecs.RAW, half, TARGET[:half]), Piece(codecs.RAW, len(TARGET) - half, TARGET[half:]), *pieces),
    )


def bad_layouts() -> dict[str, bytes]:
    """What a reader sees before it reads a map or a piece."""
    raw = by_method(codecs.RAW, TARGET)
    head = raw[: WAY_AT + 1 + 24]
    return {
        "nothing": b"",
        "another-magic": b"EFX" + raw[MAGIC_BYTES:],
        "a-version-to-come": raw[:3] + b"\x02" + raw[4:],
        "a-map-and-members": raw[:WAY_AT] + bytes([32 | 16 | 128]) + raw[WAY_AT + 1 :],
        "an-unknown-method": raw[:WAY_AT] + bytes([32 | 8]) + raw[WAY_AT + 1 :],
        "a-header-that-is-cut": raw[:20],
        "a-number-of-ten-bytes": head + b"\x80" * 9 + b"\1" + raw[len(head) :],
        "a-size-out-of-reach": make_container(replace(PARTS, header=replace(PARTS.header, target_bytes=1 << 41))),
        "memory-out-of-reach": make_container(
            replace(PARTS, header=replace(PARTS.header, memory_bytes=MEMORY_UNIT << 21))
        ),
        "a-target-of-another-size": make_container(
            replace(PARTS, header=replace(PARTS.header, target_bytes=len(TARGET) + 1))
        ),
        "the-base-is-another": make_container(replace(PARTS, header=replace(PARTS.header, base=bytes(12)))),
        "the-target-is-another": make_container(replace(PARTS, header=replace(PARTS.header, target=bytes(12)))),
        "a-method-with-a-base-and-none": wrap(BASE, TARGET, (Piece(codecs.HDIFF, 0, b""),), has_base=False),
        "a-full-file-for-a-base": wrap(BASE, TARGET, (Piece(codecs.RAW, 0, TARGET),), has_base=False),
    }


def bad_streams() -> dict[str, bytes]:
    """Lengths, lanes, symbols and bits."""
    streams = PARTS.streams
    assert streams
    symbols, bits = bytes(streams.symbols), bytes(streams.bits)
    return {
        "a-map-by-a-method-with-a-base": change_streams(map_method=codecs.FROM),
        "a-map-too-large": change_streams(map_bytes=(1 << 24) + 1),
        "a-map-that-is-longer-than-it-says": change_streams(map_bytes=streams.map_bytes - 1),
        "a-map-that-is-shorter-than-it-says": change_streams(map_bytes=streams.map_bytes + 1),
        "a-patch-that-is-cut-in-its-symbols": GOOD[: GOOD.index(symbols) + 9],
        "no-lanes": change_streams(lanes=0),
        "too-many-lanes": change_streams(lanes=4097),
        "more-lanes-than-symbols": change_streams(lanes=len(symbols) // 4 + 1),
        "half-a-word": change_streams(symbols=symbols + b"\0"),
        "symbols-that-are-cut": change_streams(symbols=symbols[:-2]),
        "symbols-that-are-left-over": change_streams(symbols=symbols + b"\0\0"),
        "no-symbols": change_streams(symbols=b""),
        "another-first-state": change_streams(symbols=bytes([symbols[0] ^ 1]) + symbols[1:]),
        "bits-that-are-cut": change_streams(bits=bits[:-1]),
        "bits-that-are-left-over": change_streams(bits=bits + b"\0"),
    }


def bad_maps() -> dict[str, bytes]:
    """Each breaks one rule of the map."""
    plain = make_records(read_records())
    records = read_records()
    first = records[0]
    return {
        "too-many-records": put_map(b"\x81\x80\x04" + plain[1:]),
        "a-map-that-is-cut": put_map(plain[:-1]),
        "something-behind-the-last-record": put_map(plain + b"\0"),
        "an-unknown-kind": put_map(plain[:1] + b"\x09" + plain[2:]),
        "an-unknown-flag": put_map(plain[: 1 + 2 * len(records)] + b"\x80\x80\x08" + plain[2 + 2 * len(records) :]),
        "records-that-overlap": put_map(make_records([*records, first])),
        "a-range-outside-the-target": change_tensor(lambda one: replace(one, start=len(TARGET) - one.size_bytes + 1)),
        "a-range-before-the-target": change_tensor(lambda one: replace(one, start=-1)),
        "a-tensor-without-rows": change_tensor(lambda one: replace(one, rows=0)),
        "an-origin-outside-the-base": change_tensor(lambda one: move_origin(one, start=len(BASE) - one.size_bytes + 1)),
        "an-origin-before-the-base": change_tensor(lambda one: move_origin(one, start=-1)),
        "an-origin-far-too-large": change_tensor(lambda one: move_origin(one, rows=1 << 40, columns=1 << 20)),
        "an-origin-of-fewer-than-no-rows": change_tensor(lambda one: move_origin(one, rows=-2, columns=-2)),
        "scales-outside-the-target": change_tensor(lambda one: replace(one, scales=Place(False, len(TARGET) - 3, 1))),
        "no-scales": change_tensor(lambda one: replace(one, scales=Place(False, 0, 0))),
        "a-mantissa-below-nothing": change_tensor(lambda one: replace(one, mantissa=-1)),
        "a-scale-out-of-sight": change_tensor(lambda one: replace(one, scale=1025)),
        "a-rank-too-high": change_tensor(lambda one: replace(one, rank=97)),
        "multipliers-too-fine": change_tensor(lambda one: replace(one, multiplied=1, multiplier_bits=41)),
        "a-third-way-to-multiply": change_tensor(lambda one: replace(one, multiplied=3)),
        "a-fourth-division": change_tensor(lambda one: replace(one, division=3)),
        "a-lattice-of-integers": change_tensor(lambda one: replace(one, lattice=1)),
        "a-threshold-that-is-no-number": change_tensor(lambda one: replace(one, threshold=0x7FA00000)),
        "a-threshold-below-zero": change_tensor(lambda one: replace(one, threshold=0xBF800000)),
        "peaks-without-a-divisor": change_tensor(lambda one: replace(one, peak=1)),
        "peaks-of-nothing": change_tensor(lambda one: replace(one, peak=1, divisor=1, origin=None)),
        "a-zero-point-too-large": change_tensor(lambda one: replace(one, zero=1 << 32)),
        "a-kind-of-another-width": change_tensor(lambda one: replace(one, kind=KINDS[0])),
        "a-scale-that-is-another": change_tensor(lambda one: replace(one, scale=one.scale + 8)),
    }


def bad_pieces() -> dict[str, bytes]:
    """Pieces, and what each method must look at before it believes."""
    good = in_pieces()
    hdiff = codecs.encode(codecs.HDIFF, BASE, TARGET)
    return {
        "something-behind-the-last-piece": good + b"\0",
        "a-piece-that-is-cut": good[:-1],
        "a-piece-too-many": in_pieces(Piece(codecs.RAW, 1, b"x")),
        "a-piece-too-few": wrap(BASE, TARGET, (Piece(codecs.RAW, 3, TARGET[:3]), Piece(codecs.RAW, 3, TARGET[3:6]))),
        "a-piece-from-behind-the-base": in_pieces(Piece(codecs.FROM, 0, b"", len(BASE), 1)),
        "a-piece-of-another-size": by_method(codecs.RAW, TARGET + b"\0"),
        "hdiffpatch-that-lies-about-its-target": by_method(
            codecs.HDIFF, codecs.encode(codecs.HDIFF, BASE, TARGET + b"\0")
        ),
        "hdiffpatch-that-lies-about-its-base": by_method(
            codecs.HDIFF, codecs.encode(codecs.HDIFF, BASE + b"\0", TARGET)
        ),
        "hdiffpatch-with-parts-too-large": by_method(
            codecs.HDIFF, b"HDIFF13&\0" + hdiff[14:18] + b"\xbf\xff\xff\x7f" * 9
        ),
        "hdiffpatch-by-another-compressor": by_method(codecs.HDIFF, hdiff.replace(b"&lzma2\0", b"&zlib\0")),
        "hdiffpatch-that-is-cut": by_method(codecs.HDIFF, hdiff[:-5]),
        "hdiffpatch-with-a-head-alone": by_method(codecs.HDIFF, hdiff[:16]),
        "lzma-that-is-a-bomb": by_method(codecs.LZMA, b"\0" + compress_lzma(bytes(1 << 23))),
        "lzma-with-an-unknown-dictionary": by_method(codecs.LZMA, b"\4" + compress_lzma(TARGET)),
        "lzma-with-something-behind-it": by_method(codecs.LZMA, b"\0" + compress_lzma(TARGET) + b"\0"),
        "bzip2-that-is-a-bomb": by_method(codecs.BZ2, bz2.compress(bytes(1 << 23))),
        "bzip2-twice": by_method(codecs.BZ2, bz2.compress(TARGET[:90]) + bz2.compress(TARGET[90:])),
        "zstd-whose-size-lies": by_method(codecs.ZSTD, compress(bytes(1 << 23))),
        "zstd-whose-size-is-not-stated": by_method(codecs.ZSTD, compress(TARGET, write_content_size=False)),
        "zstd-twice": by_method(codecs.ZSTD, compress(TARGET[:90]) + compress(TARGET[90:])),
        "zstd-whose-window-is-too-large": by_method(codecs.FROM, make_wide_frame()),
        "zstd-that-is-cut": by_method(codecs.ZSTD, compress(TARGET)[:-1]),
    }


def compress_lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}])


def compress(data: bytes, **settings: object) -> bytes:
    return zstandard.ZstdCompressor(**settings).compress(data)  # type: ignore[arg-type]


def make_wide_frame() -> bytes:
    """A raw block behind a header that asks for a window of 256 MiB (RFC 8878, 3.1.1.1)."""
    size = len(TARGET)
    head = b"\x28\xb5\x2f\xfd" + bytes([0x80, (28 - 10) << 3]) + size.to_bytes(4, "little")
    return head + (size << 3 | 1).to_bytes(3, "little") + TARGET


def bad_members() -> dict[str, bytes]:
    """Files of archives."""
    outer = wrap(BASE, TARGET, (Piece(codecs.RAW, 0, b""),))
    head = outer[:WAY_AT] + bytes([32 | 128 | codecs.RAW]) + outer[WAY_AT + 1 :]
    return {
        "no-members": head + b"\0" + TARGET,
        "a-member-of-an-unknown-way": head + b"\1\x30\0\1\0",
        "a-member-behind-the-target": head + b"\1\0" + b"\xff\xff\3" + b"\1\1x",
        "a-member-from-nothing": head + b"\1\0\0\1\0" + TARGET[1:],
        "a-member-whose-body-is-cut": head + b"\1\0\0\1\x09x",
        "a-member-in-a-member": head + b"\1\0\0\1\x04\x80\1\1\0",
        "a-member-from-behind-the-base": head + b"\1\x10\0\1\xff\xff\x03\1\0" + TARGET[1:],
    }


def make_bad() -> dict[str, bytes]:
    """Words -> patch."""
    found = bad_layouts() | bad_streams() | bad_maps() | bad_pieces() | bad_members()
    assert isinstance(PARTS, Container) and isinstance(PARTS.streams, Streams)
    return found


def main() -> None:
    """Writes all anew; what stood there is gone."""
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.iterdir():
        path.unlink()
    for words, (base, target, patch) in make_good().items():
        if base is not None:
            (FOLDER / f"good-{words}.base").write_bytes(base)
        (FOLDER / f"good-{words}.target").write_bytes(target)
        (FOLDER / f"good-{words}.efd").write_bytes(patch)
    (FOLDER / "bad.base").write_bytes(BASE)
    (FOLDER / "bad.target").write_bytes(TARGET)
    for words, patch in make_bad().items():
        (FOLDER / f"bad-{words}.efd").write_bytes(patch)


if __name__ == "__main__":
    main()
