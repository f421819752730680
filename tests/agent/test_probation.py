"""Probation: what is plainly worse than before goes back; what may be the scene stays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from agent.agent_world import World
from edgeferry.agent import settled
from edgeferry.agent.machine import State
from edgeferry.agent.probation import find_ailment
from edgeferry.errors import GoldenMismatch, ModelCrashed, ModelNotReady, WorkerLost
from edgeferry.model.health import Health

GOOD = Health(answered=100, empty=20, score_sum=64.0, infer_ms=(10.0,) * 50)

AILMENTS = [
    pytest.param({"deaths": 2}, "its worker died 2 times", id="dies"),
    pytest.param({"failed": 15}, "15 of 115 pictures were not answered", id="fails"),
    pytest.param({"infer_ms": (70.0,) * 50}, "it takes 70 ms", id="is slow"),
    pytest.param({"empty": 96, "score_sum": 3.0}, "96 of 100 answers name nothing", id="names nothing"),
    pytest.param({"score_sum": 24.0}, "its best scores are 0.30", id="is unsure"),
]
HEALTHY = [
    pytest.param({}, id="as before"),
    pytest.param({"deaths": 1}, id="died once"),
    pytest.param({"failed": 5}, id="failed seldom"),
    pytest.param({"infer_ms": (35.0,) * 50}, id="three times as slow, but quick"),
    pytest.param({"empty": 90, "score_sum": 8.0}, id="a quiet scene"),
    pytest.param({"score_sum": 41.0}, id="a harder scene"),
    pytest.param({"answered": 9, "empty": 9, "score_sum": 0.0}, id="too few to tell"),
]


@pytest.mark.parametrize(("changes", "words"), AILMENTS)
def test_an_ailing_version_is_found_out(changes: dict[str, Any], words: str) -> None:
    assert words in find_ailment(replace(GOOD, **changes), GOOD, deaths_max=2)


@pytest.mark.parametrize("changes", HEALTHY)
def test_a_version_that_may_be_well_is_left_alone(changes: dict[str, Any]) -> None:
    assert find_ailment(replace(GOOD, **changes), GOOD, deaths_max=2) == ""


def test_what_was_ill_before_is_no_ailment_of_the_new_version() -> None:
    ill = Health(answered=100, failed=50, empty=100, infer_ms=(500.0,) * 50)
    assert find_ailment(ill, ill, deaths_max=2) == ""


def test_a_first_version_is_judged_by_deaths_and_failures_alone() -> None:
    slow = replace(GOOD, empty=100, infer_ms=(5000.0,) * 50)
    assert find_ailment(slow, None, deaths_max=2) == ""
    assert find_ailment(replace(slow, failed=50), None, deaths_max=2) != ""


async def test_a_version_that_ails_on_probation_is_rolled_back_with_the_figure(world: World) -> None:
    world.settings = replace(world.settings, probation_s=0.5)
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.deploy("1.1.0")
        await world.wait_state(State.PROBATION, version="1.1.0")
        world.activator.health, world.activator.before = replace(GOOD, score_sum=8.0), GOOD
        record = await world.wait_state(State.ROLLED_BACK, version="1.1.0")
        assert record.fault is not None and "best scores are 0.10" in record.fault.message


async def test_without_traffic_the_golden_truth_is_asked_once_more(world: World) -> None:
    world.publish("1.0.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        assert world.activator.proven_again == 1


async def test_with_enough_answers_it_is_not(world: World) -> None:
    world.settings = replace(world.settings, probation_s=0.2)
    world.publish("1.0.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.PROBATION)
        world.activator.health = GOOD
        await world.wait_state(State.ACTIVE)
        assert world.activator.proven_again == 0


async def test_a_second_golden_run_that_disagrees_rolls_back(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.activator.failures["prove_again"].append(GoldenMismatch("1 of 3 truths", agreed=2, asked=3))
        world.deploy("1.1.0")
        record = await world.wait_state(State.ROLLED_BACK, version="1.1.0")
        assert record.fault is not None and record.fault.code == "golden_mismatch"
        assert world.activator.serving["detector"].version == "1.0.0"


@dataclass(frozen=True)
class Lost:
    """How the worker goes while the golden truth is asked once more, how often it has died, and how that ends."""

    errors: tuple[Exception, ...]
    deaths: int
    ends: State


@pytest.mark.parametrize(
    "row",
    [
        Lost((WorkerLost("died"),), 1, State.ACTIVE),
        Lost((WorkerLost("died"), ModelNotReady("not back yet"), WorkerLost("not back yet")), 1, State.ACTIVE),
        Lost((ModelCrashed("died of the picture"),), 1, State.ACTIVE),
        Lost((WorkerLost("died"),), 2, State.ROLLED_BACK),
        Lost((GoldenMismatch("1 of 3"),), 0, State.ROLLED_BACK),
    ],
)
async def test_a_worker_lost_while_it_is_asked_is_asked_again_unless_it_died_too_often(world: World, row: Lost) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.activator.failures["prove_again"].extend(row.errors)

        async def die_and_prove_again(model: str) -> None:
            world.activator.deaths = row.deaths
            await plain(model)

        plain = world.activator.prove_again
        world.activator.prove_again = die_and_prove_again  # type: ignore[method-assign]
        world.deploy("1.1.0")
        await world.wait_state(row.ends, version="1.1.0")


async def test_a_worker_that_does_not_come_back_is_not_waited_for_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled, "_COMES_BACK_S", 0.1)
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.activator.failures["prove_again"].extend([WorkerLost("died")] * 1000)
        world.deploy("1.1.0")
        record = await world.wait_state(State.ROLLED_BACK, version="1.1.0")
        assert record.fault is not None and record.fault.message == "died"
