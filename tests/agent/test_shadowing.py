"""Updates with `policy.shadow`: what is compared before the switch, what holds a version back, what is reported."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from agent.agent_world import World
from edgeferry.agent.machine import State
from edgeferry.errors import WorkerLost
from edgeferry.vision.agreement import Agreement
from polling import poll

GATE: dict[str, Any] = {"share": 0.5, "pictures": 10, "for_s": 1, "agreement": 0.9}


def _deploy(world: World, version: str, shadow: object) -> None:
    world.hub.desire(edgeferry={"policy": {"shadow": shadow}})
    world.deploy(version)


async def _start(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    world.deploy("1.0.0")
    await world.wait_state(State.ACTIVE, version="1.0.0")
    assert world.activator.shadows == [], "the first version has nothing to be compared with"


async def test_a_version_that_agrees_is_switched_to_and_the_agreement_is_reported(world: World) -> None:
    async with world.run():
        await _start(world)
        world.activator.agreements = deque([Agreement(2, 2.0), Agreement(10, 9.5, 10, 9.0, -0.5)])
        _deploy(world, "1.1.0", GATE)
        record = await world.wait_state(State.ACTIVE, version="1.1.0")
        assert record.shadow is not None
        [policy] = world.activator.shadows
        assert (policy.share, policy.cpu, policy.pictures) == (0.5, 0.25, 10)
        assert not world.activator.shadowing
        report = await poll(lambda: _find_shadow(world))
        assert report == {"n": 10, "agree": 0.95, "iou": 0.9, "shift": -0.05}
        assert len(msgspec.json.encode({"shadow": report})) < 100


async def _find_shadow(world: World) -> Any:
    return world.hub.reported.get("edgeferry", {}).get("models", {}).get("detector", {}).get("shadow")


async def test_a_version_that_disagrees_is_rejected_and_the_refs_stay(world: World) -> None:
    async with world.run():
        await _start(world)
        world.activator.agreements = deque([Agreement(10, 5.0)])
        _deploy(world, "1.1.0", GATE)
        record = await world.wait_state(State.REJECTED, version="1.1.0")
        assert record.fault is not None
        assert (record.fault.code, "0.500 over 10" in record.fault.message) == ("probation_failed", True)
        assert world.activator.serving["detector"].version == "1.0.0"
        assert world.activator.switched == ["1.0.0"]
        assert await poll(lambda: _count_discarded(world))
        active = world.repository.read_ref("detector", "active")
        assert active is not None
        assert active.version == "1.0.0"


async def _count_discarded(world: World) -> int:
    return world.activator.discarded


async def test_too_few_pictures_are_no_agreement_but_only_where_one_is_asked_for(world: World) -> None:
    async with world.run():
        await _start(world)
        world.activator.agreements = deque([Agreement(3, 3.0)])
        _deploy(world, "1.1.0", {**GATE, "agreement": 0})
        record = await world.wait_state(State.ACTIVE, version="1.1.0")
        assert record.shadow is not None
        assert record.shadow.n == 3
        world.publish("1.2.0")
        _deploy(world, "1.2.0", GATE)
        await world.wait_state(State.REJECTED, version="1.2.0")


async def test_where_nothing_serves_beside_it_a_gate_holds_and_a_mere_report_does_not(world: World) -> None:
    async with world.run():
        await _start(world)
        _deploy(world, "1.1.0", GATE)
        await world.wait_state(State.REJECTED, version="1.1.0")
        world.publish("1.2.0")
        _deploy(world, "1.2.0", {**GATE, "agreement": 0})
        record = await world.wait_state(State.ACTIVE, version="1.2.0")
        assert record.shadow is None


async def test_a_live_worker_that_is_started_again_is_waited_for(world: World) -> None:
    async with world.run():
        await _start(world)
        world.activator.failures["start_shadow"] = deque([WorkerLost("not back yet")] * 3)
        world.activator.agreements = deque([Agreement(10, 10.0)])
        _deploy(world, "1.1.0", {**GATE, "for_s": 60})
        record = await world.wait_state(State.ACTIVE, version="1.1.0")
        assert record.shadow is not None
        assert record.shadow.n == 10


async def test_a_live_worker_that_does_not_come_back_is_not_waited_for_longer_than_the_policy_says(
    world: World,
) -> None:
    async with world.run():
        await _start(world)
        world.activator.failures["start_shadow"] = deque([WorkerLost("not back yet")] * 1000)
        _deploy(world, "1.1.0", GATE)
        await world.wait_state(State.REJECTED, version="1.1.0")


async def test_a_policy_that_changes_is_followed_from_then_on(world: World) -> None:
    async with world.run():
        await _start(world)
        world.activator.agreements = deque([Agreement(3, 3.0)])
        _deploy(world, "1.1.0", {**GATE, "for_s": 3600})
        await world.wait_state(State.SHADOWING, version="1.1.0")
        await poll(lambda: _find_policies(world, 1))
        world.hub.desire(edgeferry={"policy": {"shadow": {**GATE, "for_s": 3600, "pictures": 5}}})
        await poll(lambda: _find_policies(world, 2))
        world.activator.agreements = deque([Agreement(5, 5.0)])
        await world.wait_state(State.ACTIVE, version="1.1.0")


async def _find_policies(world: World, count: int) -> bool:
    return len(world.activator.shadows) == count


async def test_a_candidate_that_dies_of_a_live_picture_is_rejected(world: World) -> None:
    async with world.run():
        await _start(world)
        world.activator.agreements = deque([Agreement(3, 3.0), None])
        _deploy(world, "1.1.0", GATE)
        record = await world.wait_state(State.REJECTED, version="1.1.0")
        assert record.fault is not None
        assert record.fault.code == "model_crashed"
        assert not world.activator.shadowing


async def test_a_policy_that_is_taken_back_ends_the_shadow_with_a_switch(world: World) -> None:
    async with world.run():
        await _start(world)
        world.activator.agreements = deque([Agreement(1, 0.0)])
        _deploy(world, "1.1.0", {**GATE, "for_s": 3600})
        await world.wait_state(State.SHADOWING, version="1.1.0")
        world.hub.desire(edgeferry={"policy": {"shadow": None}})
        await world.wait_state(State.ACTIVE, version="1.1.0")


async def test_a_newer_version_ends_the_shadow_of_the_one_before(world: World) -> None:
    async with world.run():
        await _start(world)
        world.publish("1.2.0")
        world.activator.agreements = deque([Agreement(1, 1.0)])
        _deploy(world, "1.1.0", {**GATE, "for_s": 3600})
        await world.wait_state(State.SHADOWING, version="1.1.0")
        world.activator.agreements = deque([Agreement(10, 10.0)])
        world.deploy("1.2.0")
        await world.wait_state(State.ACTIVE, version="1.2.0")
        assert world.activator.switched == ["1.0.0", "1.2.0"]


async def test_a_restart_in_the_shadow_proves_and_compares_again(world: World) -> None:
    async with world.run():
        await _start(world)
        world.activator.agreements = deque([Agreement(1, 1.0)])
        _deploy(world, "1.1.0", {**GATE, "for_s": 3600})
        await world.wait_state(State.SHADOWING, version="1.1.0")
    async with world.run(fresh_activator=False):
        world.activator.agreements = deque([Agreement(10, 10.0)])
        await world.wait_state(State.ACTIVE, version="1.1.0")
        assert world.activator.proven.count("1.1.0") == 2


async def test_what_cannot_be_followed_is_reported_and_no_version_is_held_back(world: World) -> None:
    async with world.run():
        await _start(world)
        _deploy(world, "1.1.0", {"share": 7})
        await world.wait_state(State.ACTIVE, version="1.1.0")
        assert world.activator.shadows == []
        error = await poll(lambda: _find_error(world))
        assert error["code"] == "twin_invalid"
        assert "policy.shadow" in error["message"]


async def _find_error(world: World) -> Any:
    return world.hub.reported.get("edgeferry", {}).get("error")
