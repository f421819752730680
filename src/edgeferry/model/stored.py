"""StoredVersion: one version as it lies on this device, whole and verified. What agent and serve hand to each other.

Rules:
- A pure value; the folder it names is read only through `storage/` and by the worker.
- `identity` names the version's content: manifest digest, or for classic updates the digest made from the record's key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeferry.model.manifest import Golden
from edgeferry.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class GoldenFile:
    """A golden sample with the local path of its picture."""

    golden: Golden
    path: Path


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version that is complete on disk: `folder` holds the files that `spec` names."""

    model: str
    version: str
    identity: str
    folder: Path
    spec: ModelSpec
    golden: tuple[GoldenFile, ...] = ()

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"
