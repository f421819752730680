"""Workers as real processes: what they answer, how they fail, and that they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edgeferry.errors import (
    EdgeferryError,
    GoldenMismatch,
    InvariantBroken,
    ModelCrashed,
    ModelTimeout,
    ModelUnreadable,
    ModelUnsupported,
    PictureTooLarge,
    PictureUnreadable,
    RequestTimeout,
    ToolMissing,
    WorkerLost,
    WorkerStartFailed,
)
from edgeferry.model.spec import Thresholds
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime import child as child_file
from edgeferry.runtime.brake import Brake
from edgeferry.runtime.child import InferReply, Terms, Worker, WorkerSettings, start_worker
from edgeferry.vision.answer import ClassificationAnswer
from runtime.versions import MakeVersion, make_picture

RED, GREEN, BLUE = (make_picture(colour) for colour in ("red", "lime", "blue"))
SETTINGS = WorkerSettings(concurrency=2, load_timeout_s=20.0)
DEADLINE_S = 20.0


@contextlib.asynccontextmanager
async def open_worker(version: StoredVersion, settings: WorkerSettings = SETTINGS) -> AsyncIterator[Worker]:
    worker = await start_worker(version, settings)
    try:
        yield worker
    finally:
        await worker.close(drain_timeout_s=5.0)


def get_label(reply: InferReply) -> str:
    assert isinstance(reply.answer, ClassificationAnswer)
    return reply.answer.classes[0].label


def read_state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        await asyncio.sleep(0.02)


def find_workers() -> set[int]:
    """Pids of workers that this process has started and that still run."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid() and b"edgeferry.runtime.worker" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


def read_nices(pid: int) -> list[int]:
    return [
        int((task / "stat").read_text().rpartition(")")[2].split()[16]) for task in Path(f"/proc/{pid}/task").iterdir()
    ]


def read_group_nice(pid: int) -> list[int]:
    """Of its session's share of time; none where the kernel has no such groups."""
    group = Path(f"/proc/{pid}/autogroup")
    return [int(group.read_text().split()[-1])] if group.exists() else []


async def test_a_worker_proves_its_version_and_answers(make_fake: MakeVersion) -> None:
    async with open_worker(make_fake()) as worker:
        assert worker.alive
        assert (worker.report.found, worker.report.total) == (1, 1)
        assert worker.report.load_ms > 0
        assert worker.terms == Terms(labels=(("red", "green", "blue"),), thresholds=(Thresholds(),))
        reply = await worker.infer(GREEN, timeout_s=5)
        assert get_label(reply) == "green"
        assert (reply.width, reply.height) == (8, 8)
        assert set(reply.timings_ms) == {"decode", "prepare", "infer", "answer"}
        assert reply.drawn == b""
        pid = worker.pid
    assert not worker.alive
    assert await worker.wait_dead() == 0
    assert not is_running(pid)


async def test_answers_go_to_those_who_asked(make_fake: MakeVersion) -> None:
    async with open_worker(make_fake()) as worker:
        pictures = [RED, GREEN, BLUE] * 20
        replies = await asyncio.gather(*(worker.infer(picture, timeout_s=10) for picture in pictures))
        assert [get_label(reply) for reply in replies] == ["red", "green", "blue"] * 20


async def test_terms_travel_with_each_request_and_are_never_mixed_up(make_fake: MakeVersion) -> None:
    async with open_worker(make_fake()) as worker:
        other = Terms(labels=(("rot", "gelb", "blau"),), thresholds=(Thresholds(),))
        strict = Terms(labels=other.labels, thresholds=(Thresholds(score=0.99),))
        turns = [None, other, other, strict, None, other, strict] * 10
        replies = await asyncio.gather(*(worker.infer(RED, terms=terms, timeout_s=10) for terms in turns))
        wanted = {None: "red", other: "rot", strict: ""}
        for terms, reply in zip(turns, replies, strict=True):
            assert isinstance(reply.answer, ClassificationAnswer)
            assert "".join(one.label for one in reply.answer.classes) == wanted[terms]


