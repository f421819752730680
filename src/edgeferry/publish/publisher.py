"""Publishing a model version: `publish()` packs, codes, makes patches, signs and uploads, in that order.

How a file is coded stands in `coding.py`, which patches are made in `patches.py`. What a version is stands in `model/`,
how metadata is signed and written in `trust/signer.py`, where it goes in `storage/blob_store.py`.

Rules:
- Nothing is guessed: what inspection and the operator leave open is SpecIncomplete, which says what to add.
- A coded file is decoded again and a patch applied again, and compared, before anything is signed.
- Blobs and the classic ZIP first, metadata last: a reader sees the whole version or none of it.
- The same version with the same content is nothing to do; with other content it is a Conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import msgspec

from edgeferry.errors import ConfigInvalid, Conflict, InvariantBroken
from edgeferry.link.route import list_digests
from edgeferry.model.bundle import SPEC_FILE, make_bundle_zip
from edgeferry.model.bundle_spec import BundleSpec, has_stages, make_pipeline_spec, make_single_spec
from edgeferry.model.chunks import make_chunk_list
from edgeferry.model.digest import Digest, Hasher
from edgeferry.model.manifest import (
    FileEntry,
    Manifest,
    Source,
    check_manifest,
    make_manifest_bytes,
    read_manifest_bytes,
)
from edgeferry.model.spec import ModelSpec, read_spec_toml
from edgeferry.model.stage_labels import load_labels
from edgeferry.names import require_file_name
from edgeferry.publish.coding import Coded, code_full
from edgeferry.publish.golden import GoldenSet, check_labels, read_golden
from edgeferry.publish.patches import (
    DEFAULT_BUDGET,
    Bundled,
    Job,
    Patches,
    count_download,
    count_updates,
    make_patches,
    note_left_out,
    pick_bases,
    read_bundled,
    read_manifest,
)
from edgeferry.publish.report import ClassicReport, FileReport, PublishReport
from edgeferry.trust.bundle_object import pick_small
from edgeferry.trust.draft import Draft, Listed, ObjectStore, open_draft
from edgeferry.trust.signer import (
    BUNDLE_MAX_MANIFESTS,
    Desk,
    NewVersion,
    add_manifest,
    commit,
    plan_bundle,
    require_publishable,
)
from edgeferry.vision.walk import require_pipeline

Say = Callable[[str], None]
"""Told, in a few words, what is being done."""
Progress = Callable[[int, int], None]
"""Told how many bytes of how many are done: (all, all) last; of an upload (0, all) first."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to publish: the bytes as the operator gave them, `files` by name in the bundle; one of them is the model."""

    model: str
    version: str
    model_file: str
    model_data: bytes
    labels_file: str = ""
    labels_data: bytes = b""
    others: Mapping[str, bytes] = {}
    """Of a pipeline: what its other stages name."""
    spec_text: str = ""
    """TOML: what the model file does not tell."""
    golden_files: Mapping[str, bytes] | None = None
    """None: the golden truth of the version before is inherited."""
    bases: tuple[str, ...] | None = None
    """Versions to make patches from; None: what devices run."""
    running: Mapping[str, int] | None = None
    """Devices by the version they run, where a hub told."""
    patch_budget: int | None = None
    """What patches may take together, in bytes; None: a few times the full download."""
    slim: Mapping[str, str | float] | None = None
    """Of a version whose weights were put on grids: what the manifest says of it."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """The version's content before it is coded."""

    spec: ModelSpec
    files: Mapping[str, bytes]
    golden: GoldenSet
    inherited: bool
    before: Manifest | None
    bases: tuple[Manifest, ...]
    classic_zip: bytes
    classic_md5: str
    notes: tuple[str, ...]


@dataclass(slots=True)
class _CodedFiles:
    """The version's files as they will travel, and every blob to upload, by digest."""

    entries: list[FileEntry] = field(default_factory=list)
    reports: list[FileReport] = field(default_factory=list)
    blobs: dict[Digest, bytes] = field(default_factory=dict)


