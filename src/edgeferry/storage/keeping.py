"""What stays on a device's disk and what goes: decisions, without I/O.

What this file leaves to others: looking at the disk and removing (`repository.py`).

Rules:
- What is needed (active, previous, pinned, under way) never goes.
- What was active before stays while it fits: it is the likely base of the next patch, and going back to it costs no
  byte. What was active last stays longest; of several models the second-last of each goes before the last of any.
- What never was active, and content of no version, goes at once.
- A wanted download makes others give way only where that makes enough room; the low-water mark asks for all there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from edgeferry.model.digest import Digest

LOW_WATER_MAX_BYTES = 64 << 20
"""Free space that the default leaves to others on a large disk; on a small one a tenth of it."""


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """How much of the disk this device may take.

    `quota_bytes`: all our content, 0 for no limit. `low_water_bytes`: kept versions give way when less is free (None:
    a tenth of the disk, at most 64 MiB). `reserve_bytes`: what no download may take, for journal, metadata and others.
    """

    quota_bytes: int = 0
    low_water_bytes: int | None = None
    reserve_bytes: int = 4 << 20


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk at one moment, in bytes: what is ours, what is free, how large it is."""

    used_bytes: int
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """A version that lies here. `rank`: 0 was active last, 1 before that; None: never. `needed`: it must stay."""

    name: str
    digests: frozenset[Digest]
    rank: int | None
    needed: bool


@dataclass(frozen=True, slots=True)
class Leaving:
    """What goes: versions by name, in this order, then content."""

    versions: tuple[str, ...]
    blobs: frozenset[Digest]


def count_shortage(disk: Disk, limits: DiskLimits, wanted_bytes: int) -> int:
    """Bytes that must go before `wanted_bytes` more may be written; 0: there is room."""
    over = disk.used_bytes + wanted_bytes - limits.quota_bytes if limits.quota_bytes else 0
    return max(0, over, wanted_bytes + limits.reserve_bytes - disk.free_bytes)


def count_pressure(disk: Disk, limits: DiskLimits) -> int:
    """Bytes that should go even when nothing is wanted: over the quota, or below the low-water mark."""
    low_water = limits.low_water_bytes
    if low_water is None:
        low_water = min(disk.total_bytes // 10, LOW_WATER_MAX_BYTES)
    over = disk.used_bytes - limits.quota_bytes if limits.quota_bytes else 0
    return max(0, over, low_water - disk.free_bytes)


def plan_gc(
    held: Iterable[Held],
    sizes: Mapping[Digest, int],
    *,
    needed: AbstractSet[Digest],
    disk: Disk,
    limits: DiskLimits,
    wanted_bytes: int = 0,
    everything: bool = False,
) -> Leaving:
    """Decides what goes.

    Args:
        held: all versions here.
        sizes: all content here, in bytes.
        needed: content that must stay though no version refers to it yet.
        disk: as it is now.
        limits: how much of it may be taken.
        wanted_bytes: what is about to be written.
        everything: whether all goes that may, room or not.
    """
    versions = sorted(held, key=lambda one: one.name)
    stays = [one for one in versions if one.needed]
    useless = [one for one in versions if not one.needed and one.rank is None]
    spare = sorted((one for one in versions if not one.needed and one.rank is not None), key=_get_rank, reverse=True)
    freed = [_count_freed(sizes, needed, [*stays, *spare[count:]]) for count in range(len(spare) + 1)]
    pressure, shortage = count_pressure(disk, limits), count_shortage(disk, limits, wanted_bytes)
    count = _find_count(freed, pressure)
    if freed[-1] >= shortage:
        count = max(count, _find_count(freed, shortage))
    count = len(spare) if everything else count
    used = _list_used(needed, [*stays, *spare[count:]])
    return Leaving(tuple(one.name for one in (*useless, *spare[:count])), frozenset(sizes) - used)


def _get_rank(held: Held) -> int:
    return held.rank or 0


def _find_count(freed: Sequence[int], asked_bytes: int) -> int:
    """How many of the spare versions must go to free so much; all, where not even that is enough."""
    return next((count for count, size in enumerate(freed) if size >= asked_bytes), len(freed) - 1)


def _count_freed(sizes: Mapping[Digest, int], needed: AbstractSet[Digest], stays: Iterable[Held]) -> int:
    used = _list_used(needed, stays)
    return sum(size for digest, size in sizes.items() if digest not in used)


def _list_used(needed: AbstractSet[Digest], stays: Iterable[Held]) -> frozenset[Digest]:
    return frozenset(needed).union(*(one.digests for one in stays))