async def test_terms_that_could_not_be_sent_are_not_taken_as_known(make_fake: MakeVersion) -> None:
    async with open_worker(make_fake()) as worker:
        huge = Terms(labels=(("x" * (17 << 20),),), thresholds=(Thresholds(),))
        for _ in range(2):
            with pytest.raises(EdgeferryError) as caught:
                await worker.infer(RED, terms=huge, timeout_s=5)
            assert caught.value.code == "limit_exceeded"
        assert get_label(await worker.infer(RED, timeout_s=5)) == "red"


async def test_a_drawn_picture_comes_along_when_asked_for(make_fake: MakeVersion) -> None:
    async with open_worker(make_fake()) as worker:
        reply = await worker.infer(RED, timeout_s=5, draw="png")
        assert reply.drawn.startswith(b"\x89PNG")
        assert "draw" in reply.timings_ms
        assert (await worker.infer(RED, timeout_s=5, draw="jpeg")).drawn.startswith(b"\xff\xd8\xff")


async def test_bad_pictures_are_the_callers_fault_and_the_worker_serves_on(make_fake: MakeVersion) -> None:
    async with open_worker(make_fake(), replace(SETTINGS, picture_max_bytes=10_000, picture_max_pixels=64)) as worker:
        for picture, error in [
            (b"", PictureUnreadable),
            (b"no picture", PictureUnreadable),
            (b"x" * 10_001, PictureTooLarge),
            (make_picture("red", 9), PictureTooLarge),
        ]:
            with pytest.raises(error):
                await worker.infer(picture, timeout_s=5)
        assert get_label(await worker.infer(RED, timeout_s=5)) == "red"


async def test_as_many_inferences_run_at_once_as_the_settings_say(make_fake: MakeVersion) -> None:
    async with open_worker(make_fake("run sleep 0.3", golden=False), replace(SETTINGS, concurrency=4)) as worker:
        started = time.monotonic()
        await asyncio.gather(*(worker.infer(RED, timeout_s=10) for _ in range(8)))
        assert 0.55 < time.monotonic() - started < 2.0


async def test_golden_truth_that_is_missed_refuses_the_version(make_fake: MakeVersion) -> None:
    with pytest.raises(GoldenMismatch, match="0 of 1") as caught:
        await start_worker(make_fake(labels=("blue", "red", "green")), SETTINGS)
    assert caught.value.values == {"found": 0, "total": 1, "needed": 0.75}
    assert find_workers() == set()


@pytest.mark.parametrize(
    ("word", "error", "says"),
    [
        ("load refuse", ModelUnreadable, "not a flatbuffer"),
        ("load exit", ModelCrashed, "exit code 3.*last words of the engine"),
        ("load signal SIGSEGV", ModelCrashed, "SIGSEGV"),
        ("load signal SIGKILL", ModelCrashed, "SIGKILL"),
        ("load signal SIGXCPU", ModelTimeout, "CPU time"),
        ("load memory 4000", ModelUnreadable, "memory"),
        ("load unforeseen -", ModelCrashed, "nobody foresaw"),
        ("load garbage", ModelCrashed, "while model@1.0.0 was loaded"),
        ("run signal SIGABRT", ModelCrashed, "SIGABRT"),
        ("run refuse", ModelUnsupported, "failed to run"),
    ],
)
async def test_a_model_that_fails_while_it_is_proven_is_named_and_leaves_no_process(
    make_fake: MakeVersion, word: str, error: type[EdgeferryError], says: str
) -> None:
    with pytest.raises(error, match=says):
        await start_worker(make_fake(word), SETTINGS)
    assert find_workers() == set()


@pytest.mark.parametrize("word", ["load hang", "load spin", "run hang"])
async def test_a_model_that_hangs_while_it_is_proven_is_timed_out(make_fake: MakeVersion, word: str) -> None:
    with pytest.raises(ModelTimeout, match=r"0\.3 s"):
        await start_worker(make_fake(word), replace(SETTINGS, load_timeout_s=0.3))
    assert find_workers() == set()


