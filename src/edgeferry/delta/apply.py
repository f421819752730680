"""Turns a base and a patch, or a coded full file alone, into the target. Buffers in, a buffer filled.

remainder -> copies and tensors in the map's order, or members, each unpacked, filled and packed again -> digest

Who maps files and limits the process is `storage/patching.py`; formats stand in docs/formats/patch.md and coded.md.

Rules:
- `target` is a writable buffer of exactly the target's size, all zeros; after an error its content is worth nothing.
- Both digests are checked here, as far as the patch carries them: the base's before, the target's after.
- Anonymous memory stays within what the header states; mapped buffers do not count.
- Whatever is wrong with the patch is DeltaDamaged, another base DeltaBaseMismatch.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgeferry.delta import codecs
from edgeferry.delta.bits import BitReader
from edgeferry.delta.container import MEMORY_UNIT, Container, Piece, Streams, read_container, read_header, read_nested
from edgeferry.delta.kinds import Buffer
from edgeferry.delta.members import Member, list_base_files, list_ranges
from edgeferry.delta.predict import Files
from edgeferry.delta.rans import Decoder
from edgeferry.delta.record_bytes import read_records
from edgeferry.delta.records import AnyRecord, Copy, Range, find_gaps, list_base_ranges
from edgeferry.delta.tensor_codec import Source, make_model, read_tensor
from edgeferry.delta.zip_files import RATIO_MAX, pack, unpack
from edgeferry.errors import DeltaDamaged
from edgeferry.model.digest import Digest

CODEC = "efd1"
"""The container as a manifest's source names it, for patches and for coded full files."""
CODECS = ("none", "zstd", CODEC)
"""How a full file may travel."""
COPY_BYTES = 1 << 20


def apply_patch(base: Buffer, patch: Buffer, target: memoryview) -> None:
    """Fills `target` with what `patch` makes of `base` (empty for a coded full file).

    Raises:
        DeltaBaseMismatch: another base is needed.
        DeltaDamaged: the patch is damaged, or its target has another size.
    """
    container = read_container(patch, base_bytes=len(base))
    header = container.header
    if header.target_bytes != len(target):
        raise DeltaDamaged(f"expected a patch for {len(target)} bytes, found {header.target_bytes}")
    files = Files(memoryview(base), target)
    if header.has_base:
        header.require_base(Digest.of(files.base))
    for member in container.members:
        _fill_member(member, files, memory_bytes=header.memory_bytes)
    _fill(container, files)
    header.require_target(Digest.of(target))


def _fill(container: Container, files: Files) -> None:
    """Fills all but members; nobody looks at digests here."""
    records: tuple[AnyRecord, ...] = ()
    if container.streams:
        records = read_map(container.streams, base_bytes=len(files.base), target_bytes=len(files.target))
    fill_remainder(container, records, files)
    if container.streams:
        source = open_source(container.streams)
        for record in records:
            fill_record(record, files, source)
        source.require_end()


def read_map(streams: Streams, *, base_bytes: int, target_bytes: int) -> tuple[AnyRecord, ...]:
    """The records of a patch; raises DeltaDamaged."""
    data = codecs.decode(streams.map_method, b"", streams.map_data, streams.map_bytes)
    return read_records(data, base_bytes=base_bytes, target_bytes=target_bytes)


# --- remainder --------------------------------------------------------------------------------------------------------
def fill_remainder(container: Container, records: Iterable[AnyRecord], files: Files) -> None:
    """Writes all bytes of the target that no record and no member stands for; raises DeltaDamaged."""
    records = tuple(records)
    said = [*((record.start, record.end) for record in records), *list_ranges(container.members)]
    used = [*list_base_ranges(records), *list_base_files(container.members)]
    gaps = find_gaps(said, len(files.target))
    rest = find_gaps(used, len(files.base)) if container.header.has_base else []
    left, base_bytes = _count(gaps), _count(rest)
    for piece in container.pieces:
        size_bytes = left if piece.size_bytes < 0 else piece.size_bytes
        if size_bytes > left:
            raise DeltaDamaged(f"expected at most {left} bytes in a piece, found {size_bytes}")
        # without a name: one piece is gone before the next is made
        gaps = _scatter(
            _decode_piece(piece, rest, files, base_bytes=base_bytes, size_bytes=size_bytes), gaps, files.target
        )
        left -= size_bytes
    if left:
        raise DeltaDamaged(f"expected pieces for {left} bytes more")


def _decode_piece(piece: Piece, rest: list[Range], files: Files, *, base_bytes: int, size_bytes: int) -> bytes:
    start, length = piece.base_start, base_bytes if piece.base_bytes < 0 else piece.base_bytes
    base = b""
    if piece.method in codecs.WITH_BASE:
        if start + length > base_bytes:
            raise DeltaDamaged("expected a piece's base inside the base")
        base = gather(files.base, cut_ranges(rest, start, start + length))
    return codecs.decode(piece.method, base, piece.data, size_bytes)


def _count(ranges: Iterable[Range]) -> int:
    return sum(end - start for start, end in ranges)


