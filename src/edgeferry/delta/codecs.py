"""How a full file travels: as it is, as one zstd frame, or as byte planes of its float tensors in one zstd frame.

This file leaves patches to `apply.py`, finding tensors to `tensors.py`, processes and paths to `storage/patching.py`.
The format is written down in docs/formats/coded.md.

Rules:
- Decoding needs no model parser: a coded file carries its own map of ranges.
- Decoding holds at most the memory that `get_decode_memory` states (a source's `memory`), whatever the input says; the
  output comes in blocks of at most BLOCK_BYTES, so that no whole file is held.
- Whatever is wrong with the input is DeltaDamaged. The target's digest is the caller's to check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
import zstandard

from edgeferry.delta.tensors import MAX_RANGES, Buffer, FloatRange, find_float_ranges
from edgeferry.errors import DeltaDamaged

Codec = Literal["none", "zstd", "planes-zstd"]
CODECS: tuple[Codec, ...] = get_args(Codec)

LEVELS, LEVELS_OF_LARGE, LARGE_BYTES = (3, 19, 22), (3, 12), 32 << 20
"""Levels that are tried. High ones win on floats, the low one on quantised weights, where chance matches spoil the
statistics of the literals. At 19 a megabyte takes about a second, so large files get less."""
MAX_WINDOW_LOG = 26
"""64 MiB: the largest window whose decoder stays under 96 MB (docs/formats/coded.md, bound on memory)."""
MEMORY_MAX_BYTES = 96_000_000
BLOCK_BYTES = 1 << 20
BLOCK_COUNT = 1 << 18
"""Floats per block of planes: with 8 bytes each a block and its transposed copy are 4 MiB."""
MAGIC = b"EFP1"
_WIDTHS = (2, 4, 8)
_WORK_BYTES = 6 << 20  # block in, block out, the decoder's own tables


@dataclass(frozen=True, slots=True)
class Coded:
    """A coded file, and the anonymous memory in bytes that decoding it takes."""

    codec: Codec
    data: bytes
    memory_bytes: int


def encode_full(data: Buffer, codec: Codec) -> Coded:
    """Codes a whole file; `decode_full` of the result gives `data` again."""
    view = memoryview(data)
    if codec == "none":
        return Coded(codec, bytes(view), get_decode_memory(codec, view))
    if codec == "zstd":
        coded = _compress(view)
        return Coded(codec, coded, get_decode_memory(codec, coded))
    ranges = find_float_ranges(view)
    head = _make_head(ranges)
    coded = head + _compress(b"".join(_split_planes(view, ranges)))
    return Coded(codec, coded, get_decode_memory(codec, coded))


def encode_all(data: Buffer) -> tuple[Coded, ...]:
    """The file in every codec; without byte planes where it has no float tensors."""
    codecs = CODECS if find_float_ranges(data) else tuple(codec for codec in CODECS if codec != "planes-zstd")
    return tuple(encode_full(data, codec) for codec in codecs)


def find_smallest(candidates: tuple[Coded, ...]) -> Coded:
    """The shortest; on a tie the simplest."""
    return min(candidates, key=lambda coded: len(coded.data))


def encode_smallest(data: Buffer) -> Coded:
    """The file in the codec that makes it shortest."""
    return find_smallest(encode_all(data))


def decode_full(data: Buffer, codec: str, size_bytes: int) -> bytes:
    """Decodes a whole file into memory; for files that may be large use `decode_blocks`.

    Raises:
        DeltaDamaged: the input is not what `encode_full` writes, or does not give exactly `size_bytes`.
    """
    return b"".join(bytes(block) for block in decode_blocks(data, codec, size_bytes))


def decode_blocks(
    data: Buffer, codec: str, size_bytes: int, *, memory_bytes: int = MEMORY_MAX_BYTES
) -> Iterator[bytes | memoryview]:
    """Yields the decoded file in order, in blocks of at most BLOCK_BYTES or one block of planes.

    Args:
        data: the coded file; may be a view of a memory map.
        codec: as in the manifest's source.
        size_bytes: size of the decoded file; more or less is an error.
        memory_bytes: what decoding may take; never more than MEMORY_MAX_BYTES.

    Raises:
        DeltaDamaged: unknown codec, damaged input, another size, or more memory needed than allowed.
    """
    view = memoryview(data)
    needed = get_decode_memory(codec, view)
    if needed > min(memory_bytes, MEMORY_MAX_BYTES):
        raise DeltaDamaged(
            f"decoding needs {needed} bytes of memory, {min(memory_bytes, MEMORY_MAX_BYTES)} are allowed"
        )
    if codec == "none":
        if len(view) != size_bytes:
            raise DeltaDamaged(f"expected {size_bytes} bytes, found {len(view)}")
        return _cut(view)
    if codec == "zstd":
        return _copy_blocks(_open_frame(view, size_bytes), size_bytes)
    ranges, head_bytes = _read_head(view, size_bytes)
    return _join_planes(_open_frame(view[head_bytes:], size_bytes), ranges, size_bytes)


def get_decode_memory(codec: str, coded: Buffer) -> int:
    """Anonymous memory in bytes that decoding `coded` takes; raises DeltaDamaged."""
    view = memoryview(coded)
    if codec == "none":
        return _WORK_BYTES
    if codec == "zstd":
        return _read_parameters(view).window_size + _WORK_BYTES
    if codec == "planes-zstd":
        return _read_parameters(view[_read_head(view, None)[1] :]).window_size + _WORK_BYTES
    raise DeltaDamaged(f"expected a codec of {', '.join(CODECS)}, found {codec!r:.40}")


# --- zstd: one frame, its content size stated, its window bounded -----------------------------------------------------
def _compress(view: Buffer) -> bytes:
    """The shortest of several frames."""
    levels = LEVELS if len(view) < LARGE_BYTES else LEVELS_OF_LARGE
    return min((_compress_at(view, level) for level in levels), key=len)


def _compress_at(view: Buffer, level: int) -> bytes:
    """At one level; with long matches in all but level 19, where they help some files and cost others a little."""
    long: dict[str, Any] = {} if level == 19 else {"enable_ldm": True, "window_log": _get_window_log(len(view))}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(view), write_content_size=True, **long
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(view)


def _get_window_log(size_bytes: int) -> int:
    return max(10, min(MAX_WINDOW_LOG, size_bytes.bit_length()))


def _read_parameters(view: memoryview) -> zstandard.FrameParameters:
    try:
        return zstandard.get_frame_parameters(view[:18])
    except zstandard.ZstdError as error:
        raise DeltaDamaged("expected a zstd frame") from error


def _open_frame(view: memoryview, size_bytes: int) -> Callable[[int], bytes]:
    """Returns `take(n)`: the next `n` bytes of the frame's content, fewer only where the frame is damaged."""
    parameters = _read_parameters(view)
    if parameters.content_size != size_bytes or parameters.dict_id:
        raise DeltaDamaged(f"expected a zstd frame of {size_bytes} bytes, found {parameters.content_size}")
    _check_frame_length(view, parameters.has_checksum)
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << MAX_WINDOW_LOG)
    reader = decoder.stream_reader(view, read_size=1 << 17)

    def take(count: int) -> bytes:
        try:
            block = reader.read(count)
        except zstandard.ZstdError as error:
            raise DeltaDamaged(f"the zstd frame is damaged: {error}") from error
        if len(block) != count:
            raise DeltaDamaged("the zstd frame ends early")
        return block

    return take


