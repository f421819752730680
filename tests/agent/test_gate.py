"""The gate: windows, budgets, classes and priorities in whole updates; a ledger that is booked before it is spent."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.agent_world import World
from edgeferry.agent.agent import Agent
from edgeferry.agent.gate import HTTP, Gate
from edgeferry.agent.ledger import BOOKING_BYTES, Ledger
from edgeferry.agent.machine import State
from edgeferry.agent.turns import Turn
from edgeferry.errors import BudgetSpent, LinkForbidden, NoSpace, WindowClosed
from edgeferry.link.policy import LinkPolicy, read_link_policy
from edgeferry.storage.journal import Journal, open_journal
from polling import poll

FIRST_OF_JANUARY = 1_767_225_600.0
"""2026-01-01 00:00 UTC, a Thursday."""
HOUR_S = 3600.0


def make_policy(**section: Any) -> LinkPolicy:
    policy, problems = read_link_policy({"zone": "UTC", **section})
    assert problems == ()
    return policy


class Bench:
    """A gate on a real journal, with a clock and a meter of the test's own."""

    def __init__(self, journal: Journal, policy: LinkPolicy, interface: str = "eth0") -> None:
        self.now = FIRST_OF_JANUARY
        self.wire_bytes = 0
        self.interface = interface
        self.ledger = Ledger(journal, {HTTP: lambda: self.wire_bytes, "hub": lambda: 0})
        self.gate = Gate(self.ledger, policy=policy, now=lambda: self.now, find_interface=lambda: self.interface)


# --- may it send? -----------------------------------------------------------------------------------------------------
async def test_a_closed_window_refuses_and_says_when_it_opens(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        bench = Bench(journal, make_policy(windows=[{"cron": "0 2 * * *", "duration_s": 3600}]))
        with pytest.raises(WindowClosed) as refused:
            async with bench.gate.open():
                pass
        assert refused.value.retry_after_s == 2 * HOUR_S
        assert await journal.get_ledger() == {}


async def test_a_window_that_closes_ends_the_transfer_and_settles_it(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        bench = Bench(journal, make_policy(windows=[{"cron": "0 2 * * *", "duration_s": 3600}]))
        bench.now += 3 * HOUR_S - 0.05
        with pytest.raises(WindowClosed):
            async with bench.gate.open():
                bench.wire_bytes = 12_345
                await asyncio.sleep(30)
        assert await journal.get_ledger() == {"2026-01-01": {"http": 12_345}}


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ({"windows": [{"cron": "0 2 * * *", "duration_s": 60}]}, WindowClosed),
        ({"day_bytes": 65_536}, BudgetSpent),
        ({"interfaces": {"eth0": "forbidden"}}, LinkForbidden),
    ],
)
async def test_a_policy_that_changes_ends_the_transfer_that_runs(
    tmp_path: Path, section: dict[str, Any], error: type[Exception]
) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        bench = Bench(journal, make_policy())
        with pytest.raises(error):
            async with asyncio.timeout(5), bench.gate.open():
                bench.wire_bytes = 70_000
                bench.gate.policy = make_policy(**section)
                await asyncio.sleep(30)
        assert await journal.get_ledger() == {"2026-01-01": {"http": 70_000}}


@pytest.mark.parametrize("by", ["interface", "meter"])
async def test_an_interface_or_a_budget_ends_the_transfer_that_runs(tmp_path: Path, by: str) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        bench = Bench(journal, make_policy(interfaces={"wwan*": "forbidden"}, day_bytes=100_000))
        with pytest.raises((LinkForbidden, BudgetSpent)):
            async with asyncio.timeout(5), bench.gate.open():
                if by == "interface":
                    bench.interface = "wwan0"
                else:
                    bench.wire_bytes = 100_000
                    await bench.gate.book()
                await asyncio.sleep(30)


