"""A world for an agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.agent_world import FAST, World, open_origin


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_origin() as origin:
        yield World(tmp_path / "storage", FAST, origin)


@pytest.fixture
def classic_zip(demo_models: Path) -> bytes:
    """The guide's kind of bundle, of a model of our own."""
    from agent.agent_world import make_zip

    folder = demo_models / "gauge" / "1.0.0"
    return make_zip({name: (folder / name).read_bytes() for name in ("gauge.onnx", "labels.txt")})
