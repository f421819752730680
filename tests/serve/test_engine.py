"""Workers as the slots start them: who gives way to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest

from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.brake import Brake
from edgeferry.runtime.child import WorkerSettings
from edgeferry.serve import engine as engine_file
from edgeferry.serve.engine import ChildEngine


@dataclass
class Started:
    """A worker as far as the engine looks at it."""

    alive: bool = True


async def test_a_load_gives_way_only_where_another_worker_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[tuple[int, bool]] = []
    brakes: set[Brake] = set()

    async def start(_: StoredVersion, settings: WorkerSettings, brake: Brake) -> Started:
        brakes.add(brake)
        ways.append((settings.nice, settings.idle))
        return Started()

    monkeypatch.setattr(engine_file, "start_worker", start)
    engine, version = ChildEngine(), cast("StoredVersion", None)
    first = await engine.start(version)
    second = await engine.start(version)
    cast("Started", first).alive = cast("Started", second).alive = False
    await engine.start(version)
    assert ways == [(0, False), (10, True), (0, False)] and len(brakes) == 1