async def test_what_is_left_of_a_budget_may_be_used_to_its_end(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        bench = Bench(journal, make_policy(day_bytes=100_000, report_share=0))
        async with bench.gate.open():
            bench.wire_bytes = 99_999
            await bench.gate.book()
            await asyncio.sleep(0.01)


async def test_an_urgent_update_passes_a_closed_window(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        windows = [{"cron": "0 2 * * *", "duration_s": 3600}]
        bench = Bench(journal, make_policy(windows=windows, urgent_priority=5))
        assert not bench.gate.judge(4).may_send
        async with bench.gate.open(5) as verdict:
            assert verdict.may_send


async def test_a_spent_budget_refuses_until_the_next_day(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        bench = Bench(journal, make_policy(day_bytes=200_000))
        async with bench.gate.open():
            bench.wire_bytes = 190_000
        with pytest.raises(BudgetSpent) as refused:
            async with bench.gate.open():
                pass
        assert refused.value.retry_after_s == 24 * HOUR_S
        bench.now += 24 * HOUR_S
        async with bench.gate.open() as verdict:
            assert verdict.allowance_bytes is not None
            assert verdict.allowance_bytes > 190_000


async def test_a_forbidden_interface_sends_nothing_and_a_free_one_counts_for_no_budget(tmp_path: Path) -> None:
    policy = make_policy(interfaces={"wwan*": "forbidden", "eth0": "free"}, day_bytes=70_000)
    async with open_journal(tmp_path / "journal.db") as journal:
        with pytest.raises(LinkForbidden):
            async with Bench(journal, policy, "wwan0").gate.open():
                pass
        free = Bench(journal, policy, "eth0")
        for _ in range(2):
            async with free.gate.open():
                free.wire_bytes += 1_000_000
        assert free.gate.get_spent().day_bytes == 0
        assert await journal.get_ledger() == {"2026-01-01": {"free": 2_000_000}}


# --- the ledger -------------------------------------------------------------------------------------------------------
async def test_what_is_spent_is_booked_before_and_settled_after(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        bench = Bench(journal, make_policy())
        async with bench.gate.open():
            for _ in range(40):
                await bench.gate.book()
                booked = (await journal.get_ledger())["2026-01-01"]["http"]
                assert booked >= bench.wire_bytes + BOOKING_BYTES // 2
                bench.wire_bytes += 10_000
                assert bench.gate.get_spent().day_bytes == bench.wire_bytes
        assert await journal.get_ledger() == {"2026-01-01": {"http": 400_000}}


async def test_a_kill_makes_the_ledger_say_at_most_one_booking_too_much(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        bench = Bench(journal, make_policy())
        await bench.gate.book()
        bench.wire_bytes = 30_000
    async with open_journal(tmp_path / "journal.db") as journal:
        after = Bench(journal, make_policy())
        await after.ledger.load()
        assert 30_000 <= after.gate.get_spent().day_bytes <= 30_000 + BOOKING_BYTES


async def test_bytes_after_midnight_count_for_the_new_day(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        bench = Bench(journal, make_policy())
        await bench.gate.book()
        bench.wire_bytes = 1000
        bench.now += 24 * HOUR_S
        await bench.gate.book()
        bench.wire_bytes += 500
        await bench.gate.settle(HTTP)
        assert await journal.get_ledger() == {"2026-01-01": {"http": 1000}, "2026-01-02": {"http": 500}}


@pytest.mark.parametrize("jump_s", [-10 * 365 * 24 * HOUR_S, -HOUR_S, HOUR_S, 24 * HOUR_S, 10 * 365 * 24 * HOUR_S])
async def test_a_clock_that_jumps_loses_no_byte_of_the_ledger(tmp_path: Path, jump_s: float) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        bench = Bench(journal, make_policy(day_bytes=1_000_000))
        async with bench.gate.open():
            bench.wire_bytes = 70_000
            bench.now += jump_s
            await bench.gate.book()
            bench.wire_bytes += 70_000
        days = await journal.get_ledger()
        assert sum(kinds["http"] for kinds in days.values()) == 140_000
        allowance = bench.gate.judge().allowance_bytes
        assert allowance is not None and 0 <= allowance <= 1_000_000


class Slow:
    """The real journal, whose next write to the ledger begins when the test says so."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.may_write = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def add_bytes(self, day: str, kind: str, size_bytes: int) -> None:
        await self.may_write.wait()
        await self._journal.add_bytes(day, kind, size_bytes)


@pytest.mark.parametrize("cut_off", ["book", "settle"])
async def test_a_transfer_that_is_cut_off_in_a_write_of_the_ledger_is_settled_all_the_same(
    tmp_path: Path, cut_off: str
) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        slow = Slow(journal)
        bench = Bench(slow, make_policy())  # type: ignore[arg-type] # the journal but for one method
        if cut_off == "settle":
            slow.may_write.set()
        transfer = asyncio.create_task(run_transfer(bench, slow))
        await asyncio.sleep(0.05)
        transfer.cancel()
        await asyncio.sleep(0.05)
        assert not transfer.done()
        slow.may_write.set()
        await asyncio.wait({transfer})
        bench.wire_bytes += 10_000
        await bench.gate.settle(HTTP)
        spent = {"2026-01-01": {"http": bench.wire_bytes}}
        assert (await journal.get_ledger(), bench.ledger.get_days()) == (spent, spent)


async def run_transfer(bench: Bench, slow: Slow) -> None:
    async with bench.gate.open():
        bench.wire_bytes += 10_000
        slow.may_write.clear()


async def test_a_disk_that_takes_no_booking_stops_the_transfer(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(journal, name)

            async def add_bytes(self, *_: object) -> None:
                raise NoSpace("the disk is full")

        bench = Bench(Full(), make_policy())  # type: ignore[arg-type] # the journal but for one method
        with pytest.raises(NoSpace):
            async with bench.gate.open():
                pytest.fail("nothing may be sent that is not booked")


# --- whole updates ----------------------------------------------------------------------------------------------------
async def test_an_update_waits_for_its_window_and_serves_meanwhile(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run() as agent:
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.hub.desire(edgeferry={"link": {"windows": [{"cron": "0 0 1 1 *", "duration_s": 60}]}})
        world.deploy("1.1.0")
        record = await world.wait_state(State.WAITING, version="1.1.0")
        assert record.fault is not None and record.fault.code == "window_closed"
        assert record.retries == 0
        assert record.retry_at > time.time() + 60
        [status] = agent.get_status().models
        assert (status.active, status.state) == ("1.0.0", "WAITING")
        assert not agent.get_status().link.may_send
        fetched = len(world.origin.requests)
        world.hub.desire(edgeferry={"link": {"windows": []}})
        await world.wait_state(State.ACTIVE, version="1.1.0")
        assert len(world.origin.requests) > fetched


async def test_a_transfer_that_does_not_fit_spreads_over_days_and_sends_nothing_twice(world: World) -> None:
    world.publish("1.0.0", size=400_000)
    world.policy = make_policy(day_bytes=200_000, report_share=0)
    async with world.run() as agent:
        world.deploy("1.0.0")
        days = 0
        while (await world.wait_state(State.WAITING, State.ACTIVE)).state is State.WAITING:
            record = world.get_record()
            assert record is not None and record.fault is not None and record.fault.code == "budget_spent"
            [status] = agent.get_status().models
            assert 0 < status.done_bytes < status.total_bytes and 0 < status.progress < 1
            assert agent.get_status().ledger.day_bytes <= 200_000 + BOOKING_BYTES
            days, sent_bytes = days + 1, world.origin.sent_bytes
            world.clock_error_s += 24 * HOUR_S
            await agent.run_command("reload", None)
            await poll(partial(has_sent, world, sent_bytes + 1))
            await asyncio.sleep(0.05)
        assert days >= 2
        assert world.origin.sent_bytes < 400_000 + (days + 1) * BOOKING_BYTES


async def test_a_server_without_parts_and_a_budget_that_holds_less_are_told_and_no_day_is_spent(world: World) -> None:
    """One look a day, which takes nothing of the file."""
    world.publish("1.0.0", size=400_000)
    world.policy = make_policy(day_bytes=200_000)
    world.origin.ranges = False
    async with world.run() as agent:
        world.deploy("1.0.0")
        for days in range(3):
            record = await world.wait_state(State.WAITING)
            assert record.fault is not None and record.fault.code == "budget_too_small"
            assert "server sends no parts" in record.fault.message and "no other day more than" in record.fault.message
            assert record.retry_at > world.now() + world.clock_error_s + 60
            assert len(world.origin.requests) == days + 1
            assert agent.get_status().ledger.day_bytes <= BOOKING_BYTES
            world.clock_error_s += 24 * HOUR_S
            await agent.run_command("reload", None)
            await poll(partial(has_asked, world, days + 2))


async def has_asked(world: World, times: int) -> bool:
    return len(world.origin.requests) >= times


@pytest.mark.parametrize("day_bytes", [100_000, 10_000_000], ids=["holds less", "holds more"])
async def test_a_classic_download_asks_for_no_more_than_the_budget_holds(
    world: World, classic_zip: bytes, day_bytes: int
) -> None:
    world.policy = make_policy(day_bytes=day_bytes, report_share=0)
    assert 100_000 < len(classic_zip) < 180_000
    async with world.run() as agent:
        world.deploy_classic("gauge.zip", classic_zip)
        await world.wait_state(State.WAITING, State.ACTIVE, model="default")
        await asyncio.sleep(0.05)
        assert world.origin.sent_bytes < day_bytes
        if day_bytes < len(classic_zip):
            world.clock_error_s += 24 * HOUR_S
            await agent.run_command("reload", None)
        await world.wait_state(State.ACTIVE, model="default")
    assert all(asked.rpartition("-")[2] for _, asked in world.origin.requests), "each names its end"


async def test_a_small_urgent_version_overtakes_a_half_sent_big_one_which_goes_on_later(world: World) -> None:
    world.publish("1.0.0", model="big", size=400_000)
    world.publish("2.0.0", model="small", size=8_000)
    world.origin.block_delay_s = 0.01
    async with world.run():
        world.deploy("1.0.0", model="big")
        await world.wait_state(State.DOWNLOADING, model="big")
        await poll(lambda: has_sent(world, 60_000))
        world.deploy("2.0.0", model="small", priority=5)
        await world.wait_state(State.ACTIVE, model="small")
        big = world.get_record("big")
        assert big is not None and big.state is State.DOWNLOADING and big.retries == 0
        await world.wait_state(State.ACTIVE, model="big")
    assert world.origin.sent_bytes < 408_000 + 2 * BOOKING_BYTES
    assert world.activator.switched == ["2.0.0", "1.0.0"]


async def has_sent(world: World, size: int) -> bool:
    return world.origin.sent_bytes >= size


async def test_the_hubs_connection_keeps_to_windows_where_that_is_wanted(world: World) -> None:
    world.policy = make_policy(hub="windows", windows=[{"cron": "0 0 1 1 *", "duration_s": 60}])
    async with world.run():
        await asyncio.sleep(0.1)
        assert world.hub.connections == 0


async def test_the_hubs_connection_is_ended_by_the_policy_that_it_brings(world: World) -> None:
    async with world.run() as agent:
        await poll(lambda: is_connected(agent))
        policy = make_policy(hub="windows", windows=[{"cron": "0 0 1 1 *", "duration_s": 60}])
        agent._parts.gate.policy = policy
        await poll(lambda: is_connected(agent, wanted=False))
        await asyncio.sleep(0.1)
        assert world.hub.connections == 1
        agent._parts.gate.policy = make_policy()
        await poll(lambda: is_connected(agent))


async def is_connected(agent: Agent, *, wanted: bool = True) -> bool:
    return agent.get_status().connected is wanted


async def test_who_holds_a_turn_hears_of_somebody_more_urgent_and_of_nobody_else() -> None:
    turn = Turn()
    async with turn.take(1) as hold:
        waiting = [asyncio.create_task(take(turn, priority)) for priority in (0, 1)]
        await asyncio.sleep(0)
        assert not hold.overtaken.is_set()
        waiting.append(asyncio.create_task(take(turn, 2)))
        await asyncio.sleep(0)
        assert hold.overtaken.is_set()
    await asyncio.gather(*waiting)


async def take(turn: Turn, priority: int) -> None:
    async with turn.take(priority):
        await asyncio.sleep(0)
