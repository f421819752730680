"""Publishing a model version: `publish()` packs, codes, signs and uploads, in that order.

Patches against earlier versions come with `delta/make.py`. What a version is stands in `model/`, how metadata is signed
and written in `trust/signer.py`, where it goes in `storage/blob_store.py`.

Rules:
- Nothing is guessed: what inspection and the operator leave open is SpecIncomplete, which says what to add.
- A coded file is decoded again and compared before anything is signed.
- Blobs and the classic ZIP first, metadata last: a reader sees the whole version or none of it.
- The same version with the same content is nothing to do; with other content it is a Conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import takewhile

import msgspec

from edgeferry.delta.codecs import Coded, decode_full, encode_all, find_smallest, get_decode_memory
from edgeferry.errors import ConfigInvalid, Conflict, InvariantBroken, MetadataUntrusted
from edgeferry.link.route import pick_route
from edgeferry.model.bundle import SPEC_FILE, make_bundle_zip
from edgeferry.model.digest import Digest, Hasher
from edgeferry.model.inspect import inspect_model, load_labels, make_spec
from edgeferry.model.labels import read_labels
from edgeferry.model.manifest import (
    MANIFEST_MAX_BYTES,
    FileEntry,
    Manifest,
    Source,
    check_manifest,
    make_manifest_bytes,
    read_manifest_bytes,
)
from edgeferry.model.spec import ModelSpec, read_spec_toml
from edgeferry.names import require_file_name
from edgeferry.publish.golden import GoldenSet, check_labels, read_golden
from edgeferry.trust.draft import Draft, Listed, ObjectStore, open_draft
from edgeferry.trust.signer import Desk, NewVersion, add_manifest, commit, require_publishable
from edgeferry.trust.verifier import get_manifest_path
from edgeferry.vision.answers.table import require_family

CHUNK_BYTES = 64 << 10
CHUNK_DIGEST_BYTES = 16
Say = Callable[[str], None]
"""Told, in a few words, what is being done."""
Progress = Callable[[int, int], None]
"""Told how many bytes of how many are in the store: (0, all) first, (all, all) last."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to publish: the bytes as the operator gave them, `files` by name in the bundle; one of them is the model."""

    model: str
    version: str
    model_file: str
    model_data: bytes
    labels_file: str = ""
    labels_data: bytes = b""
    spec_text: str = ""
    """TOML: what the model file does not tell."""
    golden_files: Mapping[str, bytes] | None = None
    """None: the golden truth of the version before is inherited."""


class FileReport(msgspec.Struct, frozen=True, kw_only=True):
    """One file: its size, the codec it travels in, its coded size, and what the other codecs would have taken."""

    path: str
    size: int
    codec: str
    coded_size: int
    blob: str
    sizes_by_codec: dict[str, int]


class ClassicReport(msgspec.Struct, frozen=True, kw_only=True):
    """The ZIP for devices that read only the three classic fields; `md5` is its ContentMD5."""

    path: str
    size: int
    md5: str


class PublishReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was published. Sizes in bytes; payload, without metadata.

    Attributes:
        download_bytes: what a device that has nothing yet fetches: coded files and golden pictures.
        golden_bytes: the pictures' part of it.
        update_bytes: what a device that has the version published before fetches.
    """

    model: str
    version: str
    manifest: str
    unchanged: bool
    download_bytes: int
    golden_bytes: int
    update_bytes: int
    manifest_bytes: int
    bundle_bytes: int
    files: tuple[FileReport, ...]
    classic: ClassicReport
    golden: int
    golden_inherited: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Packed:
    """The version's content before it is coded."""

    spec: ModelSpec
    files: Mapping[str, bytes]
    golden: GoldenSet
    inherited: bool
    before: Manifest | None
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


