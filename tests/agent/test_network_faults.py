"""Networks and servers that misbehave while a version is fetched: each fault is a row, against a real HTTP server.

Every row: the first answer of the model file ends early, the next ones go wrong, all later ones are right. The update
ends active, was never rejected, says what was wrong while it waited, and what was sent twice is bounded.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from agent.agent_world import Odd, Origin, World, open_origin
from edgeferry.agent.machine import State
from edgeferry.agent.record import UpdateRecord, read_record_bytes
from edgeferry.agent.small_fetch import SmallFetch
from edgeferry.errors import CaptivePortal, MetadataUntrusted
from edgeferry.storage.journal import Journal
from edgeferry.transport.http import HttpSettings

SIZE = 200_000
FIRST = 80_000
"""What the first answer brings."""
WHOLE = SIZE + 1_000
"""All of the model file once more, and the small files beside it."""
PAGE = b"<!DOCTYPE html><html><body>Welcome to our network, please log in.</body></html>"
IMPATIENT = HttpSettings(connect_timeout_s=1.0, read_timeout_s=0.2, answer_timeout_s=0.4)


# --- answers that are wrong -------------------------------------------------------------------------------------------
def send(status: int, headers: dict[str, str], cut: slice) -> Odd:
    """These bytes of the file, with this status and these headers."""

    async def answer(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
        return await origin.send(request, status, data[cut], headers)

    return answer


def say(status: int, body: bytes = b"", **headers: str) -> Odd:
    """Something that is not the file."""

    async def answer(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
        return web.Response(
            status=status, body=body, headers={name.replace("_", "-"): headers[name] for name in headers}
        )

    return answer


def cut_off(size_bytes: int) -> Odd:
    """The right answer, whose connection ends after so many bytes."""

    async def answer(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
        origin.cut_after.append(size_bytes)
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return await origin.send(request, 206 if start else 200, data[start:], headers if start else {})

    return answer


def drip(pause_s: float) -> Odd:
    """The right head, then a byte now and then, until the one who asked has gone."""

    async def answer(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
        reply = web.StreamResponse(status=206, headers=part(FIRST, SIZE))
        reply.content_length = SIZE - FIRST
        await reply.prepare(request)
        at = FIRST
        while request.transport is not None and not request.transport.is_closing():
            await reply.write(data[at : at + 1])
            at += 1
            await asyncio.sleep(pause_s)
        return reply

    return answer


async def be_silent(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
    """Not even a head."""
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.01)
    return web.Response()


async def redirect_here(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
    """To the same bytes under another name on this host."""
    origin.files["/moved"] = data
    return web.Response(status=302, headers={"Location": "/moved?sig=SECRET"})


async def redirect_round(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
    """To itself, as often as it is asked."""
    origin.odd.extend([say(302, Location=str(request.rel_url))] * 5)
    return web.Response(status=302, headers={"Location": str(request.rel_url)})


# --- rows -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Fault:
    """Answers in place of the right ones; the code that is said; how many bytes may be sent in vain or twice."""

    name: str
    odd: tuple[Odd, ...]
    code: str
    again_bytes: int = 0
    asked: int | None = None
    """Requests for the model file in all; None: one for the start, one for each wrong answer, and a last one."""


def part(start: int, stop: int, total: int = SIZE) -> dict[str, str]:
    return {"Content-Range": f"bytes {start}-{stop - 1}/{total}"}


def make_cuts(seed: int, count: int) -> tuple[Odd, ...]:
    dice = random.Random(seed)
    return tuple(cut_off(dice.randrange(0, 25_000)) for _ in range(count))


OTHER_TYPE = {"Content-Type": "text/html; charset=utf-8"}
FAULTS = [
    Fault("the whole in place of a part", (send(200, {}, slice(None)),), "", WHOLE, asked=2),
    Fault("a part that starts later", (send(206, part(FIRST + 1, SIZE), slice(FIRST + 1, None)),), "link_broken", SIZE),
    Fault("a part that starts earlier", (send(206, part(0, SIZE), slice(None)),), "link_broken", SIZE),
    Fault("a part without its range", (send(206, {}, slice(FIRST, None)),), "link_broken", SIZE),
    Fault("a part of another object", (send(206, part(FIRST, SIZE, SIZE + 9), slice(FIRST, None)),), "*", WHOLE),
    Fault("another object, whole", (send(200, {}, slice(0, SIZE - 9)),), "*", WHOLE + SIZE),
    Fault("compressed although nobody asked", (send(200, {"Content-Encoding": "gzip"}, slice(None)),), "*", SIZE),
    Fault("cuts at random places", make_cuts(1, 4), "link_broken"),
    Fault("cuts at other places", make_cuts(2, 4), "link_broken"),
    Fault("no byte at all, again and again", tuple(cut_off(0) for _ in range(4)), "link_broken"),
    Fault("a redirect on this host", (redirect_here,), "", asked=2),
    Fault("redirects without end", (redirect_round,), "link_broken", asked=8),
    Fault("a portal's page", (say(200, PAGE, Content_Type="text/html"),) * 2, "captive_portal"),
    Fault("a portal's page without its type", (say(200, PAGE, Content_Type="application/octet-stream"),), "*", WHOLE),
    Fault("a page as long as the file", (send(200, OTHER_TYPE, slice(None)),), "", WHOLE, asked=2),
    Fault("a portal that leads elsewhere", (say(302, Location="http://127.0.0.1:9/login"),), "link_down"),
    Fault("the network's own status", (say(511, PAGE),), "captive_portal"),
    Fault("silence", (be_silent,), "link_timeout"),
    Fault("a byte now and then", (drip(0.15),), "link_timeout"),
    Fault("missing for a while", (say(404), say(404), say(410)), "object_missing"),
    Fault("a server that fails", (say(500), say(502), say(504)), "server_failed"),
    Fault("a server that is busy", (say(503), say(429)), "server_busy"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_of_the_network_is_waited_out_and_no_verdict(world: World, fault: Fault) -> None:
    path = publish(world, SIZE)
    world.http = IMPATIENT
    world.origin.odd = deque([cut_off(FIRST), *fault.odd])
    with Watching(world) as seen:
        async with world.run():
            world.deploy("1.0.0")
            await world.wait_state(State.ACTIVE)
    codes = {row.fault.code for row in seen if row.state is State.WAITING and row.fault is not None}
    assert State.REJECTED not in {row.state for row in seen}
    assert fault.code == "*" or codes == {"link_broken", fault.code or "link_broken"}
    asked = [one for one, _ in world.origin.requests if one == path]
    assert len(asked) == (fault.asked or len(fault.odd) + 2)
    assert world.origin.sent_bytes - WHOLE <= fault.again_bytes


def publish(world: World, size: int) -> str:
    source = world.publish("1.0.0", size=size).files[0].sources[0]
    digest = source.blob.removeprefix("sha256:")
    return f"/repo/blobs/sha256/{digest[:2]}/{digest}"


class Watching:
    """All records that are written to the journal while the block runs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen: list[UpdateRecord] = []

    def __enter__(self) -> list[UpdateRecord]:
        self.world.wrap = lambda journal: _Watched(journal, self.seen)
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.world.wrap = lambda journal: journal


