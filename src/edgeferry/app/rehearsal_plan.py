"""What a rehearsal plays: two versions of a published repository, what leads from one to the other, and its forecast.

What this file leaves to others: playing it (`rehearsal.py`).

Rules:
- What is read is verified from the repository's own first root; the device of the rehearsal pins that root.
- A repository that is a folder is served as it lies there. Of any other, what the two versions need is copied first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgeferry.agent.plan import plan_artifacts
from edgeferry.agent.record import Artifact
from edgeferry.app.model_files import MODEL_MAX_BYTES
from edgeferry.app.operator import FIRST_ROOT, HttpReader, read_unpinned
from edgeferry.errors import ConfigInvalid, MetadataUntrusted, ObjectMissing
from edgeferry.link.forecast import Forecast, LinkRate, Load, forecast_transfer
from edgeferry.link.policy import LinkPolicy
from edgeferry.link.route import list_digests
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest, read_manifest_bytes
from edgeferry.names import require_model_name, require_version
from edgeferry.storage.blob_store import is_azure_url, open_blob_store
from edgeferry.storage.files import make_folder, write_atomically
from edgeferry.transport.http import HttpSettings, open_http
from edgeferry.trust.bundle_object import BUNDLE_MAX_BYTES, get_bundle_path, read_bundle_object, read_small
from edgeferry.trust.draft import Draft, Listed, ObjectReader, require_object
from edgeferry.trust.verifier import get_manifest_path

NO_VERSION = "none"
"""What `--from` says for a device that has nothing."""


@dataclass(frozen=True, slots=True)
class Source:
    """A published repository as the operator names it: a folder, a store's URL, or an HTTP server's and its query."""

    repo: str
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    sas: str = field(default="", repr=False)
    ca_pem: bytes | None = field(default=None, repr=False)

    def find_folder(self) -> Path | None:
        """Where it is a folder; raises ConfigInvalid when that is not there."""
        parts = urlsplit(self.repo)
        if "://" in self.repo and parts.scheme != "file":
            return None
        folder = Path(unquote(parts.path) if "://" in self.repo else self.repo).expanduser().absolute()
        if not folder.is_dir():
            raise ConfigInvalid(f"expected the folder or the URL of a published repository, found {self.repo!r:.200}")
        return folder


@dataclass(frozen=True, slots=True)
class RehearsalPlan:
    """An update, before it is played. `folder` holds what is published; `base` is "" for a device that has nothing.

    `picture` is one that both versions must know something about, None where there is none.
    """

    folder: Path
    model: str
    base: str
    version: str
    artifacts: tuple[Artifact, ...]
    metadata_bytes: tuple[int, ...]
    picture: bytes | None = field(default=None, repr=False)

    @property
    def route(self) -> str:
        """`patch`, `full`, `patch, full` or `nothing`."""
        return get_route(self.artifacts)

    def forecast(self, link: LinkRate, *, now: float) -> Forecast:
        """What the update will take over `link`, by the device's own arithmetic."""
        load = Load(tuple(one.size for one in self.artifacts), metadata=self.metadata_bytes)
        return forecast_transfer(load, link, LinkPolicy(), now=now)


def get_route(artifacts: Iterable[Artifact]) -> str:
    """What an update takes, in a word or two: files by patch or in full; golden pictures do not count."""
    kinds = {one.kind for one in artifacts if one.blob != one.target or one.codec != "none"}
    return ", ".join(sorted(kinds, reverse=True)) or ("files as they are" if list(artifacts) else "nothing")


async def read_plan(source: Source, model: str, *, version: str, base: str, copy_to: Path) -> RehearsalPlan:
    """Reads what leads `model` from `base` ("": the version before; "none") to `version` ("": the newest).

    Raises:
        ConfigInvalid: there is no repository. ObjectMissing: it has no such version.
        MetadataUntrusted, ManifestInvalid: it is damaged. LinkError, StorageError leaves: it cannot be read.
    """
    require_model_name(model)
    folder = source.find_folder()
    async with _open_reader(source) as reader:
        keeping = Copying(reader, copy_to) if folder is None else reader
        return await asyncio.to_thread(_read_plan, keeping, folder or copy_to, model, version=version, base=base)


@asynccontextmanager
async def _open_reader(source: Source) -> AsyncIterator[ObjectReader]:
    parts = urlsplit(source.repo)
    is_http = parts.scheme in ("http", "https") and not is_azure_url(source.repo, source.environ)
    if not is_http:
        yield open_blob_store(source.repo, source.environ)
        return
    async with open_http(HttpSettings(ca_pem=source.ca_pem)) as http:
        base, _, query = source.repo.partition("?")
        query = source.sas.lstrip("?") or query
        yield HttpReader(http, base.rstrip("/"), query=query, loop=asyncio.get_running_loop())


