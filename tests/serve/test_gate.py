"""The gate: a burst is told from overload."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack

import pytest

from edgeferry.errors import QueueFull
from edgeferry.serve.gate import BURST_S, Gate


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(clock: Clock) -> Gate:
    return Gate(running=2, waiting=8, standing=1, clock=clock)


@pytest.fixture
def taken() -> Iterator[list[AbstractContextManager[None]]]:
    """Places that are held, in the order in which they were taken; all are given back in the end."""
    held: list[AbstractContextManager[None]] = []
    yield held
    for place in held:
        place.__exit__(None, None, None)


def take(gate: Gate, taken: list[AbstractContextManager[None]], most: int = 100) -> int:
    """Takes places until there are none, `most` at the most; how many there were."""
    for count in range(most):
        place = gate.queue()
        try:
            place.__enter__()
        except QueueFull:
            return count
        taken.append(place)
    return most


def give_back(taken: list[AbstractContextManager[None]], count: int) -> None:
    for _ in range(count):
        taken.pop(0).__exit__(None, None, None)


def test_a_burst_may_wait(gate: Gate, taken: list[AbstractContextManager[None]]) -> None:
    assert take(gate, taken) == 2 + 8


def test_a_queue_that_stands_is_kept_short(gate: Gate, clock: Clock, taken: list[AbstractContextManager[None]]) -> None:
    assert take(gate, taken, 6) == 6
    clock.now_s += 2 * BURST_S
    assert take(gate, taken) == 0
    give_back(taken, 4)
    assert gate.taken == 2
    assert take(gate, taken) == 1


def test_bursts_one_after_the_other_are_no_standing_queue(
    gate: Gate, clock: Clock, taken: list[AbstractContextManager[None]]
) -> None:
    for _ in range(20):
        assert take(gate, taken, 8) == 8
        clock.now_s += BURST_S / 2
        give_back(taken, 8)


def test_overload_ends_when_nobody_was_refused_for_a_moment(
    gate: Gate, clock: Clock, taken: list[AbstractContextManager[None]]
) -> None:
    assert take(gate, taken) == 10
    give_back(taken, 10)
    clock.now_s += BURST_S / 2
    assert take(gate, taken) == 3, "somebody was refused just now"
    give_back(taken, 3)
    clock.now_s += 2 * BURST_S
    assert take(gate, taken) == 10


def test_in_overload_nobody_waits_longer_because_the_queue_was_empty_for_a_moment(
    gate: Gate, clock: Clock, taken: list[AbstractContextManager[None]]
) -> None:
    assert take(gate, taken) == 10
    give_back(taken, 8)
    for _ in range(100):
        clock.now_s += BURST_S / 10
        assert take(gate, taken) == 1
        give_back(taken, 1)


def test_a_queue_that_was_chosen_is_as_long_as_it_says(clock: Clock) -> None:
    gate = Gate(running=2, waiting=1, clock=clock)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(gate.queue())
        clock.now_s += 2 * BURST_S
        with pytest.raises(QueueFull):
            gate.require_place()
    assert gate.taken == 0