class _Watched:
    def __init__(self, journal: Journal, seen: list[UpdateRecord]) -> None:
        self._journal, self._seen = journal, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def save_record(self, key: str, *, model: str, state: str, body: bytes) -> None:
        self._seen.append(read_record_bytes(body))
        await self._journal.save_record(key, model=model, state=state, body=body)


# --- time that a server asks for --------------------------------------------------------------------------------------
def in_seconds(now: float) -> dict[str, str]:
    return {"Retry-After": "1"}


def at_a_date(now: float) -> dict[str, str]:
    """By a clock of the server's own, which is years away from ours."""
    return {"Date": formatdate(now - 1e8, usegmt=True), "Retry-After": formatdate(now - 1e8 + 1, usegmt=True)}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("when", [in_seconds, at_a_date])
async def test_a_server_that_asks_for_time_gets_it(
    world: World, status: int, when: Callable[[float], dict[str, str]]
) -> None:
    publish(world, SIZE)
    asked_at: list[float] = []

    async def answer(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
        asked_at.append(time.monotonic())
        return web.Response(status=status, headers=when(time.time()))

    async def note(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
        asked_at.append(time.monotonic())
        return await origin.send(request, 200, data, {})

    world.origin.odd = deque([answer, note])
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
    assert 0.9 < asked_at[1] - asked_at[0] < 3.0


# --- rights -----------------------------------------------------------------------------------------------------------
async def test_a_right_that_ends_in_the_middle_is_asked_for_once_and_a_new_one_goes_on(world: World) -> None:
    path = publish(world, SIZE)
    world.origin.odd = deque([cut_off(FIRST), say(403)])
    async with world.run():
        world.deploy("1.0.0", sas="sv=old")
        await world.wait_state(State.WAITING)
        await asyncio.sleep(0.3)
        asked = [one for one in world.origin.requests if one[0] == path]
        assert asked == [(path, ""), (path, f"bytes={FIRST}-")]
        world.hub.desire(edgeferry={"sas": "sv=new"})
        await world.wait_state(State.ACTIVE)
    assert world.origin.sent_bytes <= WHOLE


# --- other places -----------------------------------------------------------------------------------------------------
async def test_a_redirect_to_another_host_is_followed_and_goes_on_there(world: World) -> None:
    path = publish(world, SIZE)
    async with open_origin() as other:
        other.files["/elsewhere"] = world.origin.files[path]
        moved = say(307, Location=f"{other.url}/elsewhere?sig=SECRET")
        world.origin.odd = deque([cut_off(FIRST), moved])
        async with world.run():
            world.deploy("1.0.0", sas="sv=1&sig=TOPSECRET")
            await world.wait_state(State.ACTIVE)
        assert other.requests == [("/elsewhere", f"bytes={FIRST}-")]
        assert other.sent_bytes == SIZE - FIRST


async def test_an_update_of_several_files_uses_one_connection(world: World) -> None:
    publish(world, SIZE)
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
    assert len(world.origin.requests) == 3
    assert len(world.origin.connections) == 1


async def end_early(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
    """Half of the object, in an answer that names no length and ends as if that were all."""
    reply = web.StreamResponse()
    reply.enable_chunked_encoding()
    await reply.prepare(request)
    await reply.write(data[: len(data) // 2])
    await reply.write_eof()
    return reply


async def test_an_answer_that_names_no_length_and_ends_early_is_no_damage(world: World) -> None:
    world.publish("1.0.0", size=SIZE)
    world.origin.odd = deque([end_early] * 3)
    with Watching(world) as seen:
        async with world.run():
            world.deploy("1.0.0")
            await world.wait_state(State.ACTIVE)
    assert {row.fault.code for row in seen if row.fault is not None} == {"link_broken"}


# --- metadata ---------------------------------------------------------------------------------------------------------
async def test_a_portal_in_front_of_the_metadata_is_no_verdict(world: World) -> None:
    """What the verifier fetches goes through SmallFetch; the signature tells a page from a file."""
    world.publish("1.0.0")
    world.origin.files["/repo/metadata/timestamp.json"] = PAGE
    async with world.run() as agent:
        small = SmallFetch(agent._parts.fetcher, repo=f"{world.origin.url}/repo", sas="")
        assert await small.run(lambda fetch: fetch("metadata/timestamp.json", 1000)) == PAGE, "the signature will tell"
        world.origin.statuses = deque([511])
        with pytest.raises(CaptivePortal):
            await small.run(lambda fetch: fetch("metadata/timestamp.json", 1000))
    world.manifests.failures = deque([CaptivePortal("a page"), MetadataUntrusted("a page")])
    with Watching(world) as seen:
        async with world.run():
            world.deploy("1.0.0")
            await world.wait_state(State.ACTIVE)
    codes = [row.fault.code for row in seen if row.state is State.WAITING and row.fault is not None]
    assert codes == ["captive_portal", "metadata_untrusted"]
