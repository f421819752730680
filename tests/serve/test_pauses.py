"""Switches where memory does not allow two workers, over the fake engine: who waits, who fails, what comes back."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from edgeferry.errors import Conflict, GoldenMismatch, QueueFull, WorkerStartFailed
from edgeferry.serve.fake import FakeEngine
from edgeferry.serve.slot import SlotSettings
from edgeferry.serve.slots import Slots, SlotsSettings

if TYPE_CHECKING:
    from tests.serve.conftest import MakeVersion, OpenClient, Until


async def _ask(slots: Slots, model: str = "detector") -> str:
    """The version that answered."""
    async with slots.lease(model) as lease:
        await lease.infer(b"cat", timeout_s=5)
        return lease.version.version


def _count_alive(engine: FakeEngine) -> int:
    return sum(worker.alive for worker in engine.started)


@pytest.fixture
def engine() -> FakeEngine:
    """No room for two, and a load that takes a moment."""
    return FakeEngine(room=False, start_s=0.05)


async def test_what_serves_ends_before_the_next_one_is_loaded_and_requests_wait(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version("1.0.0"))
    proving = asyncio.create_task(slots.prove(make_version("2.0.0")))
    await until(lambda: engine.started[0].closed)
    waiting = [asyncio.create_task(_ask(slots)) for _ in range(20)]
    await proving
    assert _count_alive(engine) == 1
    assert not any(task.done() for task in waiting), "the candidate answers nothing before the switch"
    await slots.switch(make_version("2.0.0"))
    assert set(await asyncio.gather(*waiting)) == {"2.0.0"}, "more than the queue of every day has places for"
    assert len(engine.started) == 2
    assert slots.get_health("detector").deaths == 0


@pytest.mark.parametrize("why", ["a switch without room", "a worker that died"])
async def test_who_waits_for_one_model_takes_no_place_from_another(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until, why: str
) -> None:
    for model in ("detector", "other"):
        await slots.switch(make_version("1.0.0", model=model))
    engine.infer_s, engine.start_s = 0.1, 0.3
    waiting = [asyncio.create_task(_ask(slots)) for _ in range(4)]  # all places: two run, one stands ready, one waits
    await until(lambda: slots.gate.taken == 4)
    switching = None
    if why == "a worker that died":
        engine.started[0].die()
    else:
        switching = asyncio.create_task(slots.switch(make_version("2.0.0")))
    await until(lambda: all(task.done() for task in waiting[:3]) and not slots.is_alive("detector"))
    assert set(await asyncio.gather(*(_ask(slots, "other") for _ in range(4)))) == {"1.0.0"}
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert found[3:] == ["1.0.0" if switching is None else "2.0.0"]
    if switching is not None:
        await switching
    assert slots.gate.taken == 0


@pytest.mark.parametrize("ways", ["pictures", "tensors"])
async def test_what_waits_for_a_switch_is_bounded_in_memory_and_the_rest_is_told_at_once_to_come_back(
    engine: FakeEngine, make_version: MakeVersion, until: Until, open_client: OpenClient, ways: str
) -> None:
    slots = Slots(engine, SlotsSettings(concurrency=2, aside_max_bytes=4000))
    await slots.switch(make_version("1.0.0"))
    engine.start_s = 1.0
    shape = {"name": "x", "shape": [60, 4], "datatype": "FP32"}
    path, options = (
        ("/score", {"data": b"a" * 960})
        if ways == "pictures"
        else ("/v2/models/detector/infer", {"data": json.dumps({"inputs": [{**shape, "data": [0.5] * 240}]})})
    )
    async with open_client(slots) as client:
        switching = asyncio.create_task(slots.switch(make_version("2.0.0")))
        await until(lambda: engine.started[0].closed)
        waiting = [asyncio.create_task(client.post(path, **options)) for _ in range(4)]
        await until(lambda: slots.gate.taken == 4)
        refused = await client.post(path, **options)
        assert (refused.status, "Retry-After" in refused.headers) == (503, True)
        assert not switching.done(), "told at once"
        await switching
        assert [(await one).status for one in waiting] == [200] * 4
    await slots.close()


async def test_one_request_larger_than_all_that_may_wait_waits_alone(
    engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    slots = Slots(engine, SlotsSettings(concurrency=2, aside_max_bytes=1))
    await slots.switch(make_version("1.0.0"))
    switching = asyncio.create_task(slots.switch(make_version("2.0.0")))
    await until(lambda: engine.started[0].closed)
    async with slots.lease("detector", size_bytes=1000) as lease:
        assert lease.version.version == "2.0.0"
    await switching
    await slots.close()


async def test_no_resident_is_loaded_into_the_memory_that_a_switch_waits_for(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version("1.0.0"))
    proving = asyncio.create_task(slots.prove(make_version("2.0.0")))
    await until(lambda: engine.started[0].closed)
    with pytest.raises(Conflict):
        await slots.load_resident(make_version("0.9.0"))
    await proving
    assert len(engine.started) == 2


async def test_requests_under_way_are_answered_before_what_serves_ends(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version("1.0.0"))
    engine.infer_s = 0.1
    under_way = asyncio.create_task(_ask(slots))
    await until(lambda: engine.started[0].running == 1)
    await slots.switch(make_version("2.0.0"))
    assert await under_way == "1.0.0"


@pytest.mark.parametrize("error", [GoldenMismatch("found 1 of 5"), WorkerStartFailed("no memory")])
async def test_what_served_is_back_when_the_next_one_fails_and_no_request_fails_with_it(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until, error: Exception
) -> None:
    await slots.switch(make_version("1.0.0"))
    await _ask(slots)
    engine.failures["detector:2.0.0"] = [error]
    proving = asyncio.create_task(slots.prove(make_version("2.0.0")))
    await until(lambda: engine.started[0].closed)
    waiting = asyncio.create_task(_ask(slots))
    with pytest.raises(type(error)):
        await proving
    assert slots.is_alive("detector"), "it is back before the failure is told"
    assert await waiting == "1.0.0"
    health = slots.get_health("detector")
    assert (health.answered, health.deaths) == (2, 0), "a pause is no death, and what was counted is kept"


async def test_what_served_is_back_when_the_candidate_is_let_go_of(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.switch(make_version("1.0.0"))
    await slots.prove(make_version("2.0.0"))
    await slots.discard("detector")
    assert await _ask(slots) == "1.0.0"
    assert _count_alive(engine) == 1


@pytest.mark.parametrize("moment", ["draining", "loading"])
async def test_what_served_is_back_when_the_proof_is_cut_off(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until, moment: str
) -> None:
    await slots.switch(make_version("1.0.0"))
    under_way = None
    if moment == "draining":
        engine.infer_s = 0.2
        under_way = asyncio.create_task(_ask(slots))
        await until(lambda: engine.started[0].running == 1)
    proving = asyncio.create_task(slots.prove(make_version("2.0.0")))
    await until(lambda: slots._slots["detector"].paused and engine.started[0].closed == (moment == "loading"))
    proving.cancel()
    await asyncio.gather(proving, return_exceptions=True)
    assert await _ask(slots) == "1.0.0"
    assert _count_alive(engine) == 1
    if under_way is not None:
        assert await under_way == "1.0.0"
        assert len(engine.started) == 1, "it never went away"
        engine.started[0].die()
        assert await _ask(slots) == "1.0.0", "and is watched as before"


async def test_what_served_is_back_when_no_switch_follows_in_time(
    engine: FakeEngine, make_version: MakeVersion
) -> None:
    slots = Slots(engine, SlotsSettings(slot=SlotSettings(pause_max_s=0.05)))
    await slots.switch(make_version("1.0.0"))
    await slots.prove(make_version("2.0.0"))
    assert await _ask(slots) == "1.0.0", "it waited for this"
    await slots.switch(make_version("2.0.0"))
    assert await _ask(slots) == "2.0.0", "proven again, in the switch"
    await asyncio.sleep(0.1)
    assert _count_alive(engine) == 1
    await slots.close()


async def test_another_candidate_takes_the_place_of_the_first_without_what_served_in_between(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.switch(make_version("1.0.0"))
    await slots.prove(make_version("2.0.0"))
    await slots.switch(make_version("3.0.0"))
    assert await _ask(slots) == "3.0.0"
    assert [worker.version.version for worker in engine.started] == ["1.0.0", "2.0.0", "3.0.0"]


async def test_a_switch_back_to_what_is_paused_serves_it_again(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.switch(make_version("1.0.0"))
    await slots.prove(make_version("2.0.0"))
    await slots.switch(make_version("1.0.0"))
    assert await _ask(slots) == "1.0.0"
    assert _count_alive(engine) == 1


async def test_other_labels_alone_need_no_pause(slots: Slots, engine: FakeEngine, make_version: MakeVersion) -> None:
    await slots.switch(make_version("1.0.0", folder="same"))
    await slots.prove(make_version("1.0.1", folder="same"))
    assert slots.is_alive("detector")
    assert len(engine.started) == 1


async def test_the_queue_of_a_paused_model_is_bounded_and_leaves_other_models_alone(
    engine: FakeEngine, make_version: MakeVersion
) -> None:
    slots = Slots(engine, SlotsSettings(concurrency=1, waiting=1, aside=3))
    await slots.switch(make_version("1.0.0", model="gauge"))
    await slots.switch(make_version("1.0.0"))
    await slots.prove(make_version("2.0.0"))
    waiting = [asyncio.create_task(_ask(slots)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await _ask(slots)
    assert await _ask(slots, "gauge") == "1.0.0"
    waiting.pop().cancel()
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(_ask(slots)))
    await slots.switch(make_version("2.0.0"))
    assert await asyncio.gather(*waiting) == ["2.0.0"] * 3
    assert slots.gate.taken == 0
    await slots.close()


async def test_twenty_switches_under_load_fail_no_request(engine: FakeEngine, make_version: MakeVersion) -> None:
    slots = Slots(engine, SlotsSettings(concurrency=2, waiting=8))
    engine.infer_s, engine.start_s = 0.001, 0.01
    await slots.switch(make_version("0"))
    answers: list[str] = []
    switching = True

    async def load() -> None:
        while switching:
            answers.append(await _ask(slots))

    async def switch() -> None:
        nonlocal switching
        for number in range(1, 21):
            if number % 4 == 0:
                engine.failures[f"detector:{number}"] = [GoldenMismatch("wrong")]
                with pytest.raises(GoldenMismatch):
                    await slots.prove(make_version(str(number)))
            else:
                await slots.prove(make_version(str(number)))
                await slots.switch(make_version(str(number)))
            assert _count_alive(engine) == 1
            await asyncio.sleep(0.005)
        switching = False

    await asyncio.gather(switch(), *(load() for _ in range(8)))
    assert len(set(answers)) > 10
    assert not {str(number) for number in range(4, 21, 4)} & set(answers)
    await slots.close()


async def test_closing_ends_a_pause(slots: Slots, engine: FakeEngine, make_version: MakeVersion) -> None:
    await slots.switch(make_version("1.0.0"))
    await slots.prove(make_version("2.0.0"))
    waiting = asyncio.create_task(_ask(slots))
    await asyncio.sleep(0)
    await slots.close()
    with pytest.raises(Exception, match="SET AI MODEL"):
        await waiting
    assert _count_alive(engine) == 0
