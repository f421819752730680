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
    nices: list[int] = []
    brakes: set[Brake] = set()

    async def start(_: StoredVersion, settings: WorkerSettings, brake: Brake) -> Started:
        brakes.add(brake)
        nices.append(settings.nice)
        return Started()

    monkeypatch.setattr(engine_file, "start_worker", start)
    engine, version = ChildEngine(), cast("StoredVersion", None)
    first = await engine.start(version)
    second = await engine.start(version)
    cast("Started", first).alive = cast("Started", second).alive = False
    await engine.start(version)
    assert nices == [0, 10, 0] and len(brakes) == 1
