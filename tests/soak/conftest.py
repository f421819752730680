"""What several files of this folder use."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from soak.crash_site import CrashSite, open_crash_site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CrashSite]:
    """One for all tests of a file: each life begins with a folder of its own."""
    async with open_crash_site(tmp_path_factory.mktemp("crashes")) as found:
        yield found
