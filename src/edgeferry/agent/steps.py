"""What each state does, one function per state, in the order of the flow. Read this file to know how an update goes.

What this file leaves to others: which state follows (`machine.py`), writing the record, retrying, being interrupted
(`lane.py`); watching what serves and going back (`settled.py`); how bytes come (`fetch.py`), how versions lie on disk
(`storage/`), what serving means (`Activator`).

Rules:
- A step may be cut off at any line and run again from its start: it looks at what is there before it acts.
- A step returns an Outcome or raises a leaf of `errors.py`; `machine.ERROR_EVENTS` says what a leaf means.
- Nothing is used before it is verified; nothing is shown to other modules before it is proven (a loader: stored).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

from edgeferry.agent.announce import announce
from edgeferry.agent.claims import claim
from edgeferry.agent.gate import CLOSED, get_payload_limit
from edgeferry.agent.machine import Event, State
from edgeferry.agent.places import (
    adopt,
    find_kept_manifest,
    find_mended,
    find_stored,
    find_verified,
    get_decoded_path,
    get_download_path,
    has_target,
    keep_contents,
    keep_manifest,
    open_download,
    point_refs,
    remove_base,
    remove_traces,
    require_base,
    require_stored,
    store_local,
    take_aside,
    take_zip,
    unpack_and_store,
)
from edgeferry.agent.plan import plan_artifacts
from edgeferry.agent.record import Artifact, Target, UpdateRecord, change, read_record_bytes
from edgeferry.agent.room import making_room
from edgeferry.agent.settled import roll_back, watch_active, watch_probation
from edgeferry.agent.shadowing import shadow
from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import Outcome, Step, Tools
from edgeferry.agent.transfer import is_page, transfer
from edgeferry.errors import (
    CaptivePortal,
    ClassicRefused,
    DeltaDamaged,
    DeltaError,
    DigestMismatch,
    LinkError,
    ManifestInvalid,
    ObjectMissing,
)
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest, read_manifest_bytes
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.files import remove_tree
from edgeferry.storage.mending import list_aside
from edgeferry.storage.partial import PartialFile
from edgeferry.storage.patching import decode_in_child

_DAMAGES_MAX = 1
"""Bytes that did not have their digest are fetched once more; damaged again, they are what was published."""
_CLOSED_CODES = frozenset(kind.code for kind in CLOSED)
_LOOK_AGAIN_S = 60.0


# --- RESOLVING --------------------------------------------------------------------------------------------------------
async def resolve(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """Finds out what is to be fetched: nothing, a ZIP, or the artifacts of a signed manifest."""
    stored = await in_thread(find_mended, tools.repository, record)
    active = await in_thread(tools.repository.read_ref, record.model, "active")
    if stored is not None and active is not None and active.identity == record.identity and tools.is_served(record):
        return Outcome(Event.ALREADY_ACTIVE, record)
    if record.kind == "classic":
        if tools.settings.require_md5 and not target.md5:
            raise ClassicRefused("this device takes classic updates only with ContentMD5")
        await claim(tools.repository, tools.journal, record.file_name)
    if stored is not None:
        return await _finish_storing(tools, record, stored, Event.ALREADY_STORED)
    if not (target.url if record.kind == "classic" else target.repo):
        raise ObjectMissing(f"the twin does not say any more where {record.model}@{record.version} is to be had")
    if record.kind == "classic":
        return Outcome(Event.PLANNED, change(record, artifacts=(Artifact(kind="classic"),), index=0))
    async with tools.gate.open(record.priority):
        manifest, *others = await _fetch_manifests(tools, record, target)
    have = await in_thread(tools.repository.list_blobs)
    damaged = await in_thread(list_aside, tools.repository)
    artifacts = plan_artifacts(manifest, have, others=others, whole=record.whole, damaged=damaged)
    await in_thread(take_aside, tools.repository, artifacts, manifest)
    event = Event.PLANNED if artifacts else Event.NOTHING_MISSING
    return Outcome(event, change(record, artifacts=artifacts, index=0, damages=0))


async def _fetch_manifests(tools: Tools, record: UpdateRecord, target: Target) -> list[Manifest]:
    """The verified manifest, kept as a blob under its digest so that STORING needs no network; then other versions'.

    Its small files that came along are kept likewise: nothing of them is left to fetch.
    """
    digest = Digest.from_str(record.identity)
    delivery = await tools.manifests.fetch_manifests(
        record.model, record.version, digest, repo=target.repo, sas=target.sas
    )
    if Digest.of(delivery.manifest) != digest:
        raise DigestMismatch(f"the repository's manifest of {record.model}@{record.version} is not the one of the twin")
    manifest = read_manifest_bytes(delivery.manifest)
    if (manifest.model, manifest.version) != (record.model, record.version):
        raise ManifestInvalid(f"expected the manifest of {record.model}@{record.version}, found another's")
    await in_thread(keep_manifest, tools.repository, digest, delivery.manifest)
    await in_thread(keep_contents, tools.repository, manifest, delivery.contents)
    return [manifest, *map(read_manifest_bytes, delivery.others)]


# --- DOWNLOADING ------------------------------------------------------------------------------------------------------
async def download(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """Brings the bytes of one artifact into its partial file, from where it stands."""
    artifact = record.artifact
    if has_target(tools.repository, artifact):
        return Outcome(Event.DOWNLOADED, record)
    with open_download(tools.repository, record, tools.settings.bundle_max_bytes) as partial:
        if has_target(tools.repository, artifact):  # a version that shares it has stored it before this was open
            return Outcome(Event.DOWNLOADED, record)
        before = partial.length_bytes
        try:
            async with tools.gate.open(record.priority) as verdict:
                await _take_space(tools, artifact, partial)
                await transfer(tools, record, target, partial, most_bytes=get_payload_limit(verdict))
        except LinkError as error:
            gained = partial.length_bytes > before
            return Outcome(Event.TRY_LATER, change(record, retries=0) if gained else record, error)
    return Outcome(Event.DOWNLOADED, record)


async def _take_space(tools: Tools, artifact: Artifact, partial: PartialFile) -> None:
    """The download's own bytes are reserved; for what it decodes to there must be room as well."""
    decoded = 0 if artifact.codec == "none" else artifact.target_size
    await in_thread(tools.repository.require_space, partial.count_missing(artifact.size) + decoded)
    await in_thread(partial.reserve, artifact.size)


