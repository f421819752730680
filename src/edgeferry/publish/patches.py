"""Patches for a new version: from which versions, which are worth their bytes, and what devices fetch with them.

How two files differ is `delta/make.py`'s, which route a device takes `link/route.py`'s; signing and uploading are
`publisher.py`'s.

Rules:
- A base is what devices of that version hold: its full file is fetched from the store, decoded and compared.
- `make_patch` applies what it returns again and compares; nothing else is listed.
- A patch that is not shorter than the cheapest route there is already (the full file, or patch over patch) is left out,
  as is one that the budget does not hold; both are said.
- What a source costs in every device's metadata counts: see SOURCE_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import msgspec

from edgeferry.delta.apply import decode_full
from edgeferry.delta.make import Patch, Progress, make_patch
from edgeferry.errors import ConfigInvalid, DeltaError, ManifestInvalid, MetadataUntrusted
from edgeferry.link.route import list_digests, pick_route, plan_steps
from edgeferry.model.chunks import make_chunk_list
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import MANIFEST_MAX_BYTES, FileEntry, Manifest, Source, read_manifest_bytes
from edgeferry.publish.report import PatchReport, UpdateReport
from edgeferry.trust.bundle_object import BUNDLE_MAX_BYTES, get_bundle_path, read_bundle_object, read_small
from edgeferry.trust.draft import Listed, ObjectReader
from edgeferry.trust.verifier import get_manifest_path

DEFAULT_BASES = 3
"""So many of the last versions are bases when nobody says what devices run."""
MAX_BASES = 8
"""Of the versions that devices run so many are bases, the most used first: each costs a run of all ways to patch."""
DEFAULT_BUDGET = 4
"""Patches of a version may take so many times what its files take as full downloads."""
SOURCE_BYTES = 100
"""About what one more source costs in the bundle object, which every device fetches: digests do not compress."""
Say = Callable[[str], None]


@dataclass(slots=True)
class Patches:
    """What was made: entries with the new sources, blobs to upload by digest, and what to tell."""

    entries: list[FileEntry]
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    reports: list[PatchReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """What the patches take in the store, without their chunk lists."""
        return sum(report.size for report in self.reports)


@dataclass(frozen=True, slots=True)
class Bundled:
    """A model's bundle object: its size in bytes (0: there is none), manifests, and digests of the files in it."""

    size_bytes: int = 0
    manifests: tuple[Manifest, ...] = ()
    contents: frozenset[Digest] = frozenset()

    def list_others(self, version: str) -> tuple[Manifest, ...]:
        """Manifests of other versions than this one."""
        return tuple(one for one in self.manifests if one.version != version)


@dataclass(frozen=True, slots=True)
class Job:
    """What to make patches for: the new version's `files` by name, on `bases`, the most wanted first.

    Attributes:
        models: names of its model files.
        known: manifests that devices have beside the new one.
        along: files that come along with the manifest, by digest: they need no patch.
        budget_bytes: what all patches together may take.
        ready: patches that were made for it, by the digests of both files; they are not made again.
    """

    files: Mapping[str, bytes]
    models: AbstractSet[str]
    bases: Sequence[Manifest]
    known: Sequence[Manifest]
    budget_bytes: int
    along: AbstractSet[Digest] = frozenset()
    ready: dict[tuple[str, str], Patch] = field(default_factory=dict)


