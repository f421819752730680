"""A repository in a folder with one model, and what tampers with it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgeferry.errors import ObjectMissing
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import FileEntry, Manifest, Source, make_manifest_bytes
from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, ModelSpec, Stage
from edgeferry.storage.blob_store import BlobStore, open_blob_store
from edgeferry.trust.draft import open_draft
from edgeferry.trust.keys import KeyFolder
from edgeferry.trust.signer import Desk, NewVersion, add_manifest, commit, init_repository
from edgeferry.trust.verifier import Verifier

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
SPEC = ModelSpec(
    stages=(
        Stage(
            file="model.onnx",
            task="detection",
            input=InputSpec(width=320, height=320, layout="nchw", dtype="float32", std=(255.0,)),
            answer=AnswerSpec(family="ssd"),
            labels=LabelSpec(names=("worker", "no_helmet", "fire", "vessel", "gauge", "leak")),
        ),
    )
)


def make_manifest(model: str = "detector", version: str = "1.0.0") -> bytes:
    """A manifest as large as a real one."""
    digest = str(Digest.of(f"{model} {version}".encode()))
    source = Source(kind="full", codec="efd1", blob=digest, size=700_000, memory=8_000_000)
    entry = FileEntry(path="model.onnx", sha256=digest, md5="wPJ4M5M4BVAkuk6fdJYODg==", size=900_000, sources=(source,))
    return make_manifest_bytes(Manifest(model=model, version=version, spec=SPEC, files=(entry,), created=1_795_000_000))


@dataclass
class World:
    """One repository with its keys, a clock, and the device's side."""

    folder: Path
    now: dt.datetime = NOW
    fetched: list[str] = field(default_factory=list)
    replaced: dict[str, bytes | Exception | None] = field(default_factory=dict)
    """What stands between the repository and the device: other bytes, nothing (None), or an error."""

    @property
    def store(self) -> BlobStore:
        return open_blob_store(str(self.folder / "repo"), {})

    @property
    def keys(self) -> KeyFolder:
        return KeyFolder(self.folder / "keys")

    @property
    def desk(self) -> Desk:
        return Desk(self.store, self.keys, self.now)

    @property
    def trust(self) -> Path:
        return self.folder / "trust"

    def publish(self, model: str = "detector", version: str = "1.0.0", *contents: bytes) -> Digest:
        data = make_manifest(model, version)
        draft = open_draft(self.store, self.keys)
        add_manifest(draft, NewVersion(model, version, data, contents=contents), desk=self.desk)
        commit(draft, self.desk)
        return Digest.of(data)

    def fetch(self, path: str, max_bytes: int) -> bytes:
        self.fetched.append(path)
        data = self.replaced[path] if path in self.replaced else self.read(path)
        if isinstance(data, Exception):
            raise data
        if data is None:
            raise ObjectMissing(f"no {path}")
        return data

    def read(self, path: str) -> bytes | None:
        found = self.store.find(path, 10 << 20)
        return found.data if found else None

    def path_of(self, name: str) -> str:
        """The newest `metadata/<n>.<name>.json`."""
        found = [path for path in self.store.list_paths("metadata") if path.endswith(f".{name}.json")]
        return max(found, key=lambda path: int(path.split("/")[1].split(".")[0]))

    def open_verifier(self, *, now: Callable[[], float] | None = None, pin: bytes | Digest | None = None) -> Verifier:
        root = self.keys.read_root() if pin is None else pin
        return Verifier(self.trust, root, self.fetch, now or self.now.timestamp)

    def fetch_manifest(self, model: str = "detector", version: str = "1.0.0", digest: Digest | None = None) -> bytes:
        wanted = digest or Digest.of(make_manifest(model, version))
        return self.open_verifier().fetch_manifests(model, version, wanted).manifest


@pytest.fixture
def empty_world(tmp_path: Path) -> World:
    world = World(tmp_path)
    init_repository(world.desk)
    return world


@pytest.fixture
def world(empty_world: World) -> World:
    empty_world.publish()
    return empty_world
