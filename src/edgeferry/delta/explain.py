"""What a patch is made of: sections, tensors and what each is expected from, and what each costs.

Symbols of all tensors stand in one stream whose tables learn as they are read, so what a tensor costs is seen only by
decoding: with the base at hand the patch is applied once more, and whoever takes symbols and bits is watched. Files of
an archive are explained each like a patch of its own.

Rules:
- Nothing is read or decoded here that `apply.py` would not; the same checks hold, the same errors are raised. Who maps
  files and limits the process is `storage/patching.py` here too; a target that is given is filled where it lies.
- Bits are counted exactly. A symbol costs what its table says, a fraction of a bit; `CODING` is what the stream takes
  beyond that (the lanes' states). So the causes' bytes add up to the patch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeferry.delta import codecs
from edgeferry.delta.apply import fill_record, fill_remainder, open_member, open_source, read_map
from edgeferry.delta.bits import FieldReader
from edgeferry.delta.container import MAX_BYTES, Container, Header, Streams, read_container, read_nested
from edgeferry.delta.kinds import Buffer
from edgeferry.delta.members import Member, list_ranges
from edgeferry.delta.predict import Files
from edgeferry.delta.rans import I64, PROBABILITY_BITS, U8, U64, SymbolReader, Tables
from edgeferry.delta.records import AnyRecord, Copy, Record
from edgeferry.delta.tensor_codec import Source
from edgeferry.delta.tensors import find_tensors
from edgeferry.delta.zip_files import find_files, pack
from edgeferry.errors import DeltaDamaged
from edgeferry.model.digest import Digest

HEADER, MAP, SYMBOLS, BITS, MEMBER, REMAINDER = "header", "map", "symbols", "bits", "file", "remainder"
SAME = "same"
"""The cause of what is copied."""
CODING = "lanes"
"""The cause of bytes that no tensor has: first states of the coder's lanes."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a patch: its bytes, and how many bytes of the map or the target they stand for (0: of neither)."""

    name: str
    size_bytes: int
    method: str = ""
    stands_for_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A range of the target that the map names.

    Attributes:
        start, end: its bytes. kind, rows, columns: its numbers; a copy is bytes in one row.
        cause: what it is expected to be; `details` say more.
        origin: where from, "" for nowhere.
        name: the tensor's in the target; "" where the target is not known.
        patch_bytes: what its symbols and bits take; None: not known without the base.
    """

    start: int
    end: int
    kind: str
    rows: int
    columns: int
    cause: str
    details: tuple[str, ...]
    origin: str
    name: str = ""
    patch_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """Bytes of the target and of the patch that have one reason; `count` ranges of the target."""

    name: str
    count: int
    target_bytes: int
    patch_bytes: float | None


@dataclass(frozen=True, slots=True)
class Inside:
    """A file in the target, which is an archive.

    Attributes:
        start, end: its bytes as it lies there. level: of its packing; 0: none.
        size_bytes: unpacked. patch_bytes: of its own container.
        origin: the base's file. name: "" where the target is not known.
        explanation: of its own container; None: it is the base's file.
    """

    start: int
    end: int
    level: int
    size_bytes: int
    patch_bytes: int
    origin: str
    explanation: Explanation | None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A patch, taken apart. `base` and `target` are hex digits of the digests, as many as the patch holds."""

    has_base: bool
    base: str
    target: str
    target_bytes: int
    memory_bytes: int
    patch_bytes: int
    lanes: int
    sections: tuple[Section, ...]
    parts: tuple[Part, ...]
    members: tuple[Inside, ...]
    causes: tuple[Cause, ...]


def explain(patch: Buffer, base: Buffer | None = None, *, target: memoryview | None = None) -> Explanation:
    """Takes a patch apart; what its tensors cost is known with the `base`, or where none is needed.

    `target`: zeros of the target's size to fill where `needs_target` says so; None: made here.

    Raises:
        DeltaBaseMismatch: another base is needed.
        DeltaDamaged: the patch is damaged, or its target has another size.
    """
    container = read_container(patch, base_bytes=len(base or b""))
    header = container.header
    if base is not None and header.has_base:
        header.require_base(Digest.of(base))
    files = None
    if needs_target(header, has_base=base is not None):
        files = Files(memoryview(base or b""), memoryview(bytearray(header.target_bytes)) if target is None else target)
        if len(files.target) != header.target_bytes:
            raise DeltaDamaged(f"expected a patch for {len(files.target)} bytes, found {header.target_bytes}")
    found = _explain(container, len(patch), files)
    if files:
        header.require_target(Digest.of(files.target))
    return found


def needs_target(header: Header, *, has_base: bool) -> bool:
    """Whether a patch is applied while it is explained; `has_base`: the base is at hand."""
    return has_base or not header.has_base