# --- which versions ---------------------------------------------------------------------------------------------------
def pick_bases(
    before: Sequence[Listed], *, asked: Sequence[str] | None, running: Mapping[str, int] | None
) -> tuple[Listed, ...]:
    """The versions to patch from, the most wanted first.

    Args:
        before: what is published, oldest first.
        asked: versions that the operator named; None: none were named.
        running: devices by the version they run, as a hub tells it; of none that is published, or None: the last few.

    Raises:
        ConfigInvalid: a version that was named is not published.
    """
    newest = tuple(reversed(before))
    by_version = {one.version: one for one in newest}
    if asked is not None:
        missing = [version for version in asked if version not in by_version]
        if missing:
            known = ", ".join(by_version) or "no version at all"
            raise ConfigInvalid(f"expected published versions as bases, found {missing[0]!r:.80}; published: {known}")
        return tuple(by_version[version] for version in dict.fromkeys(asked))
    counts = running or {}
    used = [one for one in newest if counts.get(one.version, 0) > 0]
    if used:
        return tuple(sorted(used, key=lambda one: -counts[one.version])[:MAX_BASES])  # among equals the newest first
    return newest[:DEFAULT_BASES]


def note_left_out(before: Sequence[Listed], bases: Sequence[Listed], running: Mapping[str, int] | None) -> list[str]:
    """What to tell of versions that devices run and that are no bases; `bases` is what `pick_bases` picked."""
    counts = running or {}
    left_out = [one.version for one in before if counts.get(one.version, 0) > 0 and one not in bases]
    if not left_out:
        return []
    devices = sum(counts[version] for version in left_out)
    return [f"no patches from {', '.join(left_out)}, which {devices} devices run: {len(bases)} bases are taken at most"]


def read_manifest(store: ObjectReader, listed: Listed) -> Manifest:
    """The manifest that the signed metadata lists; raises MetadataUntrusted when the store has another one or none."""
    found = store.find(get_manifest_path(listed.model, listed.version, listed.digest), MANIFEST_MAX_BYTES)
    if found is None or Digest.of(found[0]) != listed.digest:
        raise MetadataUntrusted(
            f"the manifest of {listed.model} {listed.version} is missing or was changed in the store"
        )
    return read_manifest_bytes(found[0])


def read_bundled(store: ObjectReader, listed: Sequence[Listed]) -> Bundled:
    """What the bundle object of one model brings along, whose versions the signed metadata lists.

    A bundle is no authority: what it lacks, or holds otherwise than it is listed, is left out.
    """
    found = store.find(get_bundle_path(listed[0].model), BUNDLE_MAX_BYTES) if listed else None
    if found is None:
        return Bundled()
    try:
        files = read_bundle_object(found[0])
    except MetadataUntrusted:
        return Bundled(len(found[0]))
    held = ((one, files.get(get_manifest_path(one.model, one.version, one.digest), b"")) for one in listed)
    manifests = tuple(read_manifest_bytes(data) for one, data in held if Digest.of(data) == one.digest)
    return Bundled(len(found[0]), manifests, frozenset(read_small(files)))


# --- making them ------------------------------------------------------------------------------------------------------
def make_patches(
    job: Job, entries: Iterable[FileEntry], *, store: ObjectReader, say: Say, progress: Progress
) -> Patches:
    """Makes the patches that are worth it; `entries` are the new version's files with their full sources."""
    made = Patches(list(entries))
    for base in job.bases:
        for place in range(len(made.entries)):
            _try_patch(job, made, place, base=base, store=store, say=say, progress=progress)
    return made


def _try_patch(
    job: Job, made: Patches, place: int, *, base: Manifest, store: ObjectReader, say: Say, progress: Progress
) -> None:
    entry = made.entries[place]
    old = _find_old(job, base, entry.path)
    cheapest = _count_cheapest(job, entry, base)
    if old is None or cheapest <= SOURCE_BYTES or any(source.base == old.sha256 for source in entry.sources):
        return
    name = f"a patch of {entry.path} from {base.version}"
    if made.size_bytes >= job.budget_bytes:
        made.notes.append(f"{name} was not made: the budget for patches is spent")
        return
    pair = (old.sha256, entry.sha256)
    try:
        old_data = b"" if pair in job.ready else read_old(store, old)
    except (DeltaError, ManifestInvalid) as error:
        made.notes.append(f"{name} was not made: {error.message}")
        return
    if pair not in job.ready:
        say(f"making {name}")
        job.ready[pair] = make_patch(old_data, job.files[entry.path], progress=progress)
    patch = job.ready[pair]
    if len(patch.data) + SOURCE_BYTES >= cheapest:
        made.notes.append(f"{name} was left out: {len(patch.data):,} bytes, {cheapest:,} without it")
    elif made.size_bytes + len(patch.data) > job.budget_bytes:
        made.notes.append(f"{name} was left out: {len(patch.data):,} bytes are over the budget for patches")
    else:
        _add(made, place, patch, old=old, version=base.version)


