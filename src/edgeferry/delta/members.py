"""Members: parts of a target that are patched as files of their own, packed as they lie in a ZIP archive.

The map of members, both ways. What a member's body holds is `container.py`'s, what packing is `zip_files.py`'s;
docs/formats/patch-zip.md is the norm.

Rules:
- Members stand in the target's order and never overlap; what they leave over is the remainder.
- A member holds no members.
- Sizes are checked before anything is allocated by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeferry.delta.kinds import Buffer
from edgeferry.delta.records import Range
from edgeferry.delta.varint import make_varint, read_varint
from edgeferry.delta.zip_files import MAX_MEMBERS, Packed
from edgeferry.errors import DeltaDamaged

LEVEL_MAX = 9
_NO_BASE, _STORED_BASE, _DEFLATED_BASE = range(3)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the target: `packed_bytes` from byte `start`.

    Attributes:
        level: at which zlib packs it; 0: it lies as it is.
        base: the file of the base that it is made from; None: from nothing.
        body: a nested container; empty: the file is its base.
    """

    start: int
    packed_bytes: int
    level: int
    base: Packed | None
    body: Buffer

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.start + self.packed_bytes

    @property
    def base_unpacked_bytes(self) -> int:
        """Anonymous memory that the base's file takes."""
        return self.base.size_bytes if self.base and self.base.is_deflated else 0


def list_ranges(members: Sequence[Member]) -> list[Range]:
    """What of the target members stand for."""
    return [(each.start, each.end) for each in members]


def list_base_files(members: Sequence[Member]) -> list[Range]:
    """What of the base members are made from: it is no help for the remainder."""
    return [(each.base.start, each.base.end) for each in members if each.base]


def make_members(members: Sequence[Member]) -> bytes:
    """The map's bytes, and the bodies behind it."""
    out, end = [make_varint(len(members))], 0
    for member in members:
        way = _NO_BASE if member.base is None else _DEFLATED_BASE if member.base.is_deflated else _STORED_BASE
        out.append(bytes([member.level | way << 4]))
        out += map(make_varint, (member.start - end, member.packed_bytes))
        if member.base:
            out += map(make_varint, (member.base.start, member.base.packed_bytes))
        if member.base and member.base.is_deflated:
            out.append(make_varint(member.base.size_bytes))
        out.append(make_varint(len(member.body)))
        end = member.end
    return b"".join([*out, *(bytes(member.body) for member in members)])


def read_members(view: memoryview, at: int, *, has_base: bool, target_bytes: int) -> tuple[tuple[Member, ...], int]:
    """The members, and where what follows them begins; raises DeltaDamaged."""
    count, at = read_varint(view, at)
    if not 0 < count <= MAX_MEMBERS:
        raise DeltaDamaged(f"expected up to {MAX_MEMBERS} members, found {count}")
    heads: list[tuple[int, int, int, Packed | None, int]] = []
    end = 0
    for _ in range(count):
        way, at = _read_way(view, at, has_base=has_base)
        gap, at = read_varint(view, at)
        packed_bytes, at = read_varint(view, at)
        base, at = _read_base(view, at, way >> 4)
        length, at = read_varint(view, at)
        start, end = end + gap, end + gap + packed_bytes
        if end > target_bytes or not (length or base):
            raise DeltaDamaged("expected members inside the target that are made from something")
        heads.append((start, packed_bytes, way & 15, base, length))
    found = []
    for start, packed_bytes, level, base, length in heads:
        if at + length > len(view):
            raise DeltaDamaged("the patch is cut")
        found.append(Member(start, packed_bytes, level, base, view[at : at + length]))
        at += length
    return tuple(found), at


def _read_way(view: memoryview, at: int, *, has_base: bool) -> tuple[int, int]:
    way = view[at] if at < len(view) else 255
    if way & 15 > LEVEL_MAX or way >> 4 > _DEFLATED_BASE or (way >> 4 and not has_base):
        raise DeltaDamaged(f"expected a member's way, found {way}")
    return way, at + 1


def _read_base(view: memoryview, at: int, way: int) -> tuple[Packed | None, int]:
    if way == _NO_BASE:
        return None, at
    start, at = read_varint(view, at)
    packed_bytes, at = read_varint(view, at)
    size_bytes = packed_bytes
    if way == _DEFLATED_BASE:
        size_bytes, at = read_varint(view, at)
    return Packed(start, packed_bytes, size_bytes, way == _DEFLATED_BASE), at
