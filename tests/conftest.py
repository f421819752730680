"""Fixtures that every room uses: where third-party models lie, and the plugins that make real servers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("EDGEFERRY_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Folder of third-party models and photos; skips, saying so, where it is not there."""
    folder = SHARED / "models"
    if not (folder / "MODELS.md").is_file():
        pytest.skip(f"third-party models are not at {folder}: set EDGEFERRY_SHARED to the folder that holds models/")
    return folder


@pytest.fixture(scope="session")
def demo_models() -> Path:
    """Folder of our own trained models, scenes and golden truth."""
    return ROOT / "models"