def _find_old(job: Job, base: Manifest, path: str) -> FileEntry | None:
    """The base's file of that name; else, where both versions have one model file, that one under its old name."""
    found = base.find_file(path)
    models = list_model_files(base)
    if found is None and len(models) == 1 and job.models == {path}:
        return base.find_file(next(iter(models)))
    return found


def list_model_files(manifest: Manifest) -> frozenset[str]:
    """Names of the files that its stages load."""
    return frozenset(stage.file for stage in manifest.spec.stages)


def _count_cheapest(job: Job, entry: FileEntry, base: Manifest) -> int:
    also = [one for known in job.known for one in known.files]
    return pick_route(entry, list_digests(base) | job.along, also=also).download_bytes


def read_old(store: ObjectReader, old: FileEntry) -> bytes:
    """A published file, decoded from its full source and compared with its digest.

    Raises:
        ManifestInvalid: this release cannot decode it, or the store does not have it any more.
        DeltaDamaged: what the store has is something else.
    """
    [step] = pick_route(old, frozenset(), patch_codecs=frozenset()).steps
    blob = Digest.from_str(step.source.blob)
    found = store.find(blob.blob_path, step.source.size)
    if found is None or Digest.of(found[0]) != blob:
        raise ManifestInvalid(f"the store does not have {old.path} of that version any more")
    data = bytearray(old.size)
    decode_full(found[0], step.source.codec, memoryview(data))
    if Digest.of(data) != step.target:
        raise ManifestInvalid(f"{old.path} of that version does not decode to its digest")
    return bytes(data)


def _add(made: Patches, place: int, patch: Patch, *, old: FileEntry, version: str) -> None:
    entry, blob, chunks = made.entries[place], Digest.of(patch.data), make_chunk_list(patch.data)
    made.blobs[blob] = patch.data
    if chunks:
        made.blobs[Digest.of(chunks)] = chunks
    source = Source(
        kind="patch",
        codec=patch.codec,
        blob=str(blob),
        size=len(patch.data),
        memory=patch.memory_bytes,
        base=old.sha256,
        chunks=str(Digest.of(chunks)) if chunks else "",
    )
    made.entries[place] = msgspec.structs.replace(entry, sources=(*entry.sources, source))
    made.reports.append(
        PatchReport(base=version, path=entry.path, size=len(patch.data), way=patch.way, memory=patch.memory_bytes)
    )


# --- what devices fetch -----------------------------------------------------------------------------------------------
def count_download(manifest: Manifest, have: AbstractSet[Digest], bundled: Bundled) -> tuple[int, int]:
    """What a device fetches that has the contents `have`: (payload bytes, downloads), golden pictures included.

    Args:
        manifest: of the version that it shall run.
        have: digests of what it holds.
        bundled: what comes along with the manifest.
    """
    steps = plan_steps(manifest, have | bundled.contents, others=bundled.list_others(manifest.version))
    return sum(step.source.size for step in steps), len(steps)


def count_updates(manifest: Manifest, bases: Iterable[Manifest], bundled: Bundled) -> tuple[UpdateReport, ...]:
    """What a device with each of `bases` fetches."""
    counts = {base.version: count_download(manifest, list_digests(base), bundled) for base in bases}
    return tuple(UpdateReport(base=name, bytes=size, downloads=number) for name, (size, number) in counts.items())
