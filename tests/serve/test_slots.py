"""Slots over the fake engine: what a switch, a death, a full queue and a cancelled request do to others."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from edgeferry.errors import GoldenMismatch, ModelCrashed, ModelNotReady, QueueFull, WorkerLost
from edgeferry.runtime.child import InferReply
from edgeferry.serve import slot, tally
from edgeferry.serve.fake import FakeEngine
from edgeferry.serve.slot import SlotSettings
from edgeferry.serve.slots import Slots, SlotsSettings
from edgeferry.vision.answer import DetectionAnswer

if TYPE_CHECKING:
    from tests.serve.conftest import MakeVersion, Until


async def _ask(slots: Slots, model: str = "detector", picture: bytes = b"cat") -> tuple[str, str]:
    """(version that answered, first label of the answer)."""
    async with slots.lease(model) as lease:
        reply: InferReply = await lease.infer(picture, timeout_s=5)
        assert isinstance(reply.answer, DetectionAnswer)
        return lease.version.version, reply.answer.objects[0].label


async def test_nothing_answers_before_the_first_switch(slots: Slots, make_version: MakeVersion) -> None:
    await slots.prove(make_version())
    with pytest.raises(ModelNotReady, match=r"^PLEASE SET AI MODEL FIRST$"):
        await _ask(slots)
    assert slots.get_models() == {}


async def test_a_proven_version_serves_after_the_switch_with_the_same_worker(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.prove(make_version())
    await slots.switch(make_version())
    assert await _ask(slots) == ("1.0.0", "label-of-1.0.0")
    assert len(engine.started) == 1
    assert slots.get_health("detector").answered == 1


async def test_a_switch_without_a_candidate_proves_first(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    engine.failures["detector:2.0.0"] = [GoldenMismatch("found 1 of 5")]
    with pytest.raises(GoldenMismatch):
        await slots.switch(make_version("2.0.0"))
    assert await _ask(slots) == ("1.0.0", "label-of-1.0.0")


async def test_an_unproven_version_leaves_what_serves_alone(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    engine.failures["detector:2.0.0"] = [GoldenMismatch("found 1 of 5")]
    with pytest.raises(GoldenMismatch):
        await slots.prove(make_version("2.0.0"))
    assert await _ask(slots) == ("1.0.0", "label-of-1.0.0")
    assert [worker.alive for worker in engine.started] == [True]


async def test_the_old_worker_ends_after_the_switch(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version())
    await slots.switch(make_version("2.0.0"))
    await until(lambda: engine.started[0].closed)
    assert engine.started[1].alive
    assert slots.get_health("detector").deaths == 0


async def test_a_request_in_flight_is_answered_by_the_version_it_leased(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version())
    engine.infer_s = 0.2
    request = asyncio.create_task(_ask(slots))
    await until(lambda: engine.started[0].running == 1)
    await slots.switch(make_version("2.0.0"))
    assert not engine.started[0].closed
    assert await request == ("1.0.0", "label-of-1.0.0")
    await until(lambda: engine.started[0].closed)
    assert slots.get_health("detector").answered == 0, "answers of the old version do not count for the new one"


async def test_draining_is_bounded(engine: FakeEngine, make_version: MakeVersion, until: Until) -> None:
    slots = Slots(engine, SlotsSettings(slot=SlotSettings(drain_timeout_s=0.05)))
    await slots.switch(make_version())
    engine.infer_s = 60
    request = asyncio.create_task(_ask(slots))
    await until(lambda: engine.started[0].running == 1)
    await slots.switch(make_version("2.0.0"))
    with pytest.raises(WorkerLost):
        await request
    await slots.close()


async def test_switching_under_load_fails_no_request_and_mixes_no_labels(
    engine: FakeEngine, make_version: MakeVersion
) -> None:
    slots = Slots(engine, SlotsSettings(concurrency=4, waiting=100))
    engine.infer_s = 0.001
    await slots.switch(make_version("0.0.0"))
    answers: list[tuple[str, str]] = []

    async def load() -> None:
        for _ in range(60):
            answers.append(await _ask(slots))

    async def switch() -> None:
        for number in range(1, 20):
            await slots.prove(make_version(f"{number}.0.0", folder="shared" if number % 3 else ""))
            await slots.switch(make_version(f"{number}.0.0", folder="shared" if number % 3 else ""))
            await asyncio.sleep(0.002)

    await asyncio.gather(switch(), *(load() for _ in range(8)))
    assert len(answers) == 480
    assert all(label == f"label-of-{version}" for version, label in answers)
    assert len({version for version, _ in answers}) > 5
    await slots.close()
    assert all(worker.closed for worker in engine.started)


async def test_versions_with_the_same_files_share_one_worker(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.switch(make_version("1.0.0", folder="same"))
    await slots.prove(make_version("1.0.1", folder="same"))
    assert [version.version for version in engine.reproved] == ["1.0.1"]
    assert await _ask(slots) == ("1.0.0", "label-of-1.0.0")
    await slots.switch(make_version("1.0.1", folder="same"))
    assert await _ask(slots) == ("1.0.1", "label-of-1.0.1")
    assert len(engine.started) == 1
    assert engine.started[0].alive


async def test_a_discarded_candidate_does_not_take_the_shared_worker_with_it(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.switch(make_version("1.0.0", folder="same"))
    await slots.prove(make_version("1.0.1", folder="same"))
    await slots.discard("detector")
    assert await _ask(slots) == ("1.0.0", "label-of-1.0.0")


async def test_labels_that_miss_the_golden_truth_are_refused_on_a_shared_worker_too(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.switch(make_version("1.0.0", folder="same"))
    engine.failures["detector:1.0.1"] = [GoldenMismatch("rotated labels")]
    with pytest.raises(GoldenMismatch):
        await slots.prove(make_version("1.0.1", folder="same"))
    assert await _ask(slots) == ("1.0.0", "label-of-1.0.0")
    await slots.switch(make_version("2.0.0"))
    async with asyncio.timeout(5):  # nobody holds it any more
        while not engine.started[0].closed:
            await asyncio.sleep(0.01)


async def test_a_shared_worker_that_dies_in_the_proof_is_not_the_new_versions_fault(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    await slots.switch(make_version("1.0.0", folder="same"))
    shared = engine.started[0]

    async def die_in_proof(_: object) -> None:
        shared.die()
        raise ModelCrashed("killed by signal 9")

    monkeypatch.setattr(shared, "reprove", die_in_proof)
    await slots.switch(make_version("1.0.1", folder="same"))
    assert await _ask(slots) == ("1.0.1", "label-of-1.0.1")


async def test_a_candidate_is_let_go_by_discard_and_by_the_next_proof(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.prove(make_version("1.0.0"))
    await slots.prove(make_version("2.0.0"))
    assert [worker.alive for worker in engine.started] == [False, True]
    await slots.discard("detector")
    await slots.discard("never_seen")
    assert [worker.alive for worker in engine.started] == [False, False]


async def test_proving_twice_keeps_the_worker_and_a_dead_candidate_is_proven_again(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.prove(make_version())
    await slots.prove(make_version())
    assert len(engine.started) == 1
    engine.started[0].die()
    await slots.switch(make_version())
    assert await _ask(slots) == ("1.0.0", "label-of-1.0.0")
    assert len(engine.started) == 2


async def test_switching_to_what_serves_changes_nothing(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    await _ask(slots)
    await slots.prove(make_version("2.0.0"))
    await slots.switch(make_version())
    assert slots.get_health("detector").answered == 1
    assert [worker.alive for worker in engine.started] == [True, False]


async def test_a_dead_worker_fails_its_requests_alone_and_comes_back(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version())
    engine.infer_s = 5
    in_flight = asyncio.create_task(_ask(slots))
    await until(lambda: engine.started[0].running == 1)
    engine.infer_s, engine.start_s = 0.0, 0.05
    engine.started[0].die()
    later = await _ask(slots)
    with pytest.raises(WorkerLost):
        await in_flight
    assert later == ("1.0.0", "label-of-1.0.0")
    assert slots.get_health("detector").deaths == 1
    await slots.switch(make_version("2.0.0"))
    assert slots.get_health("detector").deaths == 0


async def test_waiting_for_a_restart_is_bounded(engine: FakeEngine, make_version: MakeVersion) -> None:
    slots = Slots(engine, SlotsSettings(slot=SlotSettings(restart_wait_s=0.05)))
    await slots.switch(make_version())
    engine.start_s = 60
    engine.started[0].die()
    with pytest.raises(WorkerLost):
        await _ask(slots)
    assert slots.get_models()["detector"].ready is False
    await slots.close()


async def test_requests_fail_at_once_while_restarts_fail_and_work_again_after(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version())
    engine.failures["detector:1.0.0"] = [ModelCrashed("again")]
    engine.started[0].die()
    await until(lambda: not engine.failures["detector:1.0.0"])
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(_ask(slots), 0.2)
    await until(lambda: len(engine.started) == 2)
    assert await _ask(slots) == ("1.0.0", "label-of-1.0.0")


async def test_a_defect_while_a_worker_is_started_again_does_not_leave_the_slot_dead(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "_RESTART_PAUSE_S", 0.01)
    await slots.switch(make_version())
    assert slots.is_alive("detector") and not slots.is_alive("unknown")
    engine.failures["detector:1.0.0"] = [OSError("no more files"), MemoryError()]
    engine.started[0].die()
    await until(lambda: len(engine.started) == 2)
    assert await _ask(slots) == ("1.0.0", "label-of-1.0.0")


async def test_deaths_are_forgotten_by_the_health_and_not_by_the_counter(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "_DEATHS_SPAN_S", 0.3)
    await slots.switch(make_version())
    engine.started[0].die()
    await until(lambda: slots.get_health("detector").deaths == 1)
    await until(lambda: slots.get_health("detector").deaths == 0)
    await until(lambda: slots.is_alive("detector"))
    engine.started[-1].die()
    await until(lambda: slots.get_health("detector").deaths == 1)
    assert slots.get_models()["detector"].deaths == 2


async def test_workers_that_die_young_are_started_again_with_pauses(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    deadline = time.monotonic() + 0.8
    while time.monotonic() < deadline:
        engine.started[-1].die()
        await asyncio.sleep(0.005)
    assert len(engine.started) == 3, "the first, one at once, and one after half a second"


async def test_after_a_long_life_a_worker_is_started_again_at_once(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "_LONG_LIFE_S", 0.0)
    monkeypatch.setattr(slot, "_RESTART_PAUSE_S", 60.0)
    await slots.switch(make_version())
    for count in range(2, 5):
        engine.started[-1].die()
        await until(lambda count=count: len(engine.started) == count)


async def test_a_switch_ends_the_restarts_of_the_dead_version(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version())
    engine.start_s = 0.3
    engine.started[0].die()
    await until(lambda: slots.get_health("detector").deaths == 1)
    engine.start_s = 0.0
    await slots.switch(make_version("2.0.0"))
    await asyncio.sleep(0.4)
    assert [worker.version.version for worker in engine.started] == ["1.0.0", "2.0.0"]
    assert await _ask(slots) == ("2.0.0", "label-of-2.0.0")


async def test_beyond_the_queue_requests_are_turned_away_at_once(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version())
    engine.infer_s = 0.2
    running = [asyncio.create_task(_ask(slots)) for _ in range(4)]
    await until(lambda: slots.gate.taken == 4)
    assert engine.started[0].running == 2, "as many at once as cores; the next one stands ready"
    with pytest.raises(QueueFull):
        await asyncio.wait_for(_ask(slots), 0.05)
    assert len(await asyncio.gather(*running)) == 4
    assert slots.gate.taken == 0


async def test_a_cancelled_request_gives_its_place_back(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version())
    engine.infer_s = 60
    waiting = [asyncio.create_task(_ask(slots)) for _ in range(4)]
    await until(lambda: slots.gate.taken == 4 and engine.started[0].running == 2)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert slots.gate.taken == 0
    engine.infer_s = 0
    assert await _ask(slots) == ("1.0.0", "label-of-1.0.0")


async def test_a_failed_request_gives_its_place_back_and_is_not_counted(
    slots: Slots, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    for _ in range(10):
        with pytest.raises(Exception, match="expected a picture"):
            await _ask(slots, picture=b"bad")
    assert slots.gate.taken == 0
    assert slots.get_health("detector").answered == 0


async def test_models_are_served_side_by_side(slots: Slots, make_version: MakeVersion) -> None:
    await slots.switch(make_version(model="detector"))
    await slots.switch(make_version("3.0.0", model="gauge"))
    assert await _ask(slots, "gauge") == ("3.0.0", "label-of-3.0.0")
    assert list(slots.get_models()) == ["detector", "gauge"]
    assert slots.get_health("unknown").deaths == slots.get_health("unknown").answered == 0


async def test_close_ends_every_worker_even_one_that_drains(
    engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    slots = Slots(engine, SlotsSettings(slot=SlotSettings(drain_timeout_s=0.3)))
    await slots.switch(make_version())
    engine.infer_s = 60
    request = asyncio.create_task(_ask(slots))
    await until(lambda: engine.started[0].running == 1)
    await slots.switch(make_version("2.0.0"))
    await slots.prove(make_version("3.0.0"))
    await slots.close()
    with pytest.raises(WorkerLost):
        await request
    assert [worker.closed for worker in engine.started] == [True, True, True]
    with pytest.raises(ModelNotReady):
        await _ask(slots)


async def test_a_hundred_switches_leave_no_tasks_and_no_workers_behind(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version("0"))
    tasks = len(asyncio.all_tasks())
    for number in range(1, 100):
        await slots.switch(make_version(str(number), folder="same" if number % 10 else ""))
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    assert sum(worker.alive for worker in engine.started) == 1