async def test_a_shouting_engine_does_not_block_and_its_words_are_bounded(make_fake: MakeVersion) -> None:
    async with open_worker(make_fake("load shout")) as worker:
        assert get_label(await worker.infer(RED, timeout_s=5)) == "red"


async def test_the_worker_does_not_get_the_secrets_of_our_environment(
    make_fake: MakeVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EdgeHubConnectionString", "SharedAccessKey=secret")
    with pytest.raises(ModelUnreadable, match="PATH") as caught:
        await start_worker(make_fake("load environment"), SETTINGS)
    assert "EdgeHub" not in caught.value.message


async def test_a_kill_while_loading_is_the_models_fault(make_fake: MakeVersion) -> None:
    version = make_fake("load hang")
    starting = asyncio.create_task(start_worker(version, SETTINGS))
    deadline = time.monotonic() + DEADLINE_S
    while not (version.folder / "fake.tflite.seen").exists():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    os.kill(find_workers().pop(), signal.SIGKILL)
    with pytest.raises(ModelCrashed, match="SIGKILL"):
        await starting


async def test_a_cancelled_start_leaves_no_process(make_fake: MakeVersion) -> None:
    starting = asyncio.create_task(start_worker(make_fake("load hang"), SETTINGS))
    deadline = time.monotonic() + DEADLINE_S
    while not find_workers():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert find_workers() == set()


async def test_a_start_that_is_cancelled_before_the_first_word_leaves_no_process(make_fake: MakeVersion) -> None:
    before = find_workers()
    starting = asyncio.create_task(start_worker(make_fake("load hang"), SETTINGS))
    async with asyncio.timeout(DEADLINE_S):
        while find_workers() == before:
            await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert find_workers() == before


async def test_loading_is_niced_and_serving_is_not(make_fake: MakeVersion) -> None:
    starting = asyncio.create_task(start_worker(make_fake("load sleep 1"), SETTINGS))
    seen: set[int] = set()
    groups: set[int] = set()
    while not starting.done():
        for pid in find_workers():
            with contextlib.suppress(OSError):
                seen.update(read_nices(pid))
                groups.update(read_group_nice(pid))
        await asyncio.sleep(0.02)
    worker = await starting
    try:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert seen == {own, 10}
        await worker.infer(RED, timeout_s=5)
        assert set(read_nices(worker.pid)) == {own}
        assert not groups or 10 in groups
        assert set(read_group_nice(worker.pid)) <= {0}
    finally:
        await worker.close()


async def test_an_idle_load_that_others_leave_nothing_begins_again_niced(
    make_fake: MakeVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_file, "_PATIENCE_S", 0.5)
    starting = asyncio.create_task(start_worker(make_fake("load sleep 1"), replace(SETTINGS, idle=True)))
    seen: dict[int, set[int]] = {}
    while not starting.done():
        for pid in find_workers():
            with contextlib.suppress(OSError):
                tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
                found = {os.sched_getscheduler(task) & ~os.SCHED_RESET_ON_FORK for task in tasks}
                seen.setdefault(pid, set()).update(found)
        await asyncio.sleep(0.02)
    await (await starting).close()
    first, second = seen.values()
    assert os.SCHED_IDLE in first and second == {os.SCHED_OTHER}


async def test_limits_hold_until_the_version_is_proven_and_are_lifted_then(make_fake: MakeVersion) -> None:
    async with open_worker(make_fake()) as worker:
        limits = Path(f"/proc/{worker.pid}/limits").read_text().splitlines()
        soft = {line[:26].strip(): line[26:].split()[0] for line in limits}
        assert soft["Max address space"] == "unlimited"
        assert soft["Max cpu time"] == "unlimited"


async def test_a_worker_killed_while_serving_fails_what_was_asked_and_nothing_else(make_fake: MakeVersion) -> None:
    worker = await start_worker(make_fake("run hang", golden=False), SETTINGS)
    asked = [asyncio.create_task(worker.infer(RED, timeout_s=30)) for _ in range(5)]
    await asyncio.sleep(0.1)
    os.kill(worker.pid, signal.SIGKILL)
    for result in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(result, WorkerLost)
    assert await worker.wait_dead() == -signal.SIGKILL
    assert not worker.alive
    with pytest.raises(WorkerLost):
        await worker.infer(RED, timeout_s=5)
    await worker.close()


async def test_an_engine_that_crashes_on_a_picture_costs_one_worker(make_fake: MakeVersion) -> None:
    worker = await start_worker(make_fake("run signal SIGSEGV", golden=False), SETTINGS)
    with pytest.raises(WorkerLost):
        await worker.infer(RED, timeout_s=10)
    assert await worker.wait_dead() == -signal.SIGSEGV


async def test_a_worker_that_breaks_the_protocol_is_ended(make_fake: MakeVersion) -> None:
    worker = await start_worker(make_fake("run garbage", golden=False), SETTINGS)
    with pytest.raises(WorkerLost, match="protocol"):
        await worker.infer(RED, timeout_s=10)
    await asyncio.wait_for(worker.wait_dead(), DEADLINE_S)


async def test_a_request_that_nobody_waits_for_is_not_worked_on(make_fake: MakeVersion) -> None:
    async with open_worker(make_fake("run sleep 0.3", golden=False), replace(SETTINGS, concurrency=1)) as worker:
        hasty = [asyncio.create_task(worker.infer(RED, timeout_s=0.1)) for _ in range(10)]
        for result in await asyncio.gather(*hasty, return_exceptions=True):
            assert isinstance(result, RequestTimeout)
        started = time.monotonic()
        await worker.infer(RED, timeout_s=10)
        assert time.monotonic() - started < 2.0  # two runs, not eleven


async def test_a_worker_that_owes_answers_for_too_long_is_ended(make_fake: MakeVersion) -> None:
    settings = replace(SETTINGS, hang_timeout_s=0.3)
    worker = await start_worker(make_fake("run hang", golden=False), settings)
    for _ in range(2):
        with pytest.raises(RequestTimeout):
            await worker.infer(RED, timeout_s=0.2)
    assert await asyncio.wait_for(worker.wait_dead(), DEADLINE_S) == -signal.SIGKILL


async def test_a_worker_that_owes_answers_is_ended_also_when_its_callers_leave(make_fake: MakeVersion) -> None:
    worker = await start_worker(make_fake("run hang", golden=False), replace(SETTINGS, hang_timeout_s=0.3))
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.infer(RED, timeout_s=30), 0.2)
    assert await asyncio.wait_for(worker.wait_dead(), DEADLINE_S) == -signal.SIGKILL


