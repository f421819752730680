"""Bytes in fewer bytes, with a base or without: zstd, LZMA and hdiffpatch, each bounded before it is called.

The native libraries stand here. What a file's tensors are is not known here; `container.py` says which codec is used.
Full downloads as `none` and `zstd` are written down in docs/formats/coded.md, the others in docs/formats/patch.md.

Rules:
- A decoder is told how many bytes come out; more or less is an error. It never allocates by what the input says.
- Whatever is wrong with the input is DeltaDamaged. Digests are the caller's to check.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import hdiffpatch
import zstandard

from edgeferry.delta.kinds import Buffer
from edgeferry.errors import DeltaDamaged

LEVELS, LEVELS_OF_LARGE, LARGE_BYTES = (3, 19, 22), (3, 12), 32 << 20
"""Levels that are tried. High ones win on floats, the low one on quantised weights, where chance matches spoil the
statistics of the literals. At 19 a megabyte takes about a second, so large files get less."""
MAX_WINDOW_LOG = 26
"""64 MiB: the largest window whose decoder stays under 96 MB (docs/formats/coded.md, bound on memory)."""
MEMORY_MAX_BYTES = 96_000_000
BLOCK_BYTES = 1 << 20
_MIB = 1 << 20
WORK_BYTES = 6 << 20  # block in, block out, the decoder's own tables

# --- methods: how a piece of the remainder, or a whole file, is said --------------------------------------------------
RAW, ZSTD, LZMA, HDIFF, HDIFF_LZMA, HDIFF_BZ2, FROM, BZ2 = range(8)
METHODS = {
    RAW: "as it is",
    ZSTD: "zstd",
    LZMA: "lzma",
    HDIFF: "hdiffpatch",
    HDIFF_LZMA: "hdiffpatch, lzma",
    HDIFF_BZ2: "hdiffpatch, bzip2",
    FROM: "zstd, base as dictionary",
    BZ2: "bzip2",
}
WITH_BASE = frozenset({HDIFF, HDIFF_LZMA, HDIFF_BZ2, FROM})
_LZMA_DICTIONARIES = (1 << 16, 1 << 20, 1 << 23, 1 << 25)
PROBE_BYTES = 1 << 19
LZMA_ALL_BYTES = 1 << 20
"""Below this, several settings of LZMA are tried."""
_HDIFF_MAGIC = b"HDIFF13&"
_HDIFF_HEAD_MAX = 128


def encode(method: int, base: bytes, target: bytes) -> bytes:
    """Says `target` in one method; `decode` of the result gives it again."""
    return dict(encode_each((method,), base, target))[method]


def encode_each(methods: Iterable[int], base: bytes, target: bytes) -> Iterator[tuple[int, bytes]]:
    """Says `target` in each method. hdiffpatch looks for what is alike only once."""
    plain = b""
    for method in methods:
        if method in (HDIFF, HDIFF_LZMA, HDIFF_BZ2):
            plain = plain or bytes(hdiffpatch.diff(base, target, hdiffpatch.COMPRESSION_NONE, validate=False))
            yield method, _pack_hdiff(method, plain)
        else:
            yield method, _ENCODERS[method](base, target)


def _pack_hdiff(method: int, plain: bytes) -> bytes:
    if method == HDIFF:
        return bytes(hdiffpatch.recompress(plain, hdiffpatch.Lzma2Config(level=9, window=23)))
    rest = plain[len(_HDIFF_MAGIC) + 1 :]
    return _compress_lzma(rest) if method == HDIFF_LZMA else bz2.compress(rest, 9)


def decode(method: int, base: Buffer, data: Buffer, size_bytes: int) -> bytes:
    """The `size_bytes` that `encode` was given.

    Raises:
        DeltaDamaged: unknown method, damaged input, or another size.
    """
    found = _decode(method, base, memoryview(data), size_bytes)
    if len(found) != size_bytes:
        raise DeltaDamaged(f"expected {size_bytes} bytes, found {len(found)}")
    return found


def _decode(method: int, base: Buffer, data: memoryview, size_bytes: int) -> bytes:
    if method == RAW:
        return bytes(data)
    if method == ZSTD:
        return b"".join(bytes(block) for block in decode_zstd(data, size_bytes))
    if method == LZMA:
        return _decompress_lzma(data, size_bytes)
    if method == BZ2:
        return _decompress_bz2(data, size_bytes)
    if method == FROM:
        return _decompress_from(base, data, size_bytes)
    if method == HDIFF:
        return _apply_hdiff(base, bytes(data), size_bytes)
    if method not in (HDIFF_LZMA, HDIFF_BZ2):
        raise DeltaDamaged(f"expected a method of {sorted(METHODS)}, found {method}")
    diff = _HDIFF_MAGIC + b"\0" + _decompress_plain(method, data, len(base), size_bytes)
    return _apply_hdiff(base, diff, size_bytes)


def _decompress_plain(method: int, data: memoryview, base_bytes: int, size_bytes: int) -> bytes:
    """An uncompressed patch of hdiffpatch, without its first bytes."""
    most = base_bytes + 2 * size_bytes + (1 << 16)
    return _decompress_lzma(data, most) if method == HDIFF_LZMA else _decompress_bz2(data, most)


def get_memory(method: int, base_bytes: int, data: Buffer, size_bytes: int) -> int:
    """Anonymous memory in bytes that `decode` takes, its result and a copy of the base included.

    Measured on pieces of 0.3 to 12.6 MB (`make bench-delta`), each a little more than what was taken.
    """
    view = memoryview(data)
    if method == RAW:
        return size_bytes + _MIB
    if method == ZSTD:
        return max(2 * size_bytes, size_bytes + _read_parameters(view).window_size) + 2 * _MIB
    if method == LZMA:
        return 2 * size_bytes + min(_read_dictionary(view), size_bytes) + 3 * _MIB
    if method == BZ2:
        return 2 * size_bytes + 5 * _MIB
    if method == FROM:
        return 2 * base_bytes + size_bytes + 3 * _MIB
    if method == HDIFF:
        return base_bytes + size_bytes + len(view) + max(size_bytes, 8 * _MIB) + 3 * _MIB
    plain = len(_decompress_plain(method, view, base_bytes, size_bytes))
    work = min(_read_dictionary(view), plain) if method == HDIFF_LZMA else 4 * _MIB
    return base_bytes + 2 * size_bytes + 2 * plain + work + 3 * _MIB


# --- LZMA: a byte for the dictionary's size, then a raw LZMA2 stream --------------------------------------------------
def _compress_lzma(data: bytes) -> bytes:
    settings = ((3, 0), (3, 2), (0, 0), (0, 2), (4, 0))
    tried = settings if len(data) < LZMA_ALL_BYTES else settings[:1]
    return min((_compress_lzma_with(data, lc, pb) for lc, pb in tried), key=len)


def _compress_lzma_with(data: bytes, lc: int, pb: int) -> bytes:
    number = next((at for at, size in enumerate(_LZMA_DICTIONARIES) if size >= len(data)), 3)
    filters = _make_filters(number) | {"lc": lc, "lp": 0, "pb": pb, "nice_len": 273, "mf": lzma.MF_BT4, "depth": 512}
    return bytes([number]) + lzma.compress(data, lzma.FORMAT_RAW, filters=[filters])


def _make_filters(number: int) -> dict[str, Any]:
    return {"id": lzma.FILTER_LZMA2, "dict_size": _LZMA_DICTIONARIES[number]}


def _read_dictionary(data: memoryview) -> int:
    if not len(data) or data[0] >= len(_LZMA_DICTIONARIES):
        raise DeltaDamaged("expected a size of LZMA's dictionary")
    return _LZMA_DICTIONARIES[data[0]]


def _decompress_lzma(data: memoryview, most_bytes: int) -> bytes:
    _read_dictionary(data)
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_make_filters(data[0])])
    try:
        found = decoder.decompress(data[1:], most_bytes + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise DeltaDamaged(f"the LZMA stream is damaged: {error}") from error
    # a raw stream's end is seen only by asking for more than there is
    if len(found) > most_bytes or decoder.unused_data or not decoder.eof:
        raise DeltaDamaged("expected an LZMA stream of the right length and nothing behind it")
    return found


def _decompress_bz2(data: memoryview, most_bytes: int) -> bytes:
    decoder = bz2.BZ2Decompressor()
    try:
        found = decoder.decompress(data, most_bytes + 1)
    except (OSError, ValueError, EOFError) as error:
        raise DeltaDamaged(f"the bzip2 stream is damaged: {error}") from error
    if len(found) > most_bytes or decoder.unused_data or not decoder.eof:
        raise DeltaDamaged("expected a bzip2 stream of the right length and nothing behind it")
    return found


# --- hdiffpatch -------------------------------------------------------------------------------------------------------
def _apply_hdiff(base: Buffer, diff: bytes, size_bytes: int) -> bytes:
    _check_hdiff(diff, base_bytes=len(base), size_bytes=size_bytes)
    try:
        return bytes(hdiffpatch.apply(bytes(base), diff))
    except (hdiffpatch.HDiffPatchError, MemoryError, ValueError, OverflowError) as error:
        raise DeltaDamaged(f"hdiffpatch refuses the patch: {error}") from error


def _check_hdiff(diff: bytes, *, base_bytes: int, size_bytes: int) -> None:
    """Its header names the sizes that it will allocate: they must be ours before it is called."""
    head = diff[:_HDIFF_HEAD_MAX]
    end = head.find(b"\0")
    if not head.startswith(_HDIFF_MAGIC) or head[len(_HDIFF_MAGIC) : max(end, 0)] not in (b"", b"lzma2"):
        raise DeltaDamaged("expected a patch of hdiffpatch")
    at, numbers = end + 1, []
    for _ in range(11):
        number, at = _read_hdiff_number(head, at)
        numbers.append(number)
    if numbers[:2] != [size_bytes, base_bytes]:
        raise DeltaDamaged(f"expected sizes {[size_bytes, base_bytes]} in hdiffpatch's header, found {numbers[:2]}")
    most = 2 * (size_bytes + base_bytes) + (1 << 16)
    if max(numbers[2:]) > most:
        raise DeltaDamaged(f"expected parts of at most {most} bytes in hdiffpatch's header, found {max(numbers[2:])}")


def _read_hdiff_number(head: bytes, at: int) -> tuple[int, int]:
    """Seven bits to a byte, the highest first."""
    number = 0
    for _ in range(9):
        if at >= len(head):
            break
        byte = head[at]
        number, at = number << 7 | byte & 0x7F, at + 1
        if byte < 0x80:
            return number, at
    raise DeltaDamaged("hdiffpatch's header is cut")


# --- zstd with the base as its dictionary -----------------------------------------------------------------------------
def _compress_from(base: bytes, target: bytes) -> bytes:
    level = 19 if len(target) < LARGE_BYTES else 12
    return min((_compress_from_at(base, target, level, long=long) for long in (True, False)), key=len)


def _compress_from_at(base: bytes, target: bytes, level: int, *, long: bool) -> bytes:
    total = len(base) + len(target)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=total,
        window_log=min(MAX_WINDOW_LOG + 1, max(10, total.bit_length())),
        enable_ldm=long,
        write_content_size=True,
        write_dict_id=False,
    )
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(target)


def _decompress_from(base: Buffer, data: memoryview, size_bytes: int) -> bytes:
    _check_frame(data, size_bytes)
    if get_window(data) > 1 << (MAX_WINDOW_LOG + 1):
        raise DeltaDamaged(f"expected a window of at most {1 << (MAX_WINDOW_LOG + 1)} bytes")
    dictionary = zstandard.ZstdCompressionDict(bytes(base), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    decoder = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << (MAX_WINDOW_LOG + 1))
    try:
        return decoder.decompress(data, max_output_size=size_bytes)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DeltaDamaged(f"the zstd frame is damaged: {error}") from error


def probe(base: bytes, target: bytes) -> int:
    """About how many bytes a plain differ needs, in little time."""
    return len(_compress_from_at(base, target, 3, long=True))


def probe_hdiff(base: bytes, target: bytes) -> int:
    """About how many bytes hdiffpatch needs, from a part in the middle of large files."""
    start = len(target) // 2
    end = start + PROBE_BYTES
    if end >= min(len(base), len(target)):
        return 0
    part = encode(HDIFF, base[start:end], target[start:end])
    return len(part) * len(target) // PROBE_BYTES


# --- zstd: one frame, its content size stated, its window bounded -----------------------------------------------------
def compress_zstd(view: Buffer) -> bytes:
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


def decode_zstd(view: memoryview, size_bytes: int) -> Iterator[bytes]:
    """Yields the frame's content in blocks of at most BLOCK_BYTES."""
    take = _open_frame(view, size_bytes)
    return (take(min(BLOCK_BYTES, size_bytes - done)) for done in range(0, size_bytes, BLOCK_BYTES))


