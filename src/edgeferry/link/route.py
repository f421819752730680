"""The cheapest route from what a device has to a file it needs: nothing, a patch, patch over patch, or the full file.

Routes of all files together are what a version takes: `plan_steps`, the same for the device that fetches them and the
operator who foresees it. Fetching and decoding are the agent's; what bytes cost is `forecast`'s.

Rules:
- Cheapest means fewest payload bytes; among equals the one that needs the least memory, then the fewest steps.
- A file's manifest entry lists the ways to come by this file alone. What leads over a file of another version is known
  only from that version's entry.
- Sources of a kind or codec that this release cannot decode are passed over, never an error while another is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count

from edgeferry.errors import ManifestInvalid
from edgeferry.model.chunks import CHUNK_BYTES, get_list_size
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import FULL_CODECS, PATCH_CODECS, FileEntry, Golden, Manifest, Source


@dataclass(frozen=True, slots=True)
class Step:
    """Download `source.blob`, and turn it (with `base`, for a patch) into the file `target` of `size` bytes."""

    source: Source
    target: Digest
    size: int
    base: Digest | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Steps in order, each on what the one before made; none when the file is here already."""

    steps: tuple[Step, ...] = ()

    @property
    def cost(self) -> tuple[int, int, int]:
        """What is compared: payload bytes of all steps, memory of the step that takes most, steps."""
        sources = [step.source for step in self.steps]
        return sum(one.size for one in sources), max((one.memory for one in sources), default=0), len(sources)

    @property
    def download_bytes(self) -> int:
        """Payload bytes of all steps."""
        return self.cost[0]


def plan_steps(
    manifest: Manifest,
    have: AbstractSet[Digest],
    *,
    others: Iterable[Manifest] = (),
    whole: bool = False,
    damaged: AbstractSet[Digest] = frozenset(),
) -> tuple[Step, ...]:
    """The downloads that make `manifest` complete, each once: its files, then golden inputs that are new.

    Args:
        manifest: of the version that shall run.
        have: digests of what the device has.
        others: manifests of other versions of the model, over whose files a chain of patches may lead.
        whole: full downloads only.
        damaged: digests of files that are here with some bytes wrong: what is listed of these need not come whole.

    Raises:
        ManifestInvalid: a file has no source that this release can decode.
    """
    also = [entry for other in others for entry in other.files]
    codecs: AbstractSet[str] = frozenset() if whole else PATCH_CODECS
    found: dict[Digest, Step] = {}
    for entry in manifest.files:
        route = pick_route(entry, have, also=also, patch_codecs=codecs)
        for step in (_find_repair(entry, damaged, route) or route).steps:
            found.setdefault(step.target, step)
    for golden in manifest.golden:
        step = _make_golden_step(golden)
        if step.target not in have:
            found.setdefault(step.target, step)
    return tuple(found.values())


def find_listed(entry: FileEntry) -> Source | None:
    """The source that is the very file, with a list of its pieces; None where there is none."""
    return next((one for one in entry.sources if one.blob == entry.sha256 and one.chunks), None)


def _find_repair(entry: FileEntry, damaged: AbstractSet[Digest], route: Route) -> Route | None:
    """The file's damaged pieces in place of a `route` that takes more than one piece and the list of all."""
    source, target = find_listed(entry), Digest.from_str(entry.sha256)
    if source is None or target not in damaged or route.download_bytes <= CHUNK_BYTES + get_list_size(entry.size):
        return None
    return Route((Step(source, target, entry.size),))


def _make_golden_step(golden: Golden) -> Step:
    source = Source(kind="full", codec="none", blob=golden.input, size=golden.size)
    return Step(source, Digest.from_str(golden.input), golden.size)


def list_digests(manifest: Manifest) -> frozenset[Digest]:
    """Every content that a device with this version has."""
    names = (*(entry.sha256 for entry in manifest.files), *(golden.input for golden in manifest.golden))
    return frozenset(map(Digest.from_str, names))


def pick_route(
    entry: FileEntry,
    have: AbstractSet[Digest],
    *,
    also: Iterable[FileEntry] = (),
    full_codecs: AbstractSet[str] = FULL_CODECS,
    patch_codecs: AbstractSet[str] = PATCH_CODECS,
) -> Route:
    """The cheapest route to `entry` (Dijkstra's algorithm over digests).

    Args:
        entry: the file as the manifest describes it.
        have: digests of the files on this device.
        also: entries of other versions, over whose files a route may lead.
        full_codecs: how full downloads may be coded.
        patch_codecs: patch codecs that can be applied here; none: full downloads only.

    Raises:
        ManifestInvalid: no source of this file can be used here.
    """
    goal = Digest.from_str(entry.sha256)
    if goal in have:
        return Route()
    steps = [step for each in (entry, *also) for step in _list_steps(each, full_codecs, patch_codecs)]
    route = _find_cheapest(steps, have, goal)
    if route is None:
        raise ManifestInvalid(f"expected a source of {entry.path!r:.80} that this release can decode, found none")
    return route


def _find_cheapest(steps: Sequence[Step], have: AbstractSet[Digest], goal: Digest) -> Route | None:
    places = count()  # among equals the first: routes themselves have no order
    begun = [Route((step,)) for step in steps if step.base is None or step.base in have]
    waiting = [(route.cost, next(places), route) for route in begun]
    heapify(waiting)
    reached: set[Digest] = set(have)
    while waiting:
        route = heappop(waiting)[-1]
        here = route.steps[-1].target
        if here == goal:
            return route
        if here not in reached:
            reached.add(here)
            longer = (Route((*route.steps, step)) for step in steps if step.base == here)
            for each in longer:
                heappush(waiting, (each.cost, next(places), each))
    return None


def _list_steps(entry: FileEntry, full: AbstractSet[str], patch: AbstractSet[str]) -> Iterator[Step]:
    target = Digest.from_str(entry.sha256)
    for source in entry.sources:
        if source.codec in (patch if source.kind == "patch" else full):
            base = Digest.from_str(source.base) if source.kind == "patch" else None
            yield Step(source, target, entry.size, base)