async def test_a_worker_that_hangs_on_one_picture_is_ended_though_it_answers_others(make_fake: MakeVersion) -> None:
    worker = await start_worker(make_fake("once hang", golden=False), replace(SETTINGS, hang_timeout_s=0.3))
    with pytest.raises(RequestTimeout):
        await worker.infer(RED, timeout_s=0.2)
    assert get_label(await worker.infer(GREEN, timeout_s=10)) == "green"
    await asyncio.sleep(0.2)
    assert get_label(await worker.infer(GREEN, timeout_s=10)) == "green", "the last one that it answers"
    assert await asyncio.wait_for(worker.wait_dead(), DEADLINE_S) == -signal.SIGKILL


async def test_pictures_that_nobody_waits_for_are_not_kept(make_fake: MakeVersion) -> None:
    worker = await start_worker(make_fake("run hang", golden=False), replace(SETTINGS, concurrency=1))
    before = read_resident_bytes(worker.pid)
    for picture in (RED, *[bytes(16 << 20)] * 12):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.infer(picture, timeout_s=30), 0.05)
    await worker.reprove(worker.version)  # its reply says that the worker has read all that came before
    assert read_resident_bytes(worker.pid) - before < 64 << 20
    await worker.kill()


def read_resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_closing_lets_running_requests_finish(make_fake: MakeVersion) -> None:
    worker = await start_worker(make_fake("run sleep 0.2", golden=False), SETTINGS)
    asked = [asyncio.create_task(worker.infer(RED, timeout_s=10)) for _ in range(4)]
    await asyncio.sleep(0)
    await worker.close(drain_timeout_s=10)
    assert [get_label(reply) for reply in await asyncio.gather(*asked)] == ["red"] * 4
    assert await worker.wait_dead() == 0
    await worker.close()


