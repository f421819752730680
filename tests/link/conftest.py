"""Skips, saying what is missing, where no link can be made."""

from __future__ import annotations

import pytest

from link.thin_link import find_missing


@pytest.fixture(scope="session")
def needs_link() -> None:
    """For tests that open a link."""
    missing = find_missing()
    if missing is not None:
        pytest.skip(missing)
