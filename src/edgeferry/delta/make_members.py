"""Finds what of a ZIP archive is patched file by file, and beside which file of the base.

How a file is then patched is told by the caller (`make.py`).

Rules:
- A file that zlib does not pack again to the same bytes stays in the remainder, as does one that gains nothing.
- A base that is no archive is one file; so is a target, when its base is an archive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from edgeferry.delta.apply import get_member_memory
from edgeferry.delta.codecs import MEMORY_MAX_BYTES
from edgeferry.delta.members import Member
from edgeferry.delta.zip_files import Packed, find_files, find_level, unpack
from edgeferry.errors import DeltaDamaged

MIN_BYTES = 128
"""Smaller files are said no shorter as files of their own."""
MEMBER_BYTES = 16
"""About what a member costs beside its body."""
MakeBody = Callable[[bytes | None, bytes, int], bytes | None]
"""Base file (None: there is none), file, and memory that is taken beside: the nested container, None if too large."""


def make_zip_members(base: bytes | None, target: bytes, *, max_bytes: int, make_body: MakeBody) -> tuple[Member, ...]:
    """The members of an archive that are worth it; none when neither file is an archive."""
    files = find_files(target, max_bytes=max_bytes)
    base_files = find_files(base or b"", max_bytes=max_bytes)
    if not files and not base_files:
        return ()
    files = files or _find_whole(target)
    base_files = base_files or _find_whole(base or b"")
    return tuple(_make_each(base or b"", target, files, base_files=base_files, make_body=make_body))


def _find_whole(data: bytes) -> tuple[Packed, ...]:
    return (Packed(0, len(data), len(data), is_deflated=False),) if data else ()


def _make_each(
    base: bytes, target: bytes, files: Sequence[Packed], *, base_files: Sequence[Packed], make_body: MakeBody
) -> Iterator[Member]:
    packed = {base[each.start : each.end]: each for each in base_files}
    for file in files:
        if file.packed_bytes < MIN_BYTES:
            continue
        same = packed.get(target[file.start : file.end])
        if same is not None:
            as_it_is = Packed(same.start, same.packed_bytes, same.packed_bytes, is_deflated=False)
            yield Member(file.start, file.packed_bytes, 0, as_it_is, b"")
            continue
        member = _make_member(base, target, file, base_files=base_files, make_body=make_body)
        if member and len(member.body) + MEMBER_BYTES < file.packed_bytes:
            yield member


def _make_member(
    base: bytes, target: bytes, file: Packed, *, base_files: Sequence[Packed], make_body: MakeBody
) -> Member | None:
    view = memoryview(target)
    try:
        plain = unpack(file, view)
    except DeltaDamaged:
        return None
    level = find_level(plain, view[file.start : file.end]) if file.is_deflated else 0
    if level is None:
        return None
    chosen, base_plain = _choose_base(base, file, base_files)
    if base_plain is not None and bytes(plain) == base_plain:
        member = Member(file.start, file.packed_bytes, level, chosen, b"")
        return member if get_member_memory(member) <= MEMORY_MAX_BYTES else None
    beside = len(plain) * bool(level) + (chosen.size_bytes if chosen and chosen.is_deflated else 0)
    body = make_body(base_plain, bytes(plain), beside)
    return None if body is None else Member(file.start, file.packed_bytes, level, chosen, body)


def _choose_base(base: bytes, file: Packed, base_files: Sequence[Packed]) -> tuple[Packed | None, bytes | None]:
    """The base's file of the same name, else of the same kind and the nearest size; a damaged one is none."""

    def rank(other: Packed) -> tuple[bool, bool, int]:
        return other.name != file.name, _get_suffix(other) != _get_suffix(file), abs(other.size_bytes - file.size_bytes)

    for chosen in sorted(base_files, key=rank)[:2]:
        try:
            return chosen, bytes(unpack(chosen, memoryview(base)))
        except DeltaDamaged:
            continue
    return None, None


def _get_suffix(packed: Packed) -> str:
    return packed.name.rpartition(".")[2].lower()