async def test_closing_does_not_wait_for_ever(make_fake: MakeVersion) -> None:
    worker = await start_worker(make_fake("run hang", golden=False), SETTINGS)
    asked = asyncio.create_task(worker.infer(RED, timeout_s=30))
    await asyncio.sleep(0)
    await worker.close(drain_timeout_s=0.2)
    with pytest.raises(WorkerLost):
        await asked
    assert await worker.wait_dead() == -signal.SIGKILL


async def test_new_labels_and_thresholds_are_proven_on_the_running_worker(make_fake: MakeVersion) -> None:
    version = make_fake()
    async with open_worker(version) as worker:
        stage = msgspec.structs.replace(version.spec.stages[0], thresholds=Thresholds(score=0.7))
        proven = await worker.reprove(replace(version, spec=msgspec.structs.replace(version.spec, stages=(stage,))))
        assert proven.terms == Terms(labels=worker.terms.labels, thresholds=(Thresholds(score=0.7),))
        assert (proven.report.found, proven.report.total) == (1, 1)
        with pytest.raises(GoldenMismatch):
            await worker.reprove(make_fake(labels=("blue", "red", "green")))
        assert get_label(await worker.infer(RED, timeout_s=5)) == "red"


async def test_a_defect_in_a_proof_leaves_what_the_worker_serves_alone(make_fake: MakeVersion) -> None:
    version = make_fake()
    twice = replace(version, spec=msgspec.structs.replace(version.spec, stages=version.spec.stages * 2))
    async with open_worker(version) as worker:
        with pytest.raises(InvariantBroken):
            await worker.reprove(twice)
        assert get_label(await worker.infer(RED, timeout_s=10)) == "red"


async def test_a_proof_that_takes_long_is_no_answer_that_is_owed(make_fake: MakeVersion) -> None:
    version = make_fake("run sleep 0.5", golden=True)
    async with open_worker(version, replace(SETTINGS, hang_timeout_s=0.3)) as worker:
        proving = asyncio.create_task(worker.reprove(version))
        await asyncio.sleep(0.4)
        with pytest.raises(RequestTimeout):
            await worker.infer(RED, timeout_s=0.01)
        await proving
        assert worker.alive


async def test_a_proof_during_which_the_worker_dies_is_the_models_fault(make_fake: MakeVersion) -> None:
    version = make_fake("run exit", golden=False)
    worker = await start_worker(version, SETTINGS)
    with pytest.raises(ModelCrashed):
        await worker.reprove(make_fake("run exit"))
    await worker.close()