def _open_frame(view: memoryview, size_bytes: int) -> Callable[[int], bytes]:
    """Returns `take(n)`: the next `n` bytes of the frame's content, fewer only where the frame is damaged."""
    _check_frame(view, size_bytes)
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


def _read_parameters(view: memoryview) -> zstandard.FrameParameters:
    try:
        return zstandard.get_frame_parameters(view[:18])
    except zstandard.ZstdError as error:
        raise DeltaDamaged("expected a zstd frame") from error


def get_window(view: memoryview) -> int:
    """Window of a frame in bytes; raises DeltaDamaged."""
    return _read_parameters(view).window_size


def _check_frame(view: memoryview, size_bytes: int) -> None:
    """One whole frame of that content and nothing behind it: RFC 8878 section 3.1.1.2, blocks with 3-byte headers."""
    parameters = _read_parameters(view)
    if parameters.content_size != size_bytes or parameters.dict_id:
        raise DeltaDamaged(f"expected a zstd frame of {size_bytes} bytes, found {parameters.content_size}")
    at, last = zstandard.frame_header_size(view[:18]), False
    while not last:
        head = int.from_bytes(view[at : at + 3], "little")
        last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        at += 3 + (1 if kind == 1 else length)
        if at > len(view) or kind == 3:
            raise DeltaDamaged("the zstd frame is cut or damaged")
    if at + 4 * parameters.has_checksum != len(view):
        raise DeltaDamaged("expected nothing behind the zstd frame")


_ENCODERS: dict[int, Callable[[bytes, bytes], bytes]] = {
    RAW: lambda _base, target: target,
    ZSTD: lambda _base, target: compress_zstd(target),
    LZMA: lambda _base, target: _compress_lzma(target),
    BZ2: lambda _base, target: bz2.compress(target, 9),
    FROM: _compress_from,
}