def publish(request: Request, desk: Desk, *, say: Say, progress: Progress = tell_nobody) -> PublishReport:
    """Publishes one version.

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
        return _report_unchanged(request, packed, _read_manifest(desk.store, listed))
    coded = _code(packed, say)
    manifest = _sign(request, packed, coded=coded, draft=draft, desk=desk)
    _upload(request, packed, coded=coded, store=desk.store, progress=progress)
    say("signing")
    bundle_bytes = commit(draft, desk)[request.model]
    return _make_report(request, packed, manifest=manifest, coded_files=coded.reports, bundle_bytes=bundle_bytes)


# --- pack -------------------------------------------------------------------------------------------------------------
def _pack(request: Request, draft: Draft, *, store: ObjectStore) -> _Packed:
    require_publishable(request.model, request.version)
    inspection = inspect_model(require_file_name(request.model_file), request.model_data)
    files = {request.model_file: request.model_data}
    labels = None
    if request.labels_file:
        if require_file_name(request.labels_file) in files:
            raise ConfigInvalid("expected a label file of another name than the model's")
        labels = read_labels(request.labels_data)
        files[request.labels_file] = request.labels_data
    overrides = read_spec_toml(request.spec_text)
    spec = make_spec(inspection, labels=labels, labels_file=request.labels_file, overrides=overrides)
    for stage in spec.stages:
        require_family(stage)  # no device of this release could read its answers
    before = _find_before(request, draft, store=store)
    golden, inherited = _find_golden(request, before)
    check_labels(golden.samples, _list_labels(spec, files))
    classic_zip = make_bundle_zip(_list_classic_files(request, files))
    hasher = Hasher()
    hasher.update(classic_zip)
    return _Packed(spec, files, golden, inherited, before, classic_zip, hasher.get_md5_base64(), inspection.notes)


def _list_classic_files(request: Request, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """A classic device has no manifest: what the operator said of the spec goes into the ZIP."""
    spec = {SPEC_FILE: request.spec_text.encode()} if request.spec_text else {}
    return {**files, **spec}


def _list_labels(spec: ModelSpec, files: Mapping[str, bytes]) -> list[str]:
    """Labels that stand for a class of some stage; the lines before the offset never do."""
    return [
        label for stage in spec.stages for label in load_labels(stage, files.__getitem__)[max(0, stage.labels.offset) :]
    ]


def _find_before(request: Request, draft: Draft, *, store: ObjectStore) -> Manifest | None:
    """The version that was published before this one."""
    before = list(takewhile(lambda one: one.version != request.version, draft.list_versions(request.model)))
    return _read_manifest(store, before[-1]) if before else None


def _find_golden(request: Request, before: Manifest | None) -> tuple[GoldenSet, bool]:
    if request.golden_files is not None:
        return read_golden(request.golden_files), False
    inherited = before.golden if before else ()
    return GoldenSet(inherited), bool(inherited)


def _read_manifest(store: ObjectStore, listed: Listed) -> Manifest:
    found = store.find(get_manifest_path(listed.model, listed.version, listed.digest), MANIFEST_MAX_BYTES)
    if found is None or Digest.of(found[0]) != listed.digest:
        raise MetadataUntrusted(
            f"the manifest of {listed.model} {listed.version} is missing or was changed in the store"
        )
    return read_manifest_bytes(found[0])


# --- already there? ---------------------------------------------------------------------------------------------------
def _report_unchanged(request: Request, packed: _Packed, manifest: Manifest) -> PublishReport:
    """Compares content, not bytes: codecs and the time of publishing may differ between two runs."""
    same_files = {entry.path: entry.sha256 for entry in manifest.files} == {
        path: str(Digest.of(data)) for path, data in packed.files.items()
    }
    same_golden = request.golden_files is None or packed.golden.samples == manifest.golden
    if not same_files or manifest.spec != packed.spec or not same_golden:
        raise Conflict(f"{request.model} {request.version} is published with other content; choose a new version")
    packed = replace(packed, golden=GoldenSet(manifest.golden), inherited=False)
    reports = [_make_file_report(entry) for entry in manifest.files]
    return _make_report(request, packed, manifest=manifest, coded_files=reports, bundle_bytes=None)


# --- code -------------------------------------------------------------------------------------------------------------
def _code(packed: _Packed, say: Say) -> _CodedFiles:
    done = _CodedFiles()
    for path, data in packed.files.items():
        say(f"coding {path} ({len(data):,} bytes)")
        candidates = encode_all(data)
        best = find_smallest(candidates)
        _check_decodes(best, data, path=path)
        sizes: dict[str, int] = {coded.codec: len(coded.data) for coded in candidates}
        _add_file(done, path, data=data, best=best, sizes=sizes)
    done.blobs |= packed.golden.pictures or {}
    return done


def _check_decodes(coded: Coded, data: bytes, *, path: str) -> None:
    again = decode_full(coded.data, coded.codec, len(data))
    if again != data or coded.memory_bytes != get_decode_memory(coded.codec, coded.data):
        raise InvariantBroken(f"{path} does not come back from the codec {coded.codec}; nothing was published")


def _add_file(done: _CodedFiles, path: str, *, data: bytes, best: Coded, sizes: dict[str, int]) -> None:
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
    done.reports.append(_make_file_report(entry, sizes))


def make_chunk_list(data: bytes) -> bytes:
    """The first 16 bytes of the SHA-256 of each 64 KB piece; empty for data of one piece, whose digest says as much."""
    if len(data) <= CHUNK_BYTES:
        return b""
    pieces = (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
    return b"".join(bytes.fromhex(Digest.of(piece).hex)[:CHUNK_DIGEST_BYTES] for piece in pieces)


# --- sign and upload --------------------------------------------------------------------------------------------------
def _sign(request: Request, packed: _Packed, *, coded: _CodedFiles, draft: Draft, desk: Desk) -> Manifest:
    """Makes the manifest and lists it in the draft."""
    manifest = Manifest(
        model=request.model,
        version=request.version,
        spec=packed.spec,
        files=tuple(coded.entries),
        golden=packed.golden.samples,
        created=int(desk.now.timestamp()),
    )
    data = make_manifest_bytes(check_manifest(manifest))
    if read_manifest_bytes(data) != manifest:
        raise InvariantBroken("the manifest does not come back from its own bytes; nothing was published")
    add_manifest(draft, NewVersion(request.model, request.version, data, packed.classic_md5), desk=desk)
    return manifest


def _upload(request: Request, packed: _Packed, *, coded: _CodedFiles, store: ObjectStore, progress: Progress) -> None:
    """Blobs and the ZIP. Nobody sees them before the metadata is written."""
    total, done = sum(map(len, coded.blobs.values())) + len(packed.classic_zip), 0

    def count(sent_bytes: int) -> None:
        nonlocal done
        done += sent_bytes
        progress(done, total)

    count(0)
    for digest, data in coded.blobs.items():
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


def count_download(manifest: Manifest, have: AbstractSet[Digest]) -> int:
    """Payload bytes that a device fetches which has the contents `have`: files as they travel, golden pictures."""
    here, total = set(have), 0
    for entry in manifest.files:
        total += pick_route(entry, here).download_bytes
        here.add(Digest.from_str(entry.sha256))
    return total + sum(sample.size for sample in manifest.golden if Digest.from_str(sample.input) not in here)


def _list_digests(manifest: Manifest | None) -> set[Digest]:
    if manifest is None:
        return set()
    names = [entry.sha256 for entry in manifest.files] + [sample.input for sample in manifest.golden]
    return set(map(Digest.from_str, names))


def _make_report(
    request: Request, packed: _Packed, *, manifest: Manifest, coded_files: list[FileReport], bundle_bytes: int | None
) -> PublishReport:
    """`bundle_bytes` None says that nothing was written."""
    data, classic_size = make_manifest_bytes(manifest), len(packed.classic_zip)
    return PublishReport(
        model=request.model,
        version=request.version,
        manifest=str(Digest.of(data)),
        unchanged=bundle_bytes is None,
        download_bytes=count_download(manifest, set()),
        golden_bytes=sum(sample.size for sample in manifest.golden),
        update_bytes=count_download(manifest, _list_digests(packed.before)),
        manifest_bytes=len(data),
        bundle_bytes=bundle_bytes or 0,
        files=tuple(coded_files),
        classic=ClassicReport(path=_get_classic_path(request), size=classic_size, md5=packed.classic_md5),
        golden=len(packed.golden.samples),
        golden_inherited=packed.inherited,
        notes=packed.notes,
    )