async def test_no_process_is_our_fault(make_fake: MakeVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(WorkerStartFailed, match="No such file"):
        await start_worker(make_fake(), SETTINGS)


async def test_a_process_that_ends_before_it_is_ready_is_our_fault(
    make_fake: MakeVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerStartFailed, match="exit code 1"):
        await start_worker(make_fake(), SETTINGS)


async def test_a_process_that_is_never_ready_is_our_fault(
    make_fake: MakeVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "sleeper"
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(WorkerStartFailed, match=r"ready within 0\.2 s"):
        await start_worker(make_fake(), replace(SETTINGS, start_timeout_s=0.2))


async def test_an_engine_that_is_not_installed_is_named_with_its_extra(
    make_fake: MakeVersion, fake_engine: Path
) -> None:
    (fake_engine / "ai_edge_litert" / "interpreter.py").write_text("raise ImportError('no such engine')")
    with pytest.raises(ToolMissing, match=r"edgeferry\[litert\]"):
        await start_worker(make_fake(), SETTINGS)


async def test_a_file_of_another_kind_is_unsupported(make_fake: MakeVersion) -> None:
    version = make_fake()
    stage = msgspec.structs.replace(version.spec.stages[0], file="model.pt")
    with pytest.raises(ModelUnsupported, match=r"model\.pt"):
        await start_worker(replace(version, spec=msgspec.structs.replace(version.spec, stages=(stage,))), SETTINGS)


async def test_time_for_which_a_load_stood_still_is_not_counted_against_it(make_fake: MakeVersion) -> None:
    brake, began_s = Brake(2), time.monotonic()
    with brake.run():  # a request without end: a load has its turns only
        version, settings = make_fake("load spin 0.4"), replace(SETTINGS, nice=0, load_timeout_s=2.0)
        worker = await start_worker(version, settings, brake)
    assert time.monotonic() - began_s > settings.load_timeout_s
    await worker.close()


async def test_a_load_beside_requests_stands_still_while_they_run_and_serves_then(make_fake: MakeVersion) -> None:
    brake, stood = Brake(2), 0
    live = await start_worker(make_fake("run sleep 0.2", golden=False), SETTINGS, brake)
    asking = asyncio.create_task(live.infer(RED, timeout_s=DEADLINE_S))
    await asyncio.sleep(0.05)
    starting = asyncio.create_task(start_worker(make_fake(), SETTINGS, brake))
    while not starting.done():
        await asyncio.sleep(0.005)
        if asking.done():
            asking = asyncio.create_task(live.infer(RED, timeout_s=DEADLINE_S))
        stood += any(read_state(pid) == "T" for pid in find_workers() - {live.pid})
    worker = await starting
    assert stood > 0 and get_label(await worker.infer(BLUE, timeout_s=5)) == "blue"
    assert get_label(await asking) == "red"
    await worker.close()
    await live.close()


@pytest.mark.parametrize("word", ["load hang", "run hang"])
@pytest.mark.parametrize("stands", [False, True], ids=["runs", "stands still"])
async def test_a_worker_dies_with_its_parent(make_fake: MakeVersion, tmp_path: Path, word: str, stands: bool) -> None:
    make_fake(word, golden=False)
    program = tmp_path / "parent.py"
    program.write_text(_PARENT.format(folder=str(Path(__file__).parent.parent), tmp=str(tmp_path)))
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(await asyncio.to_thread(parent.stdout.readline))
    assert is_running(pid)
    if stands:
        os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    await wait_gone(pid)


_PARENT = """
import asyncio, sys
sys.path.insert(0, {folder!r})
from pathlib import Path
from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, Stage
from runtime.test_child import find_workers, SETTINGS
from runtime.versions import make_version, make_picture
from edgeferry.runtime.child import start_worker

async def main():
    stage = Stage(file="fake.tflite", task="classification", answer=AnswerSpec(family="classification"),
                  labels=LabelSpec(names=("a", "b", "c")),
                  input=InputSpec(width=4, height=4, layout="nhwc", dtype="uint8"))
    task = asyncio.create_task(start_worker(make_version(Path({tmp!r}), stage), SETTINGS))
    if "run" in Path({tmp!r}, "fake.tflite").read_text():
        worker = await task
        asked = asyncio.create_task(worker.infer(make_picture("red"), timeout_s=100))
    while not find_workers():
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    print(find_workers().pop(), flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


def test_the_main_process_loads_neither_numpy_nor_an_engine() -> None:
    program = (
        "import sys, edgeferry.runtime.child, edgeferry.vision.answers, edgeferry.vision.golden, edgeferry.serve.slots;"
        "heavy = ('numpy', 'PIL', 'simplejpeg', 'onnxruntime', 'ai_edge_litert');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