def tell_nobody(_done: int, _total: int) -> None:
    """A Progress that nobody looks at."""


def publish(
    request: Request, desk: Desk, *, say: Say, making: Progress = tell_nobody, progress: Progress = tell_nobody
) -> PublishReport:
    """Publishes one version.

    Args:
        request: what to publish.
        desk: where, and with which keys.
        say: told what is being done.
        making: told bytes of the file that is being coded or patched.
        progress: told bytes uploaded.

    Raises:
        SpecIncomplete, ConfigInvalid, NameInvalid: what the operator must add or correct.
        ModelUnreadable: the model file is none.
        Conflict: the version is published with other content, or somebody else publishes at this moment.
        MetadataUntrusted: the store's metadata is not ours.
        StoreRefused, LinkDown, StorageFailed: the store does not do as asked.
    """
    draft = open_draft(desk.store, desk.keys)
    packed = _pack(request, draft, store=desk.store)
    listed = draft.find_version(request.model, request.version)
    if listed is not None:
        return _report_unchanged(
            request, packed, read_manifest(desk.store, listed), bundled=_read_bundled(request, draft, store=desk.store)
        )
    coded = _code(packed, say, making)
    patches = _patch(request, packed, coded=coded, draft=draft, desk=desk, say=say, making=making)
    manifest = _make_manifest(request, packed, entries=patches.entries, desk=desk)
    add_manifest(draft, _make_new(packed, manifest), desk=desk)
    _upload(request, packed, blobs=coded.blobs | patches.blobs, store=desk.store, progress=progress)
    say("signing")
    bundle_bytes = commit(draft, desk)[request.model]
    packed = replace(packed, notes=(*packed.notes, *patches.notes))
    report = _make_report(
        request, packed, manifest=manifest, files=coded.reports, bundled=_read_bundled(request, draft, store=desk.store)
    )
    return msgspec.structs.replace(report, unchanged=False, bundle_bytes=bundle_bytes, patches=tuple(patches.reports))


# --- pack -------------------------------------------------------------------------------------------------------------
def _pack(request: Request, draft: Draft, *, store: ObjectStore) -> _Packed:
    require_publishable(request.model, request.version)
    made, files = make_content(request)
    earlier = list_earlier(request, draft)
    before = read_manifest(store, earlier[-1]) if earlier else None
    bases = pick_bases(earlier, asked=request.bases, running=request.running)
    left_out = note_left_out(earlier, bases, request.running) if request.bases is None else []
    golden, inherited = find_golden(request, before)
    check_labels(golden.samples, _list_labels(made.spec, files))
    classic_zip = make_bundle_zip(_list_classic_files(request, files))
    hasher = Hasher()
    hasher.update(classic_zip)
    return _Packed(
        spec=made.spec,
        files=files,
        golden=golden,
        inherited=inherited,
        before=before,
        bases=tuple(read_manifest(store, one) for one in bases),
        classic_zip=classic_zip,
        classic_md5=hasher.get_md5_base64(),
        notes=(*made.notes, *left_out),
    )


def make_content(request: Request) -> tuple[BundleSpec, dict[str, bytes]]:
    """The spec, and the version's files by name; raises what `publish` does."""
    files = {require_file_name(request.model_file): request.model_data, **request.others}
    if request.labels_file:
        if require_file_name(request.labels_file) in files:
            raise ConfigInvalid("expected a label file of another name than the model's")
        files[request.labels_file] = request.labels_data
    overrides, read = read_spec_toml(request.spec_text), files.__getitem__
    if has_stages(overrides):
        made = make_pipeline_spec(files, read, overrides)
    else:
        made = make_single_spec(request.model_file, request.labels_file, read, overrides)
    require_pipeline(made.spec.stages)  # no device of this release could read its answers
    return made, files


