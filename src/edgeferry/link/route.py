"""The cheapest route from what a device has to a file it needs: nothing, or one source to download.

Fetching and decoding are the agent's; what bytes cost is `forecast`'s.

Rules:
- Cheapest means fewest payload bytes; among equals the one that needs the least memory to decode.
- Sources of a kind or codec that this release cannot decode are passed over, never an error while another is left.
- A route is a list of steps, so that chains of patches fit in without a new shape.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from edgeferry.errors import ManifestInvalid
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import FileEntry, Source

FULL_CODECS: AbstractSet[str] = frozenset({"none", "zstd", "planes-zstd"})


@dataclass(frozen=True, slots=True)
class Step:
    """Download `source.blob`, and turn it (with `base`, for a patch) into the file of digest `target`."""

    source: Source
    target: Digest
    base: Digest | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Steps in order; none when the file is here already."""

    steps: tuple[Step, ...] = ()

    @property
    def download_bytes(self) -> int:
        """Payload bytes of all steps."""
        return sum(step.source.size for step in self.steps)


def pick_route(
    entry: FileEntry,
    have: AbstractSet[Digest],
    *,
    full_codecs: AbstractSet[str] = FULL_CODECS,
    patch_codecs: AbstractSet[str] = frozenset(),
) -> Route:
    """The cheapest route to `entry`.

    Args:
        entry: the file as the manifest describes it.
        have: digests of the files on this device.
        full_codecs: how full downloads may be coded.
        patch_codecs: patch codecs that can be applied here; none: full downloads only.

    Raises:
        ManifestInvalid: no source of this file can be used here.
    """
    target = Digest.from_str(entry.sha256)
    if target in have:
        return Route()
    steps = [
        _make_step(source, target)
        for source in entry.sources
        if source.codec in _get_codecs(source, full_codecs, patch_codecs)
    ]
    usable = [step for step in steps if step.base is None or step.base in have]
    if not usable:
        raise ManifestInvalid(f"expected a source of {entry.path!r:.80} that this release can decode, found none")
    return Route((min(usable, key=lambda step: (step.source.size, step.source.memory)),))


def _get_codecs(source: Source, full: AbstractSet[str], patch: AbstractSet[str]) -> AbstractSet[str]:
    return patch if source.kind == "patch" else full


def _make_step(source: Source, target: Digest) -> Step:
    return Step(source, target, Digest.from_str(source.base) if source.kind == "patch" else None)
