"""A candidate in the shadow, over the fake engine: which pictures it sees, when, at what cost, and whom it harms."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from edgeferry.errors import ModelUnsupported, WorkerLost
from edgeferry.runtime.blocks import Blocks
from edgeferry.runtime.child import Terms
from edgeferry.serve.fake import FakeEngine, answer_first_label
from edgeferry.serve.slots import Slots, SlotsSettings
from edgeferry.twin.shadow import ShadowPolicy
from edgeferry.vision.answer import Answer, DetectionAnswer

if TYPE_CHECKING:
    from tests.serve.conftest import ApiClient, MakeVersion, Until

ALL = ShadowPolicy(share=1.0, cpu=1.0)


@pytest.fixture
async def slots(engine: FakeEngine) -> Slots:
    return Slots(engine, SlotsSettings(concurrency=1, waiting=8))


async def _ask(slots: Slots, picture: bytes = b"cat") -> str:
    async with slots.lease("detector") as lease:
        await lease.infer(picture, timeout_s=5)
        return lease.version.version


async def _start(slots: Slots, make_version: MakeVersion, *, label: str = "cat") -> None:
    await slots.switch(make_version("1.0.0", label="cat"))
    await slots.prove(make_version("2.0.0", label=label))


def _count(slots: Slots) -> int:
    found = slots.find_agreement("detector")
    return found.pictures if found is not None else -1


async def test_a_candidate_that_answers_alike_agrees(slots: Slots, make_version: MakeVersion, until: Until) -> None:
    await _start(slots, make_version)
    assert slots.start_shadow("detector", ALL)
    for seen in range(1, 4):
        assert await _ask(slots) == "1.0.0"
        await until(lambda seen=seen: _count(slots) == seen)  # type: ignore[misc]
    found = slots.find_agreement("detector")
    assert found is not None
    assert found.share == 1.0
    assert slots.get_health("detector").answered == 3, "what the shadow answers does not count"
    await slots.close()


async def test_a_picture_that_came_in_blocks_is_shown_whole(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    seen: list[bytes] = []

    def note(picture: bytes, terms: Terms) -> Answer:
        seen.append(picture)
        return answer_first_label(picture, terms)

    engine.answer = note
    await _start(slots, make_version)
    assert slots.start_shadow("detector", ALL)
    async with slots.lease("detector") as lease:
        await lease.infer(Blocks([b"a ", b"picture"]), timeout_s=5)
    await until(lambda: _count(slots) == 1)
    assert seen[-2:] == [b"a picture", b"a picture"]
    await slots.close()


async def test_an_answer_that_was_drawn_is_not_compared(slots: Slots, make_version: MakeVersion, until: Until) -> None:
    await _start(slots, make_version)
    assert slots.start_shadow("detector", ALL)
    async with slots.lease("detector") as lease:
        await lease.infer(b"drawn", timeout_s=5, draw="jpeg")
    await asyncio.sleep(0.1)
    assert _count(slots) == 0
    await _ask(slots)
    await until(lambda: _count(slots) == 1)
    await slots.close()


async def test_a_candidate_with_other_labels_on_the_same_worker_is_asked_with_its_own(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version("1.0.0", label="cat", folder="same"))
    await slots.prove(make_version("1.0.1", label="dog", folder="same"))
    assert len(engine.started) == 1
    assert slots.start_shadow("detector", ALL)
    await _ask(slots)
    await until(lambda: _count(slots) == 1)
    found = slots.find_agreement("detector")
    assert found is not None
    assert found.share == 0.0
    await slots.close()


async def test_a_candidate_comes_back_with_the_worker_that_it_shares(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version("1.0.0", label="cat", folder="same"))
    await slots.prove(make_version("1.0.1", label="cat", folder="same"))
    assert slots.start_shadow("detector", ALL)
    await _ask(slots)
    await until(lambda: _count(slots) == 1)
    await _ask(slots)
    engine.infer_s = 5.0  # of the candidate
    await until(lambda: engine.started[0].running == 1)
    engine.infer_s = 0.0
    engine.started[0].die()
    assert _count(slots) == 1, "a death is the worker's, not the labels'"
    await until(lambda: slots.is_alive("detector"))
    await _ask(slots)
    await until(lambda: _count(slots) == 2)
    found = slots.find_agreement("detector")
    assert found is not None
    assert found.share == 1.0
    await slots.switch(make_version("1.0.1", label="cat", folder="same"))
    assert (await _ask(slots), len(engine.started)) == ("1.0.1", 2)
    await slots.close()
    assert not any(worker.alive for worker in engine.started)


async def test_the_share_is_kept_to_the_picture(slots: Slots, make_version: MakeVersion, until: Until) -> None:
    await _start(slots, make_version)
    slots.start_shadow("detector", ShadowPolicy(share=0.25, cpu=1.0))
    for number in range(1, 13):
        await _ask(slots)
        if number % 4 == 0:
            await until(lambda number=number: _count(slots) == number // 4)  # type: ignore[misc]
    await asyncio.sleep(0.05)
    assert _count(slots) == 3
    await slots.close()


async def test_the_live_answer_is_there_before_the_candidate_is_asked(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await _start(slots, make_version)
    slots.start_shadow("detector", ALL)
    await _ask(slots)
    assert engine.started[1].running == 0
    engine.infer_s = 0.05
    await until(lambda: engine.started[1].running == 1)
    await slots.close()


async def test_while_every_core_is_taken_the_candidate_waits(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await _start(slots, make_version)
    slots.start_shadow("detector", ALL)
    await _ask(slots)
    engine.infer_s = 0.4
    live = asyncio.create_task(_ask(slots))
    await until(lambda: engine.started[0].running == 1)
    await asyncio.sleep(0.08)
    assert engine.started[1].running == 0
    await live
    await until(lambda: engine.started[1].running == 1)
    await slots.close()


async def test_the_candidate_rests_so_that_its_budget_holds(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    engine.infer_s = 0.02
    await _start(slots, make_version)
    slots.start_shadow("detector", ShadowPolicy(share=1.0, cpu=0.1))
    began = time.monotonic()
    while time.monotonic() - began < 0.7:
        await _ask(slots)
        await asyncio.sleep(0.03)  # a core is free now and then
    assert 1 <= _count(slots) <= 4, "of 0.02 s each, a tenth of the time"
    await slots.close()


async def test_what_the_candidate_cannot_answer_is_no_agreement_and_a_bad_picture_is_nothing(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await _start(slots, make_version, label="dog")

    def refuse_dogs(picture: bytes, terms: Terms) -> Answer:
        if terms.labels[0][0] == "dog":
            raise ModelUnsupported("no")
        return answer_first_label(picture, terms)

    engine.answer = refuse_dogs
    slots.start_shadow("detector", ALL)
    assert await _ask(slots) == "1.0.0"
    await until(lambda: _count(slots) == 1)
    found = slots.find_agreement("detector")
    assert found is not None
    assert found.share == 0.0
    await slots.close()


async def test_there_is_no_shadow_without_a_candidate_or_without_what_serves(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    assert not slots.start_shadow("detector", ALL)
    await slots.prove(make_version("1.0.0"))
    assert not slots.start_shadow("detector", ALL), "nothing serves"
    await slots.switch(make_version("1.0.0"))
    assert not slots.start_shadow("detector", ALL), "no candidate"
    await slots.prove(make_version("2.0.0"))
    engine.started[-1].die()
    assert not slots.start_shadow("detector", ALL), "a dead one"
    assert slots.find_agreement("detector") is None
    await slots.close()


@pytest.mark.parametrize("folder", ["of its own", "same"])
async def test_a_live_worker_that_is_started_again_is_no_reason_to_have_no_shadow(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until, folder: str
) -> None:
    await slots.switch(make_version("1.0.0", label="cat", folder="same"))
    await slots.prove(make_version("2.0.0", label="cat", folder=folder))
    engine.start_s = 0.2
    engine.started[0].die()
    with pytest.raises(WorkerLost, match="not back yet"):
        slots.start_shadow("detector", ALL)
    await until(lambda: slots.is_alive("detector"))
    assert slots.start_shadow("detector", ALL)
    await _ask(slots)
    await until(lambda: _count(slots) == 1)
    await slots.close()


@pytest.mark.parametrize("end", ["switch", "discard", "stop", "close"])
async def test_the_shadow_ends_with_whatever_ends_it(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, end: str
) -> None:
    await _start(slots, make_version)
    slots.start_shadow("detector", ALL)
    match end:
        case "switch":
            await slots.switch(make_version("2.0.0"))
        case "discard":
            await slots.discard("detector")
        case "stop":
            slots.stop_shadow("detector")
        case "close":
            await slots.close()
    assert slots.find_agreement("detector") is None
    if end != "close":
        await _ask(slots)
        await asyncio.sleep(0.05)
        assert sum(worker.running for worker in engine.started) == 0
        await slots.close()


async def test_a_candidate_that_dies_harms_no_request(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    await _start(slots, make_version)
    slots.start_shadow("detector", ALL)
    await _ask(slots)
    engine.started[1].die()
    assert slots.find_agreement("detector") is None
    assert await _ask(slots) == "1.0.0"
    await slots.close()


async def test_over_http_the_candidate_sees_what_was_posted(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    seen: list[tuple[bytes, str]] = []

    def note(picture: bytes, terms: Terms) -> Answer:
        seen.append((bytes(picture), terms.labels[0][0]))
        return DetectionAnswer(objects=())

    await _start(slots, make_version, label="dog")
    engine.answer = note
    slots.start_shadow("detector", ALL)
    assert (await client.post("/score", b"a picture")).status == 200
    await until(lambda: len(seen) == 2)
    assert seen == [(b"a picture", "cat"), (b"a picture", "dog")]
    await slots.close()