# --- VERIFYING --------------------------------------------------------------------------------------------------------
async def verify(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """Compares length and digest with what was announced, before anything reads the bytes."""
    artifact = record.artifact
    if has_target(tools.repository, artifact):
        return Outcome(Event.UNCODED, record)
    with open_download(tools.repository, record, tools.settings.bundle_max_bytes) as partial:
        hasher = await in_thread(partial.hash_whole)
        if record.kind == "classic":
            sound = not target.md5 or hasher.get_md5_base64() == target.md5
        else:
            sound = hasher.size_bytes == artifact.size and str(hasher.get_digest()) == artifact.blob
        if not sound:
            return await _refetch(record, partial)
    return Outcome(Event.UNCODED if artifact.codec == "none" else Event.CODED, record)


async def _refetch(record: UpdateRecord, partial: PartialFile) -> Outcome:
    """The damaged pieces where a list tells them from the others, else the whole, once."""
    found_page = await is_page(partial)
    is_listed = bool(record.artifact.chunks) and partial.length_bytes == record.artifact.size
    if found_page or not is_listed or record.damages >= _DAMAGES_MAX:
        await in_thread(partial.discard)
    if found_page:
        raise CaptivePortal("expected a model, the network answered with a page")
    if record.damages >= _DAMAGES_MAX:
        what = "ContentMD5" if record.kind == "classic" else "digest"
        raise DigestMismatch(f"the bytes fetched twice do not have the {what} that was announced")
    return Outcome(Event.DAMAGED, change(record, damages=record.damages + 1))


# --- PATCHING ---------------------------------------------------------------------------------------------------------
async def patch(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """Turns a coded artifact, on its base for a patch, into the file it stands for, and checks that file's digest."""
    artifact = record.artifact
    if has_target(tools.repository, artifact):
        return Outcome(Event.PATCHED, record)
    source = get_download_path(tools.repository, record)
    if not source.is_file():
        return Outcome(Event.DAMAGED, record)
    try:
        decoded = await decode_in_child(
            source,
            artifact.codec,
            target_path=get_decoded_path(tools.repository, artifact),
            size_bytes=artifact.target_size,
            memory_bytes=artifact.memory,
            base_path=require_base(tools.repository, artifact),
        )
        if str(decoded.digest) != artifact.target:
            raise DeltaDamaged("the decoded file does not have the digest of the manifest")
    except DeltaError as error:
        await in_thread(remove_tree, get_decoded_path(tools.repository, artifact))
        if artifact.kind != "patch":
            return Outcome(Event.GIVE_UP, record, error)
        whole = await _plan_whole(tools, record)
        return Outcome(Event.DELTA_FAILED if whole.artifacts else Event.MANIFEST_LOST, whole, error)
    return Outcome(Event.PATCHED, record)


async def _plan_whole(tools: Tools, record: UpdateRecord) -> UpdateRecord:
    """Full downloads of all that is missing, in place of the patch that failed and of every other: once is enough.

    Without the manifest that says what these are there is no artifact.
    """
    data = await in_thread(find_kept_manifest, tools.repository, record)
    await in_thread(remove_traces, tools.repository, record, owns_zip=False)
    if data is None:
        return change(record, artifacts=(), index=0, whole=True, damages=0)
    manifest = read_manifest_bytes(data)
    rest = plan_artifacts(manifest, await in_thread(tools.repository.list_blobs), whole=True)
    rest = rest or plan_artifacts(manifest, frozenset(), whole=True)  # another model brought the file meanwhile
    return change(record, artifacts=(*record.artifacts[: record.index], *rest), whole=True, damages=0)


# --- STORING ----------------------------------------------------------------------------------------------------------
async def store(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """Moves the verified file to its place; after the last one, makes the version."""
    if record.kind == "classic":
        return await _store_classic(tools, record, target)
    if record.index < len(record.artifacts):
        if not await in_thread(adopt, tools.repository, record):
            return Outcome(Event.DAMAGED, record)
        await _let_go_of_base(tools, record)
        if record.index + 1 < len(record.artifacts):
            return Outcome(Event.MORE_ARTIFACTS, change(record, index=record.index + 1, damages=0))
    data = await in_thread(find_kept_manifest, tools.repository, record)
    if data is None:
        return Outcome(Event.MANIFEST_LOST, change(record, artifacts=(), index=0, damages=0))
    manifest = read_manifest_bytes(data)
    missing = plan_artifacts(manifest, await in_thread(tools.repository.list_blobs), whole=record.whole)
    if missing:  # another update brought it, and let go of it again
        artifacts = (*record.artifacts, *missing)
        return Outcome(Event.DAMAGED, change(record, artifacts=artifacts, index=len(record.artifacts), damages=0))
    stored = await in_thread(tools.repository.store_version, manifest, data, record.identity)
    return await _finish_storing(tools, record, stored, Event.STORED)


async def _let_go_of_base(tools: Tools, record: UpdateRecord) -> None:
    if record.artifact.kind == "patch":
        rows = [read_record_bytes(body) for key, body in await tools.journal.load_records() if key != record.key]
        await in_thread(remove_base, tools.repository, record, rows)


async def _store_classic(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    stored = await in_thread(find_stored, tools.repository, record)
    if stored is None:
        if not await in_thread(take_zip, tools.repository, record, target.md5):
            return Outcome(Event.DAMAGED, record)
        stored = await in_thread(unpack_and_store, tools.repository, record, tools.settings.bundle_limits)
    return await _finish_storing(tools, record, stored, Event.STORED)


async def _finish_storing(tools: Tools, record: UpdateRecord, stored: StoredVersion, event: Event) -> Outcome:
    """A loader has done its part here: refs, message, done. Everybody else goes on to prove."""
    if tools.serves:
        return Outcome(event, record)
    await in_thread(point_refs, tools.repository, stored)
    tools.served[record.model] = stored.identity
    await announce(tools, record, stored)
    return Outcome(Event.HANDED_OVER, change(record, switched_at=tools.now()))


# --- PROVING ----------------------------------------------------------------------------------------------------------
async def prove(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """A worker loads the version once its bytes have been read again, answers its golden truth and warms up.

    What serves stays what serves: paused at most, where memory holds one worker only, and back if the proof fails.
    """
    stored = await in_thread(find_verified, tools.repository, record)
    if stored is None and record.kind == "local":
        stored = await in_thread(store_local, tools.repository, record, target, tools.settings.shared_root)
    if stored is None:
        return Outcome(Event.DAMAGED, record)
    active = await in_thread(tools.repository.refs.read, record.model, "active")
    is_active = active is not None and active.identity == record.identity
    if is_active and tools.is_served(record) and tools.activator.is_alive(record.model):
        return Outcome(Event.ALREADY_ACTIVE, record)
    await tools.activator.prove(stored)
    may_shadow = tools.wishes.shadow is not None and record.model in tools.served and not is_active
    return Outcome(Event.SHADOW_FIRST if may_shadow else Event.PROVEN, record)


# --- SWITCHING --------------------------------------------------------------------------------------------------------
async def switch(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """Writes ref `active`, then points the slot: a crash in between restarts with the new version."""
    stored = await in_thread(require_stored, tools.repository, record)
    await in_thread(point_refs, tools.repository, stored)
    await tools.activator.switch(stored)
    await announce(tools, record, stored)
    tools.served[record.model] = stored.identity
    return Outcome(Event.SWITCHED, change(record, switched_at=tools.now(), boot=tools.boot, unclean_boots=0))


# --- WAITING ----------------------------------------------------------------------------------------------------------
async def wait_for_retry(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """Sleeps until `retry_at`; a clock that jumped back never makes it sleep longer than was meant.

    Where the link may not be used, it is asked again every minute: a clock that is set right opens a window too.
    """
    if record.fault is not None and record.fault.code in _CLOSED_CODES:
        return await _wait_for_link(tools, record)
    longest = record.retry_at - record.changed_at
    await asyncio.sleep(max(0.0, min(record.retry_at - tools.now(), longest)))
    return Outcome(Event.RETRY_DUE, record)


async def _wait_for_link(tools: Tools, record: UpdateRecord) -> Outcome:
    while True:
        rest_s = record.retry_at - tools.now()
        if rest_s <= 0 or tools.gate.judge(record.priority).may_send:
            return Outcome(Event.RETRY_DUE, record)
        await asyncio.sleep(min(rest_s, _LOOK_AGAIN_S))


STEPS: Mapping[State, Step] = MappingProxyType(
    {
        State.RESOLVING: making_room(resolve),
        State.DOWNLOADING: making_room(download),
        State.VERIFYING: verify,
        State.PATCHING: making_room(patch),
        State.STORING: making_room(store),
        State.PROVING: making_room(prove),
        State.SHADOWING: shadow,
        State.SWITCHING: making_room(switch),
        State.PROBATION: watch_probation,
        State.ACTIVE: watch_active,
        State.ROLLING_BACK: roll_back,
        State.WAITING: wait_for_retry,
    }
)
"""Terminal states do nothing."""
