"""The vectors of docs/formats/manifest.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeferry.errors import ManifestInvalid
from edgeferry.model.manifest import make_manifest_bytes, read_manifest_bytes

VECTORS = Path(__file__).parent.parent / "vectors" / "manifest"


@pytest.mark.parametrize("path", sorted(VECTORS.glob("good-*.json")), ids=lambda path: path.stem)
def test_every_good_vector_is_read_and_written_to_the_same_bytes(path: Path) -> None:
    assert make_manifest_bytes(read_manifest_bytes(path.read_bytes())) == path.read_bytes()


@pytest.mark.parametrize("path", sorted(VECTORS.glob("bad-*.json")), ids=lambda path: path.stem)
def test_every_bad_vector_is_refused(path: Path) -> None:
    with pytest.raises(ManifestInvalid):
        read_manifest_bytes(path.read_bytes())


def test_the_vectors_are_there() -> None:
    assert len(list(VECTORS.glob("good-*.json"))) >= 2
    assert len(list(VECTORS.glob("bad-*.json"))) >= 20
