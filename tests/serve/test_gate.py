"""The gate: a burst, and clients who wait for their answers, are told from overload."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from edgeferry.errors import QueueFull
from edgeferry.serve.gate import Gate


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Crowd:
    """Those who hold places, in the order in which they came."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._held: deque[AbstractContextManager[None]] = deque()

    def come(self, count: int) -> int:
        """How many of them are taken."""
        before = len(self._held)
        for _ in range(count):
            place = self._gate.queue()
            try:
                place.__enter__()
            except QueueFull:
                continue
            self._held.append(place)
        return len(self._held) - before

    def leave(self, count: int) -> None:
        for _ in range(min(count, len(self._held))):
            self._held.popleft().__exit__(None, None, None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(clock: Clock) -> Gate:
    return Gate(running=2, waiting=8, standing=0, clock=clock)


@pytest.fixture
def crowd(gate: Gate) -> Iterator[Crowd]:
    crowd = Crowd(gate)
    yield crowd
    crowd.leave(100)
    assert gate.taken == 0


def overload(crowd: Crowd) -> None:
    """Two come for each who is answered."""
    for _ in range(100):
        crowd.come(2)
        crowd.leave(1)


def test_a_burst_may_wait(crowd: Crowd) -> None:
    assert crowd.come(20) == 2 + 8


def test_clients_who_wait_for_their_answers_are_never_refused(crowd: Crowd) -> None:
    assert crowd.come(10) == 10
    for _ in range(500):
        crowd.leave(1)
        assert crowd.come(1) == 1


def test_bursts_one_after_the_other_may_wait(crowd: Crowd) -> None:
    for _ in range(50):
        assert crowd.come(8) == 8
        crowd.leave(8)


def test_in_overload_nobody_waits(crowd: Crowd, gate: Gate) -> None:
    overload(crowd)
    crowd.leave(10)
    assert crowd.come(5) == 2
    for _ in range(100):
        assert crowd.come(2) == 0
        crowd.leave(1)
        assert crowd.come(1) == 1


def test_overload_ends_when_as_many_are_answered_as_come(crowd: Crowd) -> None:
    overload(crowd)
    crowd.leave(10)
    for _ in range(100):
        assert crowd.come(1) == 1
        crowd.leave(1)
    assert crowd.come(10) == 10


def test_after_a_silence_overload_is_forgotten(crowd: Crowd, clock: Clock) -> None:
    overload(crowd)
    crowd.leave(10)
    clock.now_s += 2.0
    assert crowd.come(10) == 10


def test_a_queue_that_was_chosen_is_as_long_as_it_says(clock: Clock) -> None:
    crowd = Crowd(Gate(running=2, waiting=1, clock=clock))
    overload(crowd)
    crowd.leave(10)
    assert crowd.come(10) == 3
    crowd.leave(10)


async def test_beside_those_that_run_one_of_those_who_wait_stands_ready() -> None:
    gate = Gate(running=2, waiting=2, ready=1)
    inside = 0

    async def ask(done: asyncio.Event) -> None:
        nonlocal inside
        with gate.queue():
            async with gate.run():
                inside += 1
                await done.wait()

    events = [asyncio.Event() for _ in range(4)]
    tasks = [asyncio.create_task(ask(event)) for event in events]
    await asyncio.sleep(0)
    assert (gate.taken, inside, gate.busy) == (4, 3, True)
    with pytest.raises(QueueFull):
        gate.require_place()
    events[0].set()
    await tasks[0]
    await asyncio.sleep(0)
    assert (gate.taken, inside) == (3, 4)
    for event in events:
        event.set()
    await asyncio.gather(*tasks)
    assert (gate.taken, gate.busy) == (0, False)


async def test_one_free_core_is_not_busy() -> None:
    gate = Gate(running=2, waiting=2, ready=1)
    with gate.queue():
        assert not gate.busy
        with gate.queue():
            assert gate.busy