def gather(data: memoryview, ranges: Iterable[Range]) -> bytes:
    """The bytes of `ranges`, joined."""
    return b"".join(data[start:end] for start, end in ranges)


def cut_ranges(ranges: Iterable[Range], start: int, end: int) -> list[Range]:
    """The ranges that hold the bytes `start` to `end` of what `ranges` hold, joined."""
    found, at = [], 0
    for first, last in ranges:
        low, high = max(start - at, 0), min(end - at, last - first)
        if low < high:
            found.append((first + low, first + high))
        at += last - first
    return found


def _scatter(data: bytes, gaps: list[Range], target: memoryview) -> list[Range]:
    """Writes `data` into the first gaps; returns those that are left."""
    view, at = memoryview(data), 0
    for number, (start, end) in enumerate(gaps):
        length = min(end - start, len(view) - at)
        target[start : start + length] = view[at : at + length]
        at += length
        if length < end - start:
            return [(start + length, end), *gaps[number + 1 :]]
    return []


# --- copies and tensors -----------------------------------------------------------------------------------------------
def open_source(streams: Streams) -> Source:
    """The streams from their beginning; raises DeltaDamaged."""
    decoder = Decoder(memoryview(streams.symbols), streams.lanes)
    return Source(decoder, BitReader(memoryview(streams.bits)), make_model())


def fill_record(record: AnyRecord, files: Files, source: Source) -> None:
    """Copies or decodes one record; raises DeltaDamaged."""
    if isinstance(record, Copy):
        _copy(record, files)
    else:
        read_tensor(record, files, source)


def _copy(record: Copy, files: Files) -> None:
    data = files.get(in_base=record.in_base)
    for at in range(0, record.size_bytes, COPY_BYTES):
        length = min(COPY_BYTES, record.size_bytes - at)
        block = bytes(data[record.source + at : record.source + at + length])
        files.target[record.start + at : record.start + at + length] = block


# --- members ----------------------------------------------------------------------------------------------------------
def _fill_member(member: Member, files: Files, *, memory_bytes: int) -> None:
    base, body, size_bytes = open_member(member, files.base, memory_bytes=memory_bytes)
    target = files.target[member.start : member.end]
    if body is None:
        pack(base, member.level, target)
        return
    plain = memoryview(bytearray(size_bytes)) if member.level else target
    _fill(body, Files(base, plain))
    if member.level:
        pack(plain, member.level, target)


def open_member(member: Member, archive: memoryview, *, memory_bytes: int) -> tuple[memoryview, Container | None, int]:
    """The base's file, the body (None: the file is its base), and the file's size unpacked.

    Raises:
        DeltaDamaged: they do not fit each other, or take more memory than the patch states.
    """
    body = read_nested(member.body, has_base=member.base is not None) if len(member.body) else None
    size_bytes = body.header.target_bytes if body else member.base.size_bytes if member.base else 0
    if size_bytes > RATIO_MAX * member.packed_bytes if member.level else size_bytes != member.packed_bytes:
        raise DeltaDamaged(f"expected a file that fits {member.packed_bytes} bytes, found one of {size_bytes}")
    unpacked_bytes = member.base_unpacked_bytes + size_bytes * bool(member.level and body)
    if unpacked_bytes + (body.header.memory_bytes if body else 0) > memory_bytes:
        raise DeltaDamaged(f"expected a member within the {memory_bytes} bytes of memory that the patch states")
    return unpack(member.base, archive) if member.base else memoryview(b""), body, size_bytes


def get_member_memory(member: Member) -> int:
    """Anonymous memory in bytes that filling a member takes."""
    if not len(member.body):
        return member.base_unpacked_bytes + MEMORY_UNIT
    header = read_nested(member.body, has_base=member.base is not None).header
    return member.base_unpacked_bytes + header.target_bytes * bool(member.level) + header.memory_bytes + MEMORY_UNIT


# --- full files, whatever their codec ---------------------------------------------------------------------------------
def decode_full(data: Buffer, codec: str, target: memoryview) -> None:
    """Fills `target` with the file that `data` stands for; raises DeltaDamaged, also for an unknown codec."""
    view = memoryview(data)
    if codec == CODEC:
        apply_patch(b"", view, target)
    elif codec == "zstd":
        at = 0
        for block in codecs.decode_zstd(view, len(target)):
            target[at : at + len(block)] = block
            at += len(block)
    elif codec == "none":
        if len(view) != len(target):
            raise DeltaDamaged(f"expected {len(target)} bytes, found {len(view)}")
        target[:] = view
    else:
        raise DeltaDamaged(f"expected a codec of {', '.join(CODECS)}, found {codec!r:.40}")


def get_memory(data: Buffer, codec: str) -> int:
    """Anonymous memory in bytes that decoding a full file or applying a patch takes; raises DeltaDamaged."""
    if codec == CODEC:
        return read_header(data).memory_bytes
    if codec == "zstd":
        return codecs.get_window(memoryview(data)) + codecs.WORK_BYTES
    if codec == "none":
        return codecs.WORK_BYTES
    raise DeltaDamaged(f"expected a codec of {', '.join(CODECS)}, found {codec!r:.40}")
