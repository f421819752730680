"""When loads stand still and when they go on; real processes, a real loop."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edgeferry.runtime import brake as brake_file
from edgeferry.runtime.brake import BRISK, GENTLE, TURN_S, Brake, Pace

SPIN = "while True: pass"
LATE_S = 5.0
"""A busy machine's patience."""


@pytest.fixture
def pid() -> Iterator[int]:
    """A process that would use a core for ever."""
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    yield process.pid
    process.kill()
    process.wait()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def wait_until(stopped: bool, pid: int) -> None:
    async with asyncio.timeout(LATE_S):
        while is_stopped(pid) is not stopped:
            await asyncio.sleep(0.001)


async def test_a_load_stands_still_while_a_request_runs_and_goes_on_after_it(pid: int) -> None:
    brake = Brake(2)
    with brake.load(pid) as load:
        await wait_until(False, pid)
        with brake.run():
            await wait_until(True, pid)
            await asyncio.sleep(0.02)
        await wait_until(False, pid)
        assert 0.02 <= load.stood_s < LATE_S


async def test_a_load_that_begins_under_a_request_stands_still_at_once(pid: int) -> None:
    brake = Brake(2)
    with brake.run(), brake.load(pid):
        await wait_until(True, pid)


async def test_a_load_goes_on_when_it_has_ended_though_a_request_runs(pid: int) -> None:
    brake = Brake(2)
    with brake.run():
        with brake.load(pid):
            await wait_until(True, pid)
        await wait_until(False, pid)
        await asyncio.sleep(2 * GENTLE.held_max_s)  # long enough to be held again
        assert not is_stopped(pid)


async def test_one_load_that_ends_leaves_another_one_held(pid: int) -> None:
    brake = Brake(2)
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", SPIN)
    try:
        with brake.load(pid):
            with brake.load(other.pid), brake.run():
                await wait_until(True, other.pid)
            await wait_until(False, other.pid)
            with brake.run():
                await wait_until(True, pid)
                assert not is_stopped(other.pid)
    finally:
        other.kill()
        await other.wait()


async def test_nobody_is_stopped_while_a_core_is_to_spare(pid: int) -> None:
    brake = Brake(4)
    with brake.load(pid) as load, ExitStack() as running:
        running.enter_context(brake.run())
        running.enter_context(brake.run())
        await asyncio.sleep(0.02)
        assert not is_stopped(pid) and load.stood_s == 0
        running.enter_context(brake.run())
        await wait_until(True, pid)


async def test_a_load_gets_its_turns_under_requests_without_end(pid: int) -> None:
    brake, began_s = Brake(2), time.monotonic()
    with brake.load(pid) as load, brake.run():
        for _ in range(4):
            await wait_until(True, pid)
            await wait_until(False, pid)
        share = 1 - load.stood_s / (time.monotonic() - began_s)
    assert share >= TURN_S / (GENTLE.held_max_s + TURN_S) / 2


@pytest.mark.parametrize(("gentle_s", "pace"), [(60.0, GENTLE), (0.0, BRISK)], ids=["first", "then"])
async def test_a_load_that_met_a_request_rests_for_a_multiple_of_what_it_ran(
    pid: int, monkeypatch: pytest.MonkeyPatch, gentle_s: float, pace: Pace
) -> None:
    monkeypatch.setattr(brake_file, "GENTLE_S", gentle_s)
    brake = Brake(2)
    with brake.load(pid) as load:
        await asyncio.sleep(0.01)
        ran_s = load.ran_s
        with brake.run():
            pass
        await wait_until(True, pid)
        await wait_until(False, pid)
        assert load.stood_s >= min(pace.rest * ran_s, pace.held_max_s)


async def test_a_load_that_met_a_request_after_a_long_run_rests_no_longer_than_it_may_be_held(pid: int) -> None:
    brake = Brake(2)
    with brake.load(pid) as load:
        await asyncio.sleep(2 * GENTLE.held_max_s)
        with brake.run():
            pass
        assert BRISK.rest * load.ran_s > 1.0
        await asyncio.sleep(0.7)
        assert not is_stopped(pid) and load.stood_s > 0


async def test_in_a_turn_one_core_is_the_loads_and_a_request_for_it_waits(pid: int) -> None:
    brake = Brake(2)
    with brake.load(pid), brake.run():
        await wait_until(True, pid)
        await wait_until(False, pid)  # its turn
        await asyncio.wait_for(brake.wait_turn(), LATE_S)
        await wait_until(True, pid)


async def test_in_a_turn_a_request_runs_as_soon_as_another_one_ends(pid: int) -> None:
    brake = Brake(2)
    with brake.load(pid):
        with brake.run():
            await wait_until(True, pid)
            await wait_until(False, pid)
            waiting = asyncio.create_task(brake.wait_turn())
            await asyncio.sleep(0)
            assert not waiting.done()
        await asyncio.sleep(0.001)
        assert waiting.done()


async def test_without_a_load_no_request_waits() -> None:
    brake = Brake(1)
    with brake.run():
        await asyncio.wait_for(brake.wait_turn(), 0.001)


async def test_quiet_is_waited_for_until_the_last_request_has_ended_but_not_for_ever() -> None:
    brake = Brake(2)
    with brake.run():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(brake.wait_quiet(LATE_S), 0.02)
        await brake.wait_quiet(0.02)
        waiting = asyncio.create_task(brake.wait_quiet(LATE_S))
        await asyncio.sleep(0.01)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 1.0)


async def test_a_load_whose_process_has_died_disturbs_nobody() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    brake = Brake(2)
    with brake.load(process.pid), brake.run():
        await asyncio.sleep(1.5 * GENTLE.held_max_s)  # it is stopped at once, and its turn comes
    assert not faults


async def test_killing_ends_a_load_that_stands_still() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SPIN)
    brake = Brake(2)
    with brake.run(), brake.load(process.pid):
        await wait_until(True, process.pid)
        process.kill()
        assert await asyncio.wait_for(process.wait(), LATE_S) == -signal.SIGKILL