def _list_classic_files(request: Request, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """A classic device has no manifest: what the operator said of the spec goes into the ZIP."""
    spec = {SPEC_FILE: request.spec_text.encode()} if request.spec_text else {}
    return {**files, **spec}


def _list_labels(spec: ModelSpec, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Labels that an answer may have; the lines before the offset never stand for a class."""
    stage = spec.get_answering()
    return load_labels(stage, files.__getitem__)[max(0, stage.labels.offset) :]


def list_earlier(request: Request, draft: Draft) -> tuple[Listed, ...]:
    """The versions that were published before this one."""
    return tuple(takewhile(lambda one: one.version != request.version, draft.list_versions(request.model)))


def find_golden(request: Request, before: Manifest | None) -> tuple[GoldenSet, bool]:
    """The golden truth that was given, else that of the version before; whether it is inherited."""
    if request.golden_files is not None:
        return read_golden(request.golden_files), False
    inherited = before.golden if before else ()
    return GoldenSet(inherited), bool(inherited)


def _read_bundled(request: Request, draft: Draft, *, store: ObjectStore) -> Bundled:
    """What devices get along with the version's manifest."""
    return read_bundled(store, draft.list_versions(request.model))


# --- already there? ---------------------------------------------------------------------------------------------------
def _report_unchanged(request: Request, packed: _Packed, manifest: Manifest, *, bundled: Bundled) -> PublishReport:
    """Compares content, not bytes: codecs and the time of publishing may differ between two runs."""
    same_files = {entry.path: entry.sha256 for entry in manifest.files} == {
        path: str(Digest.of(data)) for path, data in packed.files.items()
    }
    same_golden = request.golden_files is None or packed.golden.samples == manifest.golden
    if not same_files or manifest.spec != packed.spec or not same_golden:
        raise Conflict(f"{request.model} {request.version} is published with other content; choose a new version")
    packed = replace(packed, golden=GoldenSet(manifest.golden), inherited=False)
    reports = [_make_file_report(entry) for entry in manifest.files]
    return _make_report(request, packed, manifest=manifest, files=reports, bundled=bundled)


# --- code -------------------------------------------------------------------------------------------------------------
def _code(packed: _Packed, say: Say, making: Progress) -> _CodedFiles:
    done = _CodedFiles()
    for path, data in packed.files.items():
        say(f"coding {path} ({len(data):,} bytes)")
        _add_file(done, path, data=data, best=code_full(data, progress=making))
    done.blobs |= packed.golden.pictures or {}
    return done


def _add_file(done: _CodedFiles, path: str, *, data: bytes, best: Coded) -> None:
    hasher, blob = Hasher(), Digest.of(best.data)
    hasher.update(data)
    done.blobs[blob] = best.data
    chunks = make_chunk_list(best.data)
    if chunks:
        done.blobs[Digest.of(chunks)] = chunks
    source = Source(
        kind="full",
        codec=best.codec,
        blob=str(blob),
        size=len(best.data),
        memory=best.memory_bytes,
        chunks=str(Digest.of(chunks)) if chunks else "",
    )
    entry = FileEntry(
        path=path,
        sha256=str(hasher.get_digest()),
        md5=hasher.get_md5_base64(),
        size=len(data),
        sources=(source,),
    )
    done.entries.append(entry)
    done.reports.append(_make_file_report(entry, best.sizes))


# --- patch ------------------------------------------------------------------------------------------------------------
def _patch(
    request: Request, packed: _Packed, *, coded: _CodedFiles, draft: Draft, desk: Desk, say: Say, making: Progress
) -> Patches:
    """Patches from earlier versions, as far as they are worth it and fit the budget.

    What they are worth depends on the manifests beside the new one in the bundle, and these on its size: whenever one
    of them does not fit, the choice is made again without it. What was left out for its sake is then not left out.
    """
    full_bytes = sum(report.coded_size for report in coded.reports)
    newest = draft.list_versions(request.model)[1 - BUNDLE_MAX_MANIFESTS :]
    job = Job(
        files=packed.files,
        models=frozenset(stage.file for stage in packed.spec.stages),
        bases=packed.bases,
        known=tuple(read_manifest(desk.store, one) for one in newest),
        budget_bytes=DEFAULT_BUDGET * full_bytes if request.patch_budget is None else request.patch_budget,
        along=pick_small(packed.files.values()).keys(),
    )
    while True:
        patches = make_patches(job, coded.entries, store=desk.store, say=say, progress=making)
        manifest = _make_manifest(request, packed, entries=patches.entries, desk=desk)
        fitting = plan_bundle(draft, _make_new(packed, manifest), desk=desk)
        kept = tuple(one for one in job.known if one.version in fitting)
        if len(kept) == len(job.known):
            draft.bundled[request.model] = fitting
            return patches
        job = replace(job, known=kept)


# --- sign and upload --------------------------------------------------------------------------------------------------
def _make_manifest(request: Request, packed: _Packed, *, entries: Sequence[FileEntry], desk: Desk) -> Manifest:
    manifest = Manifest(
        model=request.model,
        version=request.version,
        spec=packed.spec,
        files=tuple(entries),
        golden=packed.golden.samples,
        slim=dict(request.slim) if request.slim else None,
        created=int(desk.now.timestamp()),
    )
    if read_manifest_bytes(make_manifest_bytes(check_manifest(manifest))) != manifest:
        raise InvariantBroken("the manifest does not come back from its own bytes; nothing was published")
    return manifest


def _make_new(packed: _Packed, manifest: Manifest) -> NewVersion:
    data, contents = make_manifest_bytes(manifest), tuple(packed.files.values())
    return NewVersion(manifest.model, manifest.version, data, packed.classic_md5, contents)


def _upload(
    request: Request, packed: _Packed, *, blobs: Mapping[Digest, bytes], store: ObjectStore, progress: Progress
) -> None:
    """Blobs and the ZIP. Nobody sees them before the metadata is written."""
    total, done = sum(map(len, blobs.values())) + len(packed.classic_zip), 0

    def count(sent_bytes: int) -> None:
        nonlocal done
        done += sent_bytes
        progress(done, total)

    count(0)
    for digest, data in blobs.items():
        store.put_blob(digest.blob_path, data, count)
    store.put(_get_classic_path(request), packed.classic_zip, count)


# --- report -----------------------------------------------------------------------------------------------------------
def _get_classic_path(request: Request) -> str:
    return f"classic/{request.model}-{request.version}.zip"


def _make_file_report(entry: FileEntry, sizes: Mapping[str, int] | None = None) -> FileReport:
    source = next(source for source in entry.sources if source.kind == "full")
    return FileReport(
        path=entry.path,
        size=entry.size,
        codec=source.codec,
        coded_size=source.size,
        blob=source.blob,
        sizes_by_codec=dict(sizes or {source.codec: source.size}),
    )


def _make_report(
    request: Request, packed: _Packed, *, manifest: Manifest, files: Sequence[FileReport], bundled: Bundled
) -> PublishReport:
    """The report of a version that is published already; `bundled` is what devices get along with its manifest."""
    data, classic_size = make_manifest_bytes(manifest), len(packed.classic_zip)
    before = list_digests(packed.before) if packed.before else frozenset()
    return PublishReport(
        model=request.model,
        version=request.version,
        manifest=str(Digest.of(data)),
        unchanged=True,
        download_bytes=count_download(manifest, frozenset(), bundled)[0],
        golden_bytes=sum(sample.size for sample in manifest.golden),
        update_bytes=count_download(manifest, before, bundled)[0],
        manifest_bytes=len(data),
        bundle_bytes=0,
        files=tuple(files),
        classic=ClassicReport(path=_get_classic_path(request), size=classic_size, md5=packed.classic_md5),
        golden=len(packed.golden.samples),
        golden_inherited=packed.inherited,
        updates=count_updates(manifest, packed.bases, bundled),
        notes=packed.notes,
        slim=manifest.slim,
    )
