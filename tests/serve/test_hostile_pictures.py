"""Damaged pictures through the API and a real worker: an answer or a refusal, and good requests do not feel it."""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeferry.app.local_models import open_local_versions
from edgeferry.serve.engine import ChildEngine
from edgeferry.serve.slots import Slots, SlotsSettings
from hostile_pictures import make_seeds, mutate

if TYPE_CHECKING:
    from serve.conftest import ApiClient, OpenClient

SEED = 20261126
SENDERS = 4
REFUSALS = {"picture_unreadable": 400, "picture_too_large": 413, "media_type_refused": 415}
LEAKS = re.compile(r"/|object at|0x[0-9a-fA-F]{6}")
"""Paths, objects and addresses."""
GROWTH_MAX_BYTES = 64 << 20
"""What damaged pictures may leave in a worker: freed heap that nobody has trimmed, no more with more pictures."""


def read_resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def send_damaged(client: ApiClient, dice: random.Random, count: int) -> Counter[str]:
    """How often each outcome came."""
    seen: Counter[str] = Counter()
    seeds = make_seeds()
    for _ in range(count):
        answered = await client.post("/score", mutate(dice.choice(seeds), dice))
        if answered.status == 200:
            seen["answered"] += 1
            continue
        assert REFUSALS.get(answered.code) == answered.status, answered.body
        message = answered.json["error"]["message"]
        assert not LEAKS.search(message), message
        seen[answered.code] += 1
    return seen


async def time_good(client: ApiClient, picture: bytes, count: int) -> float:
    """The median of some good requests, seconds."""
    taken_s = []
    for _ in range(count):
        began = time.perf_counter()
        assert (await client.post("/score", picture)).status == 200
        taken_s.append(time.perf_counter() - began)
        await asyncio.sleep(0.01)
    return statistics.median(taken_s)


async def send_all(client: ApiClient, picture: bytes, pid: int, count: int) -> Counter[str]:
    """Damaged pictures from several senders, and a good one among them; returns what came of the damaged ones."""
    seen = sum([await send_damaged(client, random.Random(SEED), count // 10)], Counter[str]())
    before_bytes, alone_s = read_resident_bytes(pid), await time_good(client, picture, 20)
    senders = [send_damaged(client, random.Random(SEED + n), count * 9 // 10 // SENDERS) for n in range(1, SENDERS + 1)]
    *counts, among_s = await asyncio.gather(*senders, time_good(client, picture, 50))
    assert among_s < 20 * alone_s + 0.1, (among_s, alone_s)
    assert read_resident_bytes(pid) - before_bytes < GROWTH_MAX_BYTES
    return sum(counts, seen)


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(20_000, marks=pytest.mark.soak_full)], ids=lambda count: f"{count} pictures"
)
async def test_damaged_pictures_are_answered_or_refused_and_good_ones_do_not_feel_it(
    open_client: OpenClient, demo_models: Path, count: int
) -> None:
    slots = Slots(ChildEngine(), SlotsSettings(concurrency=2, waiting=64))
    picture = (demo_models / "scenes" / "pump-room.jpg").read_bytes()
    try:
        with open_local_versions([demo_models / "detector" / "1.1.0" / "detector.onnx"]) as (version,):
            await slots.switch(version)
            worker: Any = slots._slots[version.model].serving.worker.port  # type: ignore[union-attr]
            async with open_client(slots) as client:
                seen = await send_all(client, picture, worker.pid, count)
        assert worker.alive and worker is slots._slots[version.model].serving.worker.port  # type: ignore[union-attr]
    finally:
        await slots.close()
    assert sum(seen.values()) == count
    assert set(seen) >= {"answered", "picture_unreadable", "picture_too_large"}, "hardly anything was damaged"
