"""Tidying up a repository: versions and content that nobody needs, and what a crash left in the making.

What this file leaves to others: deciding (`keeping.py`), what an update under way needs (`agent/room.py`).

Rules:
- A folder that a ref or a pin names stays, whole or not: what is left of it need not be fetched again.
- Versions go before their content: a crash in between leaves content that the next run takes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeferry.model.digest import Digest
from edgeferry.model.stored import StoredVersion
from edgeferry.names import require_version
from edgeferry.storage.files import TEMP_PREFIX, remove_tree
from edgeferry.storage.keeping import Held, plan_gc
from edgeferry.storage.mending import find_content, find_pinned, get_aside_path, list_aside
from edgeferry.storage.partial import get_partial_path
from edgeferry.storage.refs import REF_NAMES, Ref
from edgeferry.storage.repository import Repository
from edgeferry.storage.versions import OTHER_SIGN, iterate_folder
from edgeferry.twin.status import VersionStatus


@dataclass(frozen=True, slots=True)
class Collected:
    """What one `gc` removed."""

    versions: tuple[str, ...]
    blobs: int
    freed_bytes: int


def gc(
    repository: Repository,
    keep: Collection[StoredVersion] = (),
    *,
    keep_blobs: Collection[Digest] = (),
    wanted_bytes: int = 0,
    everything: bool = False,
) -> Collected:
    """Removes what `keeping.plan_gc` says: what nobody needs, and kept versions that have no room any more.

    Args:
        repository: what to tidy.
        keep: versions on their way (the target).
        keep_blobs: content that has come for a version which is not stored yet.
        wanted_bytes: what is about to be written.
        everything: whether all goes that may, room or not.
    """
    with repository.lock:
        held = {one.name: (one, folder) for one, folder in _iterate_held(repository, {one.folder for one in keep})}
        leaving = plan_gc(
            [one for one, _ in held.values()],
            repository.blobs.list_sizes(),
            needed=frozenset(keep_blobs),
            disk=repository.read_disk(),
            limits=repository.limits,
            wanted_bytes=wanted_bytes,
            everything=everything,
        )
        for name in leaving.versions:
            remove_tree(held[name][1])
        wanted = frozenset(keep_blobs).union(*(one.digests for one, _ in held.values() if one.needed))
        for digest in list_aside(repository):
            if digest not in wanted or repository.has_blob(digest):
                remove_tree(get_aside_path(repository, digest))
        sizes = [size for digest in sorted(leaving.blobs) if (size := repository.blobs.remove_loose(digest))]
    return Collected(leaving.versions, len(sizes), sum(sizes))


def _iterate_held(repository: Repository, kept: Collection[Path]) -> Iterator[tuple[Held, Path]]:
    for model in repository.list_models():
        ranks = {identity: rank for rank, identity in enumerate(repository.refs.read_history(model))}
        pins = repository.refs.list_pins(model)
        for folder in repository.list_folders(model):
            stored = repository.read_folder(model, folder)
            named = _find_named(repository, model, folder, stored)
            pinned = find_pinned(repository, model, folder) if folder.name in pins else ""
            identity = stored.identity if stored is not None else named or pinned
            needed = bool(named) or folder in kept or folder.name in pins
            digests = find_content(repository, model, folder, identity=identity)
            yield Held(f"{model}@{folder.name}", digests, ranks.get(identity), needed), folder


def _find_named(repository: Repository, model: str, folder: Path, stored: StoredVersion | None) -> str:
    """The identity of the ref that names what lies in `folder`, or lay there before it was damaged; else nothing."""
    for ref in repository.refs.list_refs(model):
        is_its = folder in repository.get_folders(model, ref.version, ref.identity)
        if is_its and (stored is None or stored.identity == ref.identity):
            return ref.identity
    return ""


# --- what people ask for ----------------------------------------------------------------------------------------------
def pin_version(repository: Repository, model: str, version: str, *, remove: bool = False) -> bool:
    """Pins all content that is stored as this version, or lets go of it; False where there is none of it.

    Raises:
        NameInvalid: no names.
    """
    folders = {folder.name for folder in repository.get_folders(model, require_version(version), None)}
    here = {folder.name for folder in repository.list_folders(model)}
    named = sorted(folders & (here | repository.refs.list_pins(model)))
    for name in named:
        if remove:
            repository.refs.unpin(model, name)
        elif name in here:
            repository.refs.pin(model, name)
    return bool(named)


def list_status(repository: Repository) -> tuple[VersionStatus, ...]:
    """Every version that lies here, with what it takes and why it stays."""
    return tuple(
        _make_status(repository, model, one)
        for model in repository.list_models()
        for one in repository.list_folders(model)
    )


def _make_status(repository: Repository, model: str, folder: Path) -> VersionStatus:
    stored = repository.read_folder(model, folder)
    refs = {name: repository.refs.read(model, name) for name in REF_NAMES}
    identity = stored.identity if stored is not None else _find_named(repository, model, folder, stored)
    sizes = {
        digest: repository.blobs.read_size(digest)
        for digest in find_content(repository, model, folder, identity=identity)
    }
    return VersionStatus(
        model=model,
        version=folder.name.partition(OTHER_SIGN)[0],
        identity=identity,
        size_bytes=sum(sizes.values()),
        whole=stored is not None,
        active=_is_ref(refs["active"], identity),
        previous=_is_ref(refs["previous"], identity),
        pinned=folder.name in repository.refs.list_pins(model),
    )


def _is_ref(ref: Ref | None, identity: str) -> bool:
    return ref is not None and ref.identity == identity


# --- after a crash ----------------------------------------------------------------------------------------------------
def sweep(repository: Repository, keep_partials: Collection[str] | None = None) -> int:
    """Removes what a crash left in the making; call it at start, under the lock. Returns how many things went.

    Args:
        repository: what to tidy.
        keep_partials: keys of downloads that go on; others are removed. None keeps all.
    """
    leftovers = {path for folder in repository.list_workplaces() for path in iterate_folder(folder, TEMP_PREFIX)}
    leftovers |= {path for path in iterate_folder(repository.trust_folder, "tmp") if not path.suffix}  # python-tuf's
    if keep_partials is not None:
        kept = {get_partial_path(repository.partial_folder, key).name for key in keep_partials}
        kept |= {get_aside_path(repository, digest).name for digest in list_aside(repository)}
        leftovers |= {path for path in iterate_folder(repository.partial_folder) if path.name not in kept}
    for path in leftovers:
        remove_tree(path)
    return len(leftovers)