def _explain(container: Container, size_bytes: int, files: Files | None) -> Explanation:
    """Takes a container apart; with `files` it fills the target too."""
    header, streams = container.header, container.streams
    records: tuple[AnyRecord, ...] = ()
    if streams:
        base_bytes = len(files.base) if files else MAX_BYTES
        records = read_map(streams, base_bytes=base_bytes, target_bytes=header.target_bytes)
    parts = tuple(map(_describe, records))
    members = tuple(_explain_member(member, files, memory_bytes=header.memory_bytes) for member in container.members)
    if files:
        parts = _add_costs(container, records, parts, files=files)
        members = _add_names(members, files.target) if members else ()
    sections = tuple(_list_sections(container, size_bytes, parts))
    own = (*_list_tensor_causes(parts), *_list_section_causes(sections, parts))
    inner = (cause for each in members for cause in _list_member_causes(each))
    return Explanation(
        has_base=header.has_base,
        base=header.base.hex(),
        target=header.target.hex(),
        target_bytes=header.target_bytes,
        memory_bytes=header.memory_bytes,
        patch_bytes=size_bytes,
        lanes=streams.lanes if streams else 0,
        sections=sections,
        parts=parts,
        members=members,
        causes=_merge((*own, *inner)),
    )


# --- files of an archive ----------------------------------------------------------------------------------------------
def _explain_member(member: Member, files: Files | None, *, memory_bytes: int) -> Inside:
    base, body, size_bytes = memoryview(b""), None, 0
    if files:
        base, body, size_bytes = open_member(member, files.base, memory_bytes=memory_bytes)
    elif len(member.body):
        body = read_nested(member.body, has_base=member.base is not None)
        size_bytes = body.header.target_bytes
    inner, plain = None, base
    if body:
        inside = None
        if files:
            lies = files.target[member.start : member.end]
            plain = memoryview(bytearray(size_bytes)) if member.level else lies
            inside = Files(base, plain)
        inner = _explain(body, len(member.body), inside)
    if files and (member.level or not body):
        pack(plain, member.level, files.target[member.start : member.end])
    origin = ""
    if member.base:
        packed = ", deflated" if member.base.is_deflated else ""
        origin, size_bytes = f"base {member.base.start}-{member.base.end}{packed}", size_bytes or member.base.size_bytes
    return Inside(member.start, member.end, member.level, size_bytes, len(member.body), origin, inner)


def _add_names(members: Iterable[Inside], target: memoryview) -> tuple[Inside, ...]:
    names = {each.start: each.name for each in find_files(target, max_bytes=MAX_BYTES)}
    return tuple(replace(each, name=names.get(each.start, "")) for each in members)


def _list_member_causes(member: Inside) -> Iterable[Cause]:
    if member.explanation is None:
        yield Cause(SAME, 1, member.end - member.start, 0.0)
    else:
        yield from member.explanation.causes


# --- sections ---------------------------------------------------------------------------------------------------------
def _list_sections(container: Container, size_bytes: int, parts: Iterable[Part]) -> Iterable[Section]:
    found = []
    if container.streams:
        found += _list_streams(container.streams)
    for member in container.members:
        method = f"deflated, level {member.level}" if member.level else "as it is"
        found.append(Section(MEMBER, len(member.body), method, member.packed_bytes))
    said_bytes = sum(end - start for start, end in list_ranges(container.members))
    left = container.header.target_bytes - said_bytes - sum(part.end - part.start for part in parts)
    for piece in container.pieces:
        stands_for = left if piece.size_bytes < 0 else piece.size_bytes
        found.append(Section(REMAINDER, len(piece.data), codecs.METHODS[piece.method], stands_for))
    return (Section(HEADER, size_bytes - sum(each.size_bytes for each in found)), *found)


def _list_streams(streams: Streams) -> list[Section]:
    return [
        Section(MAP, len(streams.map_data), codecs.METHODS[streams.map_method], streams.map_bytes),
        Section(SYMBOLS, len(streams.symbols), f"rANS, {streams.lanes} lanes"),
        Section(BITS, len(streams.bits), codecs.METHODS[codecs.RAW]),
    ]


# --- tensors ----------------------------------------------------------------------------------------------------------
def _describe(record: AnyRecord) -> Part:
    if isinstance(record, Copy):
        end = record.source + record.size_bytes
        origin = f"{_name_file(in_base=record.in_base)} {record.source}-{end}"
        return Part(record.start, record.end, "bytes", 1, record.size_bytes, SAME, (), origin, patch_bytes=0.0)
    return Part(
        record.start,
        record.end,
        record.kind.name,
        record.rows,
        record.columns,
        cause=_find_cause(record),
        details=tuple(_list_details(record)),
        origin=_describe_origin(record),
    )


def _name_file(*, in_base: bool) -> str:
    return "base" if in_base else "target"


