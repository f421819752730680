"""Real workers under load: labels that change a hundred times, and a worker that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from edgeferry.app.local_models import open_local_versions
from edgeferry.model.spec import LabelSpec, ModelSpec, Thresholds
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.engine import ChildEngine
from edgeferry.serve.slots import Slots, SlotsSettings

if TYPE_CHECKING:
    from tests.serve.conftest import ApiClient, OpenClient, Until

FLIPS = 100
KNOWN = ("worker", "no_helmet", "fire", "vessel", "gauge", "leak")


@pytest.fixture
def plain(demo_models: Path) -> StoredVersion:
    with open_local_versions([demo_models / "detector" / "1.1.0" / "detector.onnx"]) as (found,):
        return found


@pytest.fixture
def scene(demo_models: Path) -> bytes:
    return sorted((demo_models / "scenes").glob("*.jpg"))[0].read_bytes()


@pytest.fixture
async def slots() -> AsyncIterator[Slots]:
    slots = Slots(ChildEngine(), SlotsSettings(concurrency=2, waiting=64))
    yield slots
    await slots.close()


@pytest.fixture
async def client(slots: Slots, open_client: OpenClient) -> AsyncIterator[ApiClient]:
    async with open_client(slots) as client:
        yield client


def _relabel(plain: StoredVersion, number: int) -> StoredVersion:
    """Version `number`: its labels end with its number, and every other one hides all but the surest."""
    (stage,) = plain.spec.stages
    labels = LabelSpec(names=tuple(f"{name}-{number}" for name in KNOWN), offset=stage.labels.offset)
    thresholds = Thresholds(score=0.8 if number % 2 else 0.3)
    spec = ModelSpec(stages=(msgspec.structs.replace(stage, labels=labels, thresholds=thresholds),))
    return StoredVersion("detector", str(number), f"detector:{number}", plain.folder, spec)


async def test_labels_and_thresholds_that_change_a_hundred_times_are_seen_whole_and_load_nothing(
    slots: Slots, client: ApiClient, plain: StoredVersion, scene: bytes
) -> None:
    await slots.switch(_relabel(plain, 0))
    serving = slots._slots["detector"].serving
    assert serving is not None
    worker = serving.worker.port
    said: list[Any] = []
    flipping = True

    async def load() -> None:
        while flipping:
            answered = await client.post("/v1/models/detector/predict", scene)
            assert answered.status == 200
            said.append(answered.json)

    async def flip() -> None:
        nonlocal flipping
        for number in range(1, FLIPS + 1):
            await slots.prove(_relabel(plain, number))
            await slots.switch(_relabel(plain, number))
            await asyncio.sleep(0.01)
        flipping = False

    await asyncio.gather(flip(), *(load() for _ in range(3)))
    counts: list[set[int]] = [set(), set()]
    for one in said:
        objects = one["answer"]["objects"]
        assert {found["label"].rpartition("-")[2] for found in objects} == {one["version"]}
        least = 0.8 if int(one["version"]) % 2 else 0.3
        assert all(found["score"] >= least for found in objects)
        counts[int(one["version"]) % 2].add(len(objects))
    assert len({one["version"] for one in said}) > FLIPS // 4
    assert all(len(found) == 1 for found in counts), "each version finds what its own threshold lets through"
    assert counts[0] != counts[1], "the two thresholds differ in what they let through"
    now = slots._slots["detector"].serving
    assert now is not None
    assert now.worker.port is worker, "nothing was loaded again"


async def test_of_a_killed_worker_its_requests_are_told_when_to_come_again_and_the_next_are_answered(
    slots: Slots, client: ApiClient, plain: StoredVersion, scene: bytes, until: Until
) -> None:
    began = time.monotonic()
    await slots.switch(_relabel(plain, 0))
    start_s = time.monotonic() - began
    found: list[tuple[float, int, str]] = []
    loading = True

    async def load() -> None:
        while loading:
            answered = await client.post("/score", scene)
            found.append((time.monotonic(), answered.status, answered.headers.get("Retry-After", "")))

    async def kill() -> None:
        nonlocal loading
        await until(lambda: len(found) > 20)
        serving = slots._slots["detector"].serving
        assert serving is not None
        killed_at.append(time.monotonic())
        os.kill(serving.worker.port.pid, signal.SIGKILL)
        seen = len(found)
        await until(lambda: sum(status == 200 for _, status, _ in found[seen:]) > 20)
        loading = False

    killed_at: list[float] = []
    await asyncio.gather(kill(), *(load() for _ in range(4)))
    lost = [(status, retry_after) for _, status, retry_after in found if status != 200]
    assert len(lost) <= 4, "only what it held"
    assert set(lost) <= {(503, "2")}
    first_at = min(at for at, status, _ in found if status == 200 and at > killed_at[0] + 0.05)
    assert first_at - killed_at[0] < 3 * start_s + 1, "a restart, and no pause"