class Copying:
    """A reader that keeps what it reads in a folder. A repository that nobody vouches for must not choose where."""

    def __init__(self, reader: ObjectReader, folder: Path) -> None:
        self._reader, self._folder = reader, folder.resolve()

    def find(self, path: str, max_bytes: int) -> tuple[bytes, str] | None:
        """See ObjectReader.find."""
        target = (self._folder / path).resolve()
        if not target.is_relative_to(self._folder):
            raise MetadataUntrusted(f"expected a path inside the repository, found {path!r:.80}")
        found = self._reader.find(path, max_bytes)
        if found is not None:
            make_folder(target.parent)
            write_atomically(target, found[0])
        return found


def _read_plan(reader: ObjectReader, folder: Path, model: str, *, version: str, base: str) -> RehearsalPlan:
    draft = read_unpinned(reader)
    target = _require_listed(draft, model, version)
    before = _find_base(draft, model, target, base)
    bundle = _read_bundle(reader, model)
    manifest = _read_manifest(reader, target)
    old = _read_manifest(reader, before) if before is not None else None
    others = [read_manifest_bytes(data) for path, data in bundle.files.items() if path.startswith("targets/")]
    others = [one for one in others if one.version != manifest.version]
    have = list_digests(old) if old is not None else frozenset[Digest]()
    artifacts = plan_artifacts(manifest, have | read_small(bundle.files).keys(), others=others)
    if isinstance(reader, Copying):
        _copy_blobs(reader, [manifest, *([old] if old is not None else [])], artifacts)
    is_bundled = get_manifest_path(model, target.version, target.digest) in bundle.files
    return RehearsalPlan(
        folder=folder,
        model=model,
        base=before.version if before is not None else "",
        version=target.version,
        artifacts=artifacts,
        metadata_bytes=(bundle.size_bytes,) if is_bundled else (bundle.size_bytes, target.size_bytes),
        picture=_find_picture(reader, old),
    )


def _require_listed(draft: Draft, model: str, version: str) -> Listed:
    listed = draft.list_versions(model)
    if not version and listed:
        return listed[-1]
    found = next((one for one in listed if one.version == version), None)
    if found is None:
        known = ", ".join(one.version for one in listed) or "no version at all"
        raise ObjectMissing(f"expected {model} {version} in the repository, found {known}")
    return found


def _find_base(draft: Draft, model: str, target: Listed, base: str) -> Listed | None:
    if base == NO_VERSION:
        return None
    if base:
        found = _require_listed(draft, model, require_version(base))
        if found.digest == target.digest:
            raise ConfigInvalid(f"expected two versions, found {model} {base} twice")
        return found
    listed = draft.list_versions(model)
    place = listed.index(target)
    return listed[place - 1] if place else None


@dataclass(frozen=True, slots=True)
class _Bundle:
    """The model's bundle object, empty where there is none."""

    size_bytes: int = 0
    files: Mapping[str, bytes] = field(default_factory=dict)


def _read_bundle(reader: ObjectReader, model: str) -> _Bundle:
    found = reader.find(get_bundle_path(model), BUNDLE_MAX_BYTES)
    return _Bundle(len(found[0]), read_bundle_object(found[0])) if found is not None else _Bundle()


def _read_manifest(reader: ObjectReader, listed: Listed) -> Manifest:
    return read_manifest_bytes(require_object(reader, get_manifest_path(listed.model, listed.version, listed.digest)))


def _copy_blobs(reader: Copying, manifests: Iterable[Manifest], artifacts: Iterable[Artifact]) -> None:
    """All that an update may ask for: its route, each version in full, and lists of chunks."""
    wholes = [one for manifest in manifests for one in plan_artifacts(manifest, frozenset(), whole=True)]
    names = {name for one in (*artifacts, *wholes) for name in (one.blob, one.chunks) if name}
    for name in sorted(names):
        reader.find(Digest.from_str(name).blob_path, MODEL_MAX_BYTES)


def _find_picture(reader: ObjectReader, manifest: Manifest | None) -> bytes | None:
    if manifest is None or not manifest.golden:
        return None
    golden = manifest.golden[0]
    found = reader.find(Digest.from_str(golden.input).blob_path, golden.size)
    return found[0] if found is not None else None


def read_root(plan: RehearsalPlan) -> Path:
    """The file of the repository's first root."""
    return plan.folder / FIRST_ROOT
