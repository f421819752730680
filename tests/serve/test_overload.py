"""More requests than a server can answer, over HTTP: who is refused, how fast, and what those get who are not."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import TYPE_CHECKING

from edgeferry.serve.fake import FakeEngine
from edgeferry.serve.slots import Slots, SlotsSettings

if TYPE_CHECKING:
    from tests.serve.conftest import ApiClient, MakeVersion, OpenClient, Until

INFER_S = 0.05
CORES = 2


async def _time(client: ApiClient) -> tuple[int, str, float]:
    """Status, Retry-After and seconds of one request."""
    began = time.perf_counter()
    answered = await client.post("/score")
    return answered.status, answered.headers.get("Retry-After", ""), time.perf_counter() - began


async def test_at_twice_capacity_the_rest_is_refused_at_once_and_the_accepted_wait_no_longer_than_the_queue(
    engine: FakeEngine, make_version: MakeVersion, open_client: OpenClient
) -> None:
    slots = Slots(engine, SlotsSettings(concurrency=CORES, waiting=4))
    await slots.switch(make_version())
    engine.infer_s = INFER_S
    async with open_client(slots) as client:
        pause_s = INFER_S / CORES / 2
        tasks = []
        for _ in range(60):
            tasks.append(asyncio.create_task(_time(client)))
            await asyncio.sleep(pause_s)
        found = await asyncio.gather(*tasks)
    refused = [one for one in found if one[0] == 503]
    accepted = [one for one in found if one[0] == 200]
    assert len(refused) + len(accepted) == 60
    assert len(refused) >= 15
    assert len(accepted) >= 20
    assert {retry_after for _, retry_after, _ in refused} == {"1"}
    assert median(took_s for _, _, took_s in refused) < 0.01
    assert median(took_s for _, _, took_s in accepted) < (CORES + 4 + 2) / CORES * INFER_S, "a full queue, and no more"
    assert slots.gate.taken == 0
    await slots.close()


async def test_callers_who_leave_make_room_for_those_who_come(
    engine: FakeEngine, make_version: MakeVersion, open_client: OpenClient, until: Until
) -> None:
    slots = Slots(engine, SlotsSettings(concurrency=1, waiting=1))
    await slots.switch(make_version())
    engine.infer_s = 60
    async with open_client(slots) as client:
        leaving = [asyncio.create_task(client.post("/score")) for _ in range(2)]
        await until(lambda: slots.gate.taken == 2)
        assert (await client.post("/score")).status == 503
        for task in leaving:
            task.cancel()
        await until(lambda: slots.gate.taken == 0)
        engine.infer_s = 0
        assert (await client.post("/score")).status == 200
    await slots.close()


async def test_requests_of_a_paused_model_are_answered_after_the_switch_and_the_rest_is_refused_at_once(
    engine: FakeEngine, make_version: MakeVersion, open_client: OpenClient, until: Until
) -> None:
    engine.room = False
    slots = Slots(engine, SlotsSettings(concurrency=1, waiting=1, aside=5))
    await slots.switch(make_version("1.0.0"))
    async with open_client(slots) as client:
        await slots.prove(make_version("2.0.0"))
        assert (await client.get("/readyz")).status == 503
        waiting = [asyncio.create_task(client.post("/v1/models/detector/predict")) for _ in range(5)]
        await until(lambda: slots.gate.taken == 5)
        status, retry_after, _ = await _time(client)
        assert (status, retry_after) == (503, "1")
        await slots.switch(make_version("2.0.0"))
        answered = await asyncio.gather(*waiting)
    assert [(one.status, one.json["version"]) for one in answered] == [(200, "2.0.0")] * 5
    await slots.close()
