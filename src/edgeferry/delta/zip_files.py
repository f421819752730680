"""Files in a ZIP archive: where they lie, what they unpack to, and at which level zlib packs them again.

Used where patches are made, but for `unpack` and `pack`, which `apply.py` calls with ranges that the patch names: a
device reads no ZIP directory. What a bundle may hold is `model/bundle.py`'s.

Rules:
- What is no archive, or a damaged one, has no files: never an error.
- Unpacking is bounded by the announced size before a byte is unpacked, and by what deflate can say at all.
- Packing is raw deflate as zlib does it: window 2^15, memory level 8, default strategy (RFC 1951; Python's zipfile,
  Java and many others write that). Other builds of zlib may give other bytes: the target's digest decides.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from edgeferry.delta.kinds import Buffer
from edgeferry.errors import DeltaDamaged

MAX_MEMBERS = 1024
LEVELS = (6, 9, 1, 5, 8, 7, 4, 3, 2)
"""Likely ones first."""
RATIO_MAX = 1032
"""Deflate says at most 258 bytes in two bits."""
BLOCK_BYTES = 1 << 18
_SIGNATURE, _LOCAL_HEADER = b"PK\x03\x04", struct.Struct("<4s5H3L2H")
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_DIRECTORY_ERRORS = (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, struct.error, IndexError)


class Packed(NamedTuple):
    """A file as it lies in an archive: `packed_bytes` from byte `start`, which are `size_bytes` unpacked."""

    start: int
    packed_bytes: int
    size_bytes: int
    is_deflated: bool
    name: str = ""

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.start + self.packed_bytes


def find_files(data: Buffer, *, max_bytes: int) -> tuple[Packed, ...]:
    """The stored and deflated files of an archive that unpack to at most `max_bytes` each, in the order they lie in.

    A model with an archive behind it (TensorFlow Lite's metadata) is none: an archive begins with a file.
    """
    view = memoryview(data)
    if bytes(view[: len(_SIGNATURE)]) != _SIGNATURE:
        return ()
    try:
        with zipfile.ZipFile(_ViewFile(view)) as archive:
            infos = archive.infolist()
    except _DIRECTORY_ERRORS:
        return ()
    found = [_locate(view, info) for info in infos if not info.flag_bits & _ENCRYPTED_FLAGS]
    usable = [each for each in found if each and each.end <= len(view) and each.size_bytes <= max_bytes]
    return _keep_disjoint(usable)[:MAX_MEMBERS]


class _ViewFile(io.RawIOBase):
    """A buffer as a file to read: a mapped archive is not copied for its directory."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        if at < 0:
            raise OSError("expected a place inside the archive")
        self._at = at
        return at

    def readinto(self, buffer: Any, /) -> int:
        out = memoryview(buffer)
        found = self._view[self._at : self._at + len(out)]
        out[: len(found)] = found
        self._at += len(found)
        return len(found)


def _locate(view: memoryview, info: zipfile.ZipInfo) -> Packed | None:
    if info.header_offset < 0:
        return None  # the directory says that it stands elsewhere than it does
    head = bytes(view[info.header_offset : info.header_offset + _LOCAL_HEADER.size])
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or not head.startswith(_SIGNATURE):
        return None
    if len(head) < _LOCAL_HEADER.size:
        return None
    *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(head)
    start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    found = Packed(start, info.compress_size, info.file_size, deflated, info.filename)
    return found if is_possible(found) else None


def is_possible(packed: Packed) -> bool:
    """Whether so many bytes can say so many: what is not, is a bomb or damage."""
    if not packed.is_deflated:
        return packed.packed_bytes == packed.size_bytes
    return packed.size_bytes <= RATIO_MAX * packed.packed_bytes


def _keep_disjoint(found: Iterable[Packed]) -> tuple[Packed, ...]:
    kept: list[Packed] = []
    for one in sorted(found):
        if one.packed_bytes and (not kept or one.start >= kept[-1].end):
            kept.append(one)
    return tuple(kept)


# --- unpacking and packing --------------------------------------------------------------------------------------------
def unpack(packed: Packed, archive: memoryview) -> memoryview:
    """The file's bytes: a part of `archive`, or a buffer of exactly its size; raises DeltaDamaged."""
    if packed.end > len(archive) or not is_possible(packed):
        raise DeltaDamaged("expected a file inside the base")
    view = archive[packed.start : packed.end]
    return _inflate(view, packed.size_bytes) if packed.is_deflated else view


def _inflate(view: memoryview, size_bytes: int) -> memoryview:
    found, at, given = memoryview(bytearray(size_bytes)), 0, 0
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data: Buffer = b""
    try:
        while not inflater.eof:
            if not data:
                data, given = view[given : given + BLOCK_BYTES], given + BLOCK_BYTES
            block = inflater.decompress(data, BLOCK_BYTES)
            if at + len(block) > size_bytes or not (data or block):  # what is left may come without more input
                break
            found[at : at + len(block)] = block
            at, data = at + len(block), inflater.unconsumed_tail
    except zlib.error as error:
        raise DeltaDamaged(f"a packed file is damaged: {error}") from error
    if not inflater.eof or at != size_bytes or inflater.unused_data or given < len(view):
        raise DeltaDamaged(f"expected a packed file of {size_bytes} bytes and nothing behind it")
    return found


def pack(data: memoryview, level: int, target: memoryview) -> None:
    """Fills `target` with `data` packed at `level` 1 to 9, or as it is at 0; other sizes raise DeltaDamaged."""
    if not level:
        if len(data) != len(target):
            raise DeltaDamaged(f"expected a file of {len(target)} bytes, found {len(data)}")
        for at in range(0, len(data), BLOCK_BYTES):
            target[at : at + BLOCK_BYTES] = bytes(data[at : at + BLOCK_BYTES])
        return
    at = 0
    for block in deflate(data, level):
        if at + len(block) > len(target):
            at = len(target) + 1
            break
        target[at : at + len(block)] = block
        at += len(block)
    if at != len(target):
        raise DeltaDamaged(f"expected {len(target)} bytes of a file packed at level {level}, found other ones")


def deflate(data: memoryview, level: int) -> Iterable[bytes]:
    """`data` packed, in blocks."""
    deflater = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY)
    for at in range(0, len(data), BLOCK_BYTES):
        yield deflater.compress(data[at : at + BLOCK_BYTES])
    yield deflater.flush()


def find_level(data: memoryview, packed: memoryview) -> int | None:
    """The level at which `data` packs to exactly `packed`; None: at none."""
    return next((level for level in LEVELS if _packs_to(data, packed, level)), None)


def _packs_to(data: memoryview, packed: memoryview, level: int) -> bool:
    at = 0
    for block in deflate(data, level):
        if packed[at : at + len(block)] != block:
            return False
        at += len(block)
    return at == len(packed)
