"""A version in the shadow, on a real device with a hub: live pictures decide whether it is switched to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from e2e.site import Device, Twin
from e2e.tiny_models import ORDERS, QUADRANTS, encode, get_md5, make_quadrant_bundle, make_quadrant_picture
from e2e.world import QUICK, World, find_quadrant, open_asker, take

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
PICTURES = 6
POLICY = {"share": 1.0, "cpu": 1.0, "pictures": PICTURES, "for_s": 600, "agreement": 0.9}
REPORT_MAX_BYTES = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(world: World) -> AsyncIterator[tuple[Device, Twin]]:
    """A device that serves `live.zip` and tries whatever comes next in its shadow."""
    async with world.open_device(settings=QUICK) as (device, twin):
        await take(world, twin, "live.zip", make_quadrant_bundle(ORDERS[0]))
        await twin.set(edgeferry={"policy": {"shadow": POLICY}})
        yield device, twin


def get_model(reported: dict[str, Any]) -> dict[str, Any]:
    return dict(reported.get("edgeferry", {}).get("models", {}).get("default", {}))


async def offer(world: World, twin: Twin, name: str, bundle: bytes) -> None:
    """Publishes a candidate and waits until it is in the shadow."""
    await twin.set_bundle(name, world.origin.put(name, bundle), get_md5(bundle))
    await twin.wait(lambda reported: get_model(reported).get("state") == "SHADOWING")


async def test_a_candidate_that_agrees_on_live_pictures_is_switched_to_and_says_how_far_it_agreed(
    world: World, serving: tuple[Device, Twin]
) -> None:
    device, twin = serving
    await offer(world, twin, "agrees.zip", make_quadrant_bundle(ORDERS[1]))
    await asyncio.sleep(1.0)
    waiting = (await twin.read())["reported"]
    assert get_model(waiting)["state"] == "SHADOWING", "nobody has sent a picture yet"
    assert waiting["LatestAIModelFileName"] == "live.zip"
    async with open_asker(device, encode(make_quadrant_picture(2))) as asker:
        model = get_model(await twin.wait(lambda reported: get_model(reported).get("state") == "ACTIVE"))
        assert not asker.failed
        assert {answer[0]["Class"] for _, answer in asker.answers} == {QUADRANTS[2]}
    assert model["shadow"]["n"] >= PICTURES
    assert (model["shadow"]["agree"], model["shadow"]["iou"]) == (1, 1)
    assert len(json.dumps({"shadow": model["shadow"]}, separators=(",", ":"))) < REPORT_MAX_BYTES
    assert (await twin.read())["reported"]["LatestAIModelFileName"] == "agrees.zip"
    assert await find_quadrant(device, 1) == QUADRANTS[1]


async def test_a_candidate_that_disagrees_on_live_pictures_is_held_back(
    world: World, serving: tuple[Device, Twin]
) -> None:
    """Runs behind the one above. It names every quadrant wrongly: no golden truth says so here."""
    device, twin = serving
    await offer(world, twin, "disagrees.zip", make_quadrant_bundle(ORDERS[2], labels=QUADRANTS))
    async with open_asker(device, encode(make_quadrant_picture(0))) as asker:
        model = get_model(await twin.wait(lambda reported: "error" in get_model(reported)))
        assert not asker.failed
        assert {answer[0]["Class"] for _, answer in asker.answers} == {QUADRANTS[0]}
    assert (model["state"], model["error"]["code"]) == ("REJECTED", "probation_failed")
    assert "found 0.000" in model["error"]["message"]
    assert (await twin.read())["reported"]["LatestAIModelFileName"] == "agrees.zip"
