"""The gate: overload is told from a moment in which nothing is answered."""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack

import pytest

from edgeferry.errors import QueueFull
from edgeferry.serve.gate import Gate

USUAL_S = 0.01


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def answer(gate: Gate, clock: Clock, took_s: float = USUAL_S) -> None:
    with gate.queue():
        async with gate.run():
            clock.now_s += took_s


async def make_busy_gate(clock: Clock) -> Gate:
    """One that answers as usual, and has just answered."""
    gate = Gate(running=1, waiting=1, surge=3, clock=clock)
    for _ in range(100):
        await answer(gate, clock)
    return gate


def fill(gate: Gate, stack: ExitStack) -> int:
    """Takes places until there are none; how many there were."""
    count = 0
    while count < 100:
        try:
            stack.enter_context(gate.queue())
        except QueueFull:
            return count
        count += 1
    raise AssertionError("the queue has no end")


async def test_while_answers_come_as_usual_the_queue_is_short() -> None:
    clock = Clock()
    gate = await make_busy_gate(clock)
    with ExitStack() as stack:
        assert fill(gate, stack) == 2
        for _ in range(20):
            clock.now_s += USUAL_S / 2
            async with gate.run():
                clock.now_s += USUAL_S / 2
            with pytest.raises(QueueFull):
                gate.require_place()


async def test_when_no_answer_comes_more_may_wait_and_a_moment_later_no_more() -> None:
    clock = Clock()
    gate = await make_busy_gate(clock)
    with ExitStack() as stack:
        async with AsyncExitStack() as running:
            await running.enter_async_context(gate.run())
            assert fill(gate, stack) == 2
            clock.now_s += 4 * USUAL_S
            assert fill(gate, stack) == 3
        assert gate.taken == 5
        for _ in range(20):
            async with gate.run():
                clock.now_s += USUAL_S
        with pytest.raises(QueueFull):
            gate.require_place()
    assert gate.taken == 0


async def test_who_speaks_at_once_after_a_silence_may_wait() -> None:
    clock = Clock()
    gate = await make_busy_gate(clock)
    clock.now_s += 10.0
    with ExitStack() as stack:
        assert fill(gate, stack) == 5


async def test_a_queue_that_was_chosen_is_as_long_as_it_says() -> None:
    gate = Gate(running=2, waiting=1)
    with ExitStack() as stack:
        assert fill(gate, stack) == 3
