"""One hub and one origin for all tests of a file."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from e2e.site import Device, Twin
from e2e.world import QUICK, World, open_world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A running hub and origin; the tests of a file that use it run on one loop, in one process."""
    async with open_world(tmp_path_factory.mktemp("world")) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(world: World) -> AsyncIterator[tuple[Device, Twin]]:
    """A device for all tests that leave it as they found it: in use, settled on a good bundle."""
    async with world.open_device(settings=QUICK) as (device, twin):
        yield device, twin
