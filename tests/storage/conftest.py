"""A repository on a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeferry.storage.repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """An empty repository, prepared."""
    made = Repository(tmp_path / "storage", reserve_bytes=0)
    made.prepare()
    return made
