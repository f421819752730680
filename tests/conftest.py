"""Fixtures that every room uses: where third-party models lie, and the plugins that make real servers."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("house", deadline=None)  # a busy machine is not a failure
hypothesis.settings.load_profile("house")

pytest_plugins = ["fixtures_azurite", "fixtures_azure", "fixtures_node", "fixtures_postgres", "fixtures_s3"]

ROOT = Path(__file__).resolve().parent.parent
_SKIPPED: list[str] = []
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


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remembers skips, so that a run that must not skip can fail on them."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _SKIPPED.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With EDGEFERRY_NO_SKIPS=1 (the gate) a skipped test fails the run: a real component was missing."""
    if os.environ.get("EDGEFERRY_NO_SKIPS") == "1" and _SKIPPED and session.exitstatus == 0:
        print(f"\nEDGEFERRY_NO_SKIPS: {len(_SKIPPED)} skipped: {', '.join(_SKIPPED[:10])}")
        session.exitstatus = 1


LONG_FILES = (
    "test_device_sdk_renewal.py", "test_device_sdk.py", "test_signed_updates.py",
    "test_device_crashes.py", "test_power_cuts.py", "test_kills.py",
)  # fmt: skip
"""They take minutes: begun last, one of them would run alone on one core in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first; all others in their order."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)
