"""Versions to put into a repository, and a look at what lies on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeferry.model.digest import Digest, Hasher
from edgeferry.model.manifest import FileEntry, Golden, Manifest, make_manifest_bytes
from edgeferry.model.spec import AnswerSpec, InputSpec, ModelSpec, Stage
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.repository import Repository

SPEC = ModelSpec(
    stages=(
        Stage(
            file="model.onnx",
            task="classification",
            input=InputSpec(width=8, height=8, layout="nchw", dtype="float32"),
            answer=AnswerSpec(family="classification"),
        ),
    )
)


def make_entry(path: str, data: bytes) -> FileEntry:
    """The manifest's words for a file of these bytes."""
    hasher = Hasher()
    hasher.update(data)
    return FileEntry(path=path, sha256=str(hasher.get_digest()), md5=hasher.get_md5_base64(), size=len(data))


def add_blob(repository: Repository, data: bytes) -> Digest:
    """Puts content into the repository the way a finished download does."""
    digest = Digest.of(data)
    temp = repository.partial_folder / digest.hex
    temp.write_bytes(data)
    repository.adopt_blob(digest, temp)
    return digest


def add_version(
    repository: Repository,
    version: str,
    files: Mapping[str, bytes],
    *,
    model: str = "detector",
    golden: tuple[bytes, ...] = (),
) -> StoredVersion:
    """Stores a signed version whose content is here."""
    for data in (*files.values(), *golden):
        add_blob(repository, data)
    manifest = Manifest(
        model=model,
        version=version,
        spec=SPEC,
        files=tuple(make_entry(path, data) for path, data in files.items()),
        golden=tuple(Golden(input=str(Digest.of(data)), size=len(data), truth=()) for data in golden),
    )
    data = make_manifest_bytes(manifest)
    return repository.store_version(manifest, data, str(Digest.of(data)))


def list_tree(folder: Path) -> list[str]:
    """Every name below `folder`, sorted: what a crash may have left behind shows here."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def list_names(folder: Path) -> list[str]:
    """Names of the entries of `folder`, sorted."""
    return sorted(path.name for path in folder.iterdir())
