"""The compact record in the twin, and when it is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from edgeferry.agent.machine import State
from edgeferry.agent.record import Artifact, UpdateRecord
from edgeferry.agent.reporter import Reporter, make_model_status, make_reported
from edgeferry.errors import ServerBusy
from edgeferry.link.forecast import get_gather_s
from edgeferry.twin.document import check_values
from edgeferry.twin.status import DeviceStatus, ModelStatus

ERROR = {"code": "golden_mismatch", "message": "found 1 of 21 " * 20, "advice": "Look at the training. " * 10}


def make_view(count: int, *, error: dict[str, str] | None = ERROR, file: str = "tensorflow001.zip") -> DeviceStatus:
    models = tuple(
        ModelStatus(model=f"model{n}", active="1.0.0", target="1.1.0", state="REJECTED", error=error)
        for n in range(count)
    )
    return DeviceStatus(device="d", role="both", models=models, latest_file=file, problem=error, observed=4_000_000)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_the_record_stays_under_512_bytes_and_within_the_twins_rules(count: int) -> None:
    reported = make_reported(make_view(count))
    assert len(msgspec.json.encode(reported)) <= 512
    check_values(reported)
    assert set(reported["edgeferry"]["models"]) == {f"model{n}" for n in range(count)}


def test_one_model_with_an_error_keeps_code_message_and_advice() -> None:
    view = DeviceStatus(device="d", role="both", models=make_view(1).models)
    model = make_reported(view)["edgeferry"]["models"]["model0"]
    assert set(model["error"]) == {"code", "message", "advice"}
    assert model["active"] == "1.0.0"


def test_progress_is_bytes_of_all_artifacts_and_only_said_while_it_moves() -> None:
    artifacts = (Artifact(size=100), Artifact(size=300))
    record = UpdateRecord(
        kind="signed",
        model="m",
        version="2",
        key="k",
        identity="i",
        state=State.DOWNLOADING,
        artifacts=artifacts,
        index=1,
    )
    view = make_model_status("m", record, active="1", previous="", here_bytes=100)
    assert view.progress == 0.5
    reported = make_reported(DeviceStatus(device="d", role="both", models=(view,)))
    assert reported["edgeferry"]["models"]["m"]["progress"] == 0.5
    done = make_model_status(
        "m", msgspec.structs.replace(record, state=State.ACTIVE), active="2", previous="1", here_bytes=0
    )
    reported = make_reported(DeviceStatus(device="d", role="both", models=(done,)))
    assert "progress" not in reported["edgeferry"]["models"]["m"]


async def test_only_what_differs_is_sent_and_what_went_is_deleted() -> None:
    views = [make_view(1), make_view(1, error=None)]
    sent: list[dict[str, Any]] = []

    async def send(patch: dict[str, Any]) -> None:
        sent.append(patch)

    reporter = Reporter(lambda: views[0], every_s=60)
    task = asyncio.create_task(reporter.run({"$version": 3}, send))
    await wait_for(lambda: len(sent) == 1)
    assert sent[0]["LatestAIModelFileName"] == "tensorflow001.zip"
    views.pop(0)
    reporter.note_change()
    await wait_for(lambda: len(sent) == 2)
    assert sent[1] == {"edgeferry": {"error": None, "models": {"model0": {"error": None}}}}
    task.cancel()


async def test_what_the_hub_holds_already_is_not_sent_again() -> None:
    sent: list[dict[str, Any]] = []

    async def send(patch: dict[str, Any]) -> None:
        sent.append(patch)

    reporter = Reporter(lambda: make_view(1), every_s=60)
    task = asyncio.create_task(reporter.run(make_reported(make_view(1)), send))
    await asyncio.sleep(0.05)
    assert sent == []
    task.cancel()


@pytest.mark.parametrize(("answer_s", "gather_s"), [(0.001, 0.1), (0.1, 3.0), (1.6, 10.0)])
def test_the_slower_the_link_the_more_states_are_one_report(answer_s: float, gather_s: float) -> None:
    assert get_gather_s(answer_s) == pytest.approx(gather_s)


async def test_progress_alone_is_said_ever_more_seldom() -> None:
    shown = {"progress": 0.0}
    sent: list[float] = []

    def view() -> DeviceStatus:
        model = ModelStatus(model="m", state="DOWNLOADING", target="1", progress=shown["progress"])
        return DeviceStatus(device="d", role="both", models=(model,))

    async def send(patch: dict[str, Any]) -> None:
        sent.append(patch["edgeferry"]["models"]["m"]["progress"])

    reporter = Reporter(view, every_s=0.2)
    task = asyncio.create_task(reporter.run({}, send))
    for step in range(1, 80):
        await asyncio.sleep(0.02)
        shown["progress"] = step / 80
        reporter.note_progress()
    assert 3 <= len(sent) <= 4, "at once, after 0.2 to 0.4 s, 0.4 s later, 0.8 s later"
    task.cancel()


async def test_a_download_that_waits_and_goes_on_again_and_again_is_said_ever_more_seldom() -> None:
    shown = {"state": "DOWNLOADING"}
    sent: list[str] = []

    def view() -> DeviceStatus:
        model = ModelStatus(model="m", state=shown["state"], target="1", progress=len(sent) / 100)
        return DeviceStatus(device="d", role="both", models=(model,))

    async def send(patch: dict[str, Any]) -> None:
        sent.append(patch["edgeferry"]["models"]["m"].get("state", ""))

    reporter = Reporter(view, every_s=0.4)
    task = asyncio.create_task(reporter.run({}, send))
    for step in range(20):
        await asyncio.sleep(0.12)
        shown["state"] = ("WAITING", "DOWNLOADING")[step % 2]
        reporter.note_change()
    assert sent[:2] == ["DOWNLOADING", "WAITING"], "each is news once"
    assert len(sent) <= 6, "0.4 s later, 0.8 s later, 1.6 s later"
    shown["state"] = "VERIFYING"
    reporter.note_change()
    async with asyncio.timeout(0.3):
        await wait_for(lambda: sent[-1] == "VERIFYING")
    shown["state"] = "DOWNLOADING"
    reporter.note_change()
    async with asyncio.timeout(0.3):
        await wait_for(lambda: sent[-1] == "DOWNLOADING")
    task.cancel()


async def test_a_hub_that_is_busy_hears_later_what_is_true_then() -> None:
    views, sent = [make_view(1), make_view(1, error=None)], list[dict[str, Any]]()

    async def send(patch: dict[str, Any]) -> None:
        sent.append(patch)
        if len(sent) == 1:
            views.pop(0)
            raise ServerBusy("the hub asks to send less")

    task = asyncio.create_task(Reporter(lambda: views[0], every_s=60).run({}, send))
    await wait_for(lambda: len(sent) == 2)
    assert ["error" in patch["edgeferry"] for patch in sent] == [True, False]
    task.cancel()


async def wait_for(check: Any) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.01)
