"""Manifest: the signed list of what one model version consists of; canonical JSON both ways.

What this file leaves to others: signatures (`trust/`), fetching (`agent/`), golden arithmetic (`vision/golden.py`).

Rules:
- Bytes -> Manifest -> bytes gives the same bytes for every manifest that `make_manifest_bytes` wrote.
- Everything is checked before it is believed: names, digests, sizes, the shape of the spec.
- Sizes are bytes. Boxes are (top, left, bottom, right) in 0..1 of the upright picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from edgeferry.errors import ManifestInvalid, NameInvalid
from edgeferry.model.digest import Digest
from edgeferry.model.spec import ModelSpec, check_spec
from edgeferry.names import require_file_name, require_model_name, require_version

SCHEMA = 1
MANIFEST_MAX_BYTES = 1_000_000
MEMORY_MAX_BYTES = 4 << 30

FULL_CODECS = frozenset({"none", "zstd", "efd1"})
PATCH_CODECS = frozenset({"efd1"})
"""How sources of this release travel (docs/formats/coded.md, patch.md). Others are read, and passed over by a route."""


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One way to come by a file: a blob to download, and what turns it, with `base` for a patch, into the file."""

    kind: Literal["full", "patch"]
    codec: str
    blob: str
    size: int
    memory: int = 0
    base: str = ""
    chunks: str = ""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One file of the version. `sha256` is written `sha256:<hex>`; `md5` is base64."""

    path: str
    sha256: str
    md5: str
    size: int
    sources: tuple[Source, ...] = ()


class TruthObject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is true of a golden picture: a label, and where it has one, its box."""

    label: str
    box: tuple[float, float, float, float] | None = None


class Tolerance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How near an answer must come: `iou` of a box that counts as found; `share` of the truths that must be found."""

    iou: float = 0.5
    share: float = 0.75


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One picture (`input`: digest of its blob, `size` in bytes) and its truth. No objects: nothing may be found."""

    input: str
    size: int
    truth: tuple[TruthObject, ...]
    tolerance: Tolerance = Tolerance()


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model version. `created` is seconds since 1970; `min_runtime` the oldest release that can serve it."""

    schema: int = SCHEMA
    model: str
    version: str
    spec: ModelSpec
    files: tuple[FileEntry, ...]
    golden: tuple[Golden, ...] = ()
    slim: dict[str, str | float] | None = None
    min_runtime: str = ""
    created: int = 0

    def find_file(self, path: str) -> FileEntry | None:
        """The entry of that name, or None."""
        return next((entry for entry in self.files if entry.path == path), None)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A version's manifest as signed metadata vouches for it, and what came along with it in the same fetch.

    Attributes:
        manifest: its bytes.
        others: bytes of other versions' manifests, signed likewise.
        contents: of small files, by the digest that they have; nobody has signed them but by that digest.
    """

    manifest: bytes
    others: tuple[bytes, ...] = ()
    contents: Mapping[Digest, bytes] = field(default_factory=dict)


_DECODER = msgspec.json.Decoder(Manifest)


def make_manifest_bytes(manifest: Manifest) -> bytes:
    """Canonical JSON: sorted keys, no blanks, defaults left out, `schema` always there."""
    plain = msgspec.to_builtins(manifest)
    return msgspec.json.encode({"schema": manifest.schema, **plain}, order="sorted")


def read_manifest_bytes(data: bytes) -> Manifest:
    """Parses and checks a manifest; raises ManifestInvalid."""
    if len(data) > MANIFEST_MAX_BYTES:
        raise ManifestInvalid(f"expected a manifest of at most {MANIFEST_MAX_BYTES} bytes, found {len(data)}")
    try:
        manifest = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestInvalid(f"expected a manifest of schema {SCHEMA}: {error}") from error
    return check_manifest(manifest)


def check_manifest(manifest: Manifest) -> Manifest:
    """Returns `manifest` when every name, digest and size in it is sane; raises ManifestInvalid."""
    if manifest.schema != SCHEMA:
        raise ManifestInvalid(f"expected manifest schema {SCHEMA}, found {manifest.schema}: update this device first")
    try:
        require_model_name(manifest.model)
        require_version(manifest.version)
        for entry in manifest.files:
            require_file_name(entry.path)
    except NameInvalid as error:
        raise ManifestInvalid(error.message) from error
    paths = [entry.path for entry in manifest.files]
    if len(set(paths)) != len(paths) or not paths:
        raise ManifestInvalid(f"expected different file names, at least one, found {paths!r:.200}")
    if "manifest.json" in paths:
        raise ManifestInvalid("expected no bundle file named manifest.json: the device stores the manifest under it")
    for entry in manifest.files:
        _check_file(entry)
    for golden in manifest.golden:
        _check_golden(golden)
    check_spec(manifest.spec)
    _check_stage_files(manifest)
    return manifest


def _check_file(entry: FileEntry) -> None:
    Digest.from_str(entry.sha256)
    if entry.size < 0:
        raise ManifestInvalid(f"expected a size of 0 or more for {entry.path}, found {entry.size}")
    for source in entry.sources:
        Digest.from_str(source.blob)
        if source.size < 0 or not 0 <= source.memory <= MEMORY_MAX_BYTES:
            raise ManifestInvalid(f"expected sane size and memory for a source of {entry.path}")
        if source.chunks:
            Digest.from_str(source.chunks)
        if source.kind == "patch":
            Digest.from_str(source.base)
        elif source.base:
            raise ManifestInvalid(f"expected no base for a full source of {entry.path}")


def _check_golden(golden: Golden) -> None:
    Digest.from_str(golden.input)
    if golden.size < 0:
        raise ManifestInvalid(f"expected a size of 0 or more for a golden input, found {golden.size}")
    if not (0.0 < golden.tolerance.iou <= 1.0 and 0.0 < golden.tolerance.share <= 1.0):
        raise ManifestInvalid("expected golden tolerances in 0..1, above 0")


def _check_stage_files(manifest: Manifest) -> None:
    paths = {entry.path for entry in manifest.files}
    for stage in manifest.spec.stages:
        for name in (stage.file, stage.labels.file):
            if name and name not in paths:
                raise ManifestInvalid(
                    f"expected the spec's file {name!r:.80} among the version's files {sorted(paths)!r:.200}"
                )