def _describe_origin(record: Record) -> str:
    origin = record.origin
    if origin is None:
        return ""
    end = origin.start + origin.size_bytes
    return (
        f"{_name_file(in_base=origin.in_base)} {origin.start}-{end} {origin.kind.name} {origin.rows}x{origin.columns}"
    )


def _find_cause(record: Record) -> str:
    origin, kind = record.origin, record.kind
    if origin is None:
        return "new"
    if record.peak:
        return "scales"
    if record.threshold is not None:
        return "pruned"
    if origin.kind.is_float and not kind.is_float:
        return "quantised"
    if not origin.kind.is_float and kind.is_float:
        return "dequantised"
    if not kind.is_float and (record.scales or origin.scales):
        return "requantised"
    return "changed" if origin.kind == kind else "cast"


def _list_details(record: Record) -> Iterable[str]:
    if record.multiplied:
        yield f"multiplied by {'row' if record.multiplied == 1 else 'column'}"
    if record.rank:
        yield f"rank {record.rank}"
    if record.lattice:
        yield f"multiples of a step by {'row' if record.lattice == 1 else 'column'}"
    if record.row_scales:
        yield "errors by row"
    if record.column_scales:
        yield "errors by column"
    if record.kind.is_float and record.mantissa < record.kind.mantissa:
        yield f"mantissa of {record.mantissa} bits"


# --- costs ------------------------------------------------------------------------------------------------------------
class _WatchedSymbols:
    """Counts what each symbol costs by the tables that it is read with."""

    def __init__(self, reader: SymbolReader) -> None:
        self._reader, self.bits = reader, 0.0

    def take(self, contexts: I64, tables: Tables) -> U8:
        found = self._reader.take(contexts, tables)
        counts = tables.counts.take(contexts * tables.alphabet + found).astype(np.float64)
        self.bits += float((PROBABILITY_BITS - np.log2(counts)).sum())
        return found

    def require_end(self) -> None:
        self._reader.require_end()


class _WatchedBits:
    """Counts bits."""

    def __init__(self, reader: FieldReader) -> None:
        self._reader, self.bits = reader, 0

    def take(self, widths: I64) -> U64:
        self.bits += int(widths.sum())
        return self._reader.take(widths)

    def require_end(self) -> None:
        self._reader.require_end()


def _add_costs(
    container: Container, records: Sequence[AnyRecord], parts: Sequence[Part], *, files: Files
) -> tuple[Part, ...]:
    """Fills the target, and looks after each record at what it took."""
    fill_remainder(container, records, files)
    if container.streams is None:
        return tuple(parts)
    plain = open_source(container.streams)
    symbols, bits = _WatchedSymbols(plain.decoder), _WatchedBits(plain.bits)
    source, costs, before = Source(symbols, bits, plain.model), [], 0.0
    for record in records:
        fill_record(record, files, source)
        costs.append((symbols.bits + bits.bits - before) / 8)
        before = symbols.bits + bits.bits
    source.require_end()
    names = _find_names(files.target)
    return tuple(
        replace(part, patch_bytes=cost, name=names.get(part.start, "")) for part, cost in zip(parts, costs, strict=True)
    )


def _find_names(target: Buffer) -> Mapping[int, str]:
    return {tensor.start: tensor.name for tensor in find_tensors(target, min_elements=1)}


# --- causes -----------------------------------------------------------------------------------------------------------
def _list_tensor_causes(parts: Iterable[Part]) -> Iterable[Cause]:
    return (Cause(part.cause, 1, part.end - part.start, part.patch_bytes) for part in parts)


def _list_section_causes(sections: Iterable[Section], parts: Sequence[Part]) -> Iterable[Cause]:
    streams = 0
    for section in sections:
        if section.name in {REMAINDER, MAP, HEADER}:
            stands_for = section.stands_for_bytes * (section.name == REMAINDER)
            yield Cause(section.name, 1, stands_for, float(section.size_bytes))
        elif section.name in {SYMBOLS, BITS}:
            streams += section.size_bytes
    known = [part.patch_bytes for part in parts if part.patch_bytes is not None]
    if streams and len(known) == len(parts):
        yield Cause(CODING, 1, 0, streams - sum(known))


def _merge(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """One of each name, what costs most first."""
    groups: dict[str, list[Cause]] = {}
    for cause in causes:
        groups.setdefault(cause.name, []).append(cause)
    found = [_join(name, group) for name, group in groups.items()]
    return tuple(sorted(found, key=lambda each: (-(each.patch_bytes or 0), -each.target_bytes, each.name)))


def _join(name: str, causes: Sequence[Cause]) -> Cause:
    costs = [each.patch_bytes for each in causes if each.patch_bytes is not None]
    return Cause(
        name,
        sum(each.count for each in causes),
        sum(each.target_bytes for each in causes),
        sum(costs) if len(costs) == len(causes) else None,
    )