def _check_frame_length(view: memoryview, has_checksum: bool) -> None:
    """One whole frame and nothing behind it: RFC 8878 section 3.1.1.2, blocks with 3-byte headers."""
    at, last = zstandard.frame_header_size(view[:18]), False
    while not last:
        head = int.from_bytes(view[at : at + 3], "little")
        last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        at += 3 + (1 if kind == 1 else length)
        if at > len(view) or kind == 3:
            raise DeltaDamaged("the zstd frame is cut or damaged")
    if at + 4 * has_checksum != len(view):
        raise DeltaDamaged("expected nothing behind the zstd frame")


# --- byte planes ------------------------------------------------------------------------------------------------------
def _split_planes(view: memoryview, ranges: tuple[FloatRange, ...]) -> Iterator[bytes]:
    at = 0
    for one in ranges:
        yield bytes(view[at : one.start])
        at = one.start
        for count in _cut_counts(one.elements):
            block = np.frombuffer(view[at : at + count * one.width], np.uint8).reshape(count, one.width)
            yield block.T.tobytes()
            at += count * one.width
    yield bytes(view[at:])


def _join_planes(
    take: Callable[[int], bytes], ranges: tuple[FloatRange, ...], size_bytes: int
) -> Iterator[bytes | memoryview]:
    at = 0
    for one in ranges:
        yield from _copy_blocks(take, one.start - at)
        for count in _cut_counts(one.elements):
            planes = np.frombuffer(take(count * one.width), np.uint8).reshape(one.width, count)
            yield planes.T.tobytes()
        at = one.end
    yield from _copy_blocks(take, size_bytes - at)


def _cut_counts(count: int) -> Iterator[int]:
    return (min(BLOCK_COUNT, count - done) for done in range(0, count, BLOCK_COUNT))


def _copy_blocks(take: Callable[[int], bytes], count: int) -> Iterator[bytes | memoryview]:
    return (take(min(BLOCK_BYTES, count - done)) for done in range(0, count, BLOCK_BYTES))


def _cut(view: memoryview) -> Iterator[bytes | memoryview]:
    return (view[at : at + BLOCK_BYTES] for at in range(0, len(view), BLOCK_BYTES))


# --- the map of ranges: magic, count, then per range gap, count and width as LEB128 numbers ---------------------------
def _make_head(ranges: tuple[FloatRange, ...]) -> bytes:
    ends = (0, *(one.end for one in ranges))
    numbers = ((one.start - end, one.elements, one.width) for one, end in zip(ranges, ends, strict=False))
    return MAGIC + b"".join(_make_varint(number) for number in chain((len(ranges),), *numbers))


def _make_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_head(view: memoryview, size_bytes: int | None) -> tuple[tuple[FloatRange, ...], int]:
    """The ranges and the length of the map in bytes; checked against `size_bytes` where it is known."""
    if view[:4] != MAGIC:
        raise DeltaDamaged("expected byte planes to begin with EFP1")
    count, at = _read_varint(view, 4)
    if count > MAX_RANGES:
        raise DeltaDamaged(f"expected at most {MAX_RANGES} ranges, found {count}")
    ranges: list[FloatRange] = []
    end = 0
    for _ in range(count):
        gap, at = _read_varint(view, at)
        floats, at = _read_varint(view, at)
        width, at = _read_varint(view, at)
        if width not in _WIDTHS or not floats:
            raise DeltaDamaged(f"expected floats of 2, 4 or 8 bytes, found {floats} of {width}")
        ranges.append(FloatRange(end + gap, floats, width))
        end = ranges[-1].end
    if size_bytes is not None and end > size_bytes:
        raise DeltaDamaged(f"the ranges end at {end}, behind the file of {size_bytes} bytes")
    return tuple(ranges), at


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 49, 7):
        if at >= len(view):
            break
        byte = view[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
    raise DeltaDamaged("the map of ranges is cut or holds a number over 49 bits")
