"""child: how the device's main process starts a worker, waits for its proof, asks it, and ends it.

What this file leaves to others: the process (`spawn.py`, `worker.py`), the frames (`line.py`, `wire/worker_frames.py`),
which worker serves which model (`serve/slots.py`).

Rules:
- Neither an engine nor numpy is imported here.
- Whose fault a death is: before the worker says `Started` it is ours (WorkerStartFailed), while it loads and proves it
  is the model's (any signal, non-zero exit or time-out), after that nobody's: what was asked fails with WorkerLost.
- Whatever goes wrong in `start_worker`, also cancellation, the process is gone when it raises.
- While it loads it stands still whenever requests need the cores (`brake.py`), and its time-outs wait as long.
- A request that nobody waits for any more is taken from the worker's queue. A worker that owes one answer for more than
  `hang_timeout_s` is killed, also when it gives others: it has a thread less, for good.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from edgeferry.errors import (
    EdgeferryError,
    ModelCrashed,
    ModelTimeout,
    PictureTooLarge,
    ProtocolViolated,
    RequestTimeout,
    WorkerLost,
    WorkerStartFailed,
)
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.blocks import Body
from edgeferry.runtime.brake import Brake, Load
from edgeferry.runtime.line import Line
from edgeferry.runtime.spawn import Spawned, spawn_worker
from edgeferry.vision.answer import Answer
from edgeferry.wire.v2_tensors import TensorEntry
from edgeferry.wire.worker_frames import (
    Answered,
    AnsweredTensors,
    Ask,
    AskTensors,
    Begin,
    Cancel,
    Draw,
    GoldenInput,
    ModelTensors,
    ProofReport,
    Prove,
    Proved,
    Reply,
    Stop,
    Terms,
    join_picture,
)

__all__ = [
    "InferReply", "ModelTensors", "ProofReport", "Proven", "TensorsReply", "Terms", "Worker", "WorkerSettings",
    "start_worker",
]  # fmt: skip

_PRINTED_MAX_CHARS = 300
_QUIET_MAX_S = 0.5
_LEAVES_S = 0.5
"""A worker that was told to stop and owes nothing has ended long before."""
_PATIENCE_S = 30.0
"""What others leave is usually most of a core; where it is nothing, a load must not wait for ever."""


class _Starved(Exception):
    """An idle load did not end in time."""


def _count_cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Limits of a worker.

    Attributes:
        threads: engine threads per inference.
        nice: how much a load gives way to others; 0 where nothing serves that it could disturb.
        idle: a load takes only what others leave; when that is too little for it, it begins again without.
        concurrency: inferences at once.
        start_timeout_s: until the process runs and has imported its engine.
        load_timeout_s: until the version is loaded, proven and warm; and for each later proof.
        hang_timeout_s: a worker that owes an answer for so long is killed.
        memory_headroom_bytes, memory_factor: while loading, address space may grow by the larger of the headroom and
            factor x model file.
        picture_max_bytes, picture_max_pixels: larger pictures are refused before they are decoded.
        scale_jpeg: decode JPEGs over twice as large as needed at a smaller scale.
    """

    threads: int = 1
    nice: int = 10
    idle: bool = False
    concurrency: int = field(default_factory=_count_cores)
    start_timeout_s: float = 60.0
    load_timeout_s: float = 120.0
    hang_timeout_s: float = 60.0
    memory_headroom_bytes: int = 256 << 20
    memory_factor: int = 8
    picture_max_bytes: int = 32 << 20
    picture_max_pixels: int = 50_000_000
    scale_jpeg: bool = True


@dataclass(frozen=True, slots=True)
class InferReply:
    """The answer to one picture.

    Attributes:
        answer: what was seen.
        width, height: the upright picture in pixels.
        timings_ms: milliseconds of each step: decode, prepare, infer, answer, and draw if asked for.
        drawn: the picture with the answer drawn on it; empty unless asked for.
    """

    answer: Answer
    width: int
    height: int
    timings_ms: dict[str, float]
    drawn: bytes = b""


@dataclass(frozen=True, slots=True)
class TensorsReply:
    """Outputs, their bytes one after the other in `body`, and milliseconds of each step: infer."""

    outputs: tuple[TensorEntry, ...]
    body: bytes
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Proven:
    """The outcome of a proof: the report, the terms (label lines, thresholds) that the version is served with, and
    its tensors (those of a proof on a running worker are empty: they are the worker's)."""

    report: ProofReport
    terms: Terms
    tensors: ModelTensors


class Worker:
    """A running worker process that has proven one version (or several that share its model files).

    Attributes:
        version: what it was started with.
        report, terms, tensors: of the proof at its start.
    """

    def __init__(self, version: StoredVersion, settings: WorkerSettings, spawned: Spawned, brake: Brake) -> None:
        self.version = version
        self.report = ProofReport()
        self.terms = Terms((), ())
        self.tensors = ModelTensors()
        self._settings = settings
        self._spawned = spawned
        self._brake = brake
        self._line = Line(spawned)
        self._last_terms: Terms | None = None
        self._closing = False
        self._life = asyncio.create_task(self._live())

    @property
    def pid(self) -> int:
        """The process id, also after its death."""
        return self._spawned.process.pid

    @property
    def alive(self) -> bool:
        """True until the process has died or is being closed."""
        return not self._closing and self._line.is_open

    async def infer(
        self, picture: Body, *, terms: Terms | None = None, timeout_s: float, draw: Draw = ""
    ) -> InferReply:
        """Asks the worker about one picture (`terms`: the worker's own when None).

        Raises:
            PictureUnreadable, PictureTooLarge, MediaTypeRefused: the picture is at fault.
            RequestTimeout: no answer within `timeout_s` seconds.
            WorkerLost: the process died, or died before.
            ModelUnsupported: the engine fails on it, or the outputs do not fit the answer family.
        """
        if len(picture) > self._settings.picture_max_bytes:
            limit = self._settings.picture_max_bytes
            raise PictureTooLarge(f"expected a picture of at most {limit} bytes, found {len(picture)}")
        await self._brake.wait_turn()
        wanted = terms or self.terms
        told = None if wanted is self._last_terms else wanted
        id_ = self._line.make_id()
        future = self._line.ask(Ask(id=id_, terms=told, draw=draw), picture)
        self._last_terms = wanted  # only now: had it not been sent, the worker would not know them
        reply, body = await self._wait_answer(future, id_, timeout_s)
        if not isinstance(reply, Answered):
            raise ProtocolViolated(f"expected an answer of the worker, found {type(reply).__name__}")
        answer = join_picture(reply.answer, body)
        return InferReply(answer, reply.width, reply.height, reply.timings_ms, body if draw else b"")

    async def infer_tensors(
        self, inputs: tuple[TensorEntry, ...], body: Body, *, outputs: tuple[str, ...] = (), timeout_s: float
    ) -> TensorsReply:
        """Runs the model on raw tensors, whose bytes stand in `body`; `outputs` empty: all of them are answered.

        Raises:
            RequestInvalid: they are not what the model takes.
            RequestTimeout, WorkerLost: as `infer`.
        """
        await self._brake.wait_turn()
        id_ = self._line.make_id()
        future = self._line.ask(AskTensors(id=id_, inputs=inputs, outputs=outputs), body)
        reply, found = await self._wait_answer(future, id_, timeout_s)
        if not isinstance(reply, AnsweredTensors):
            raise ProtocolViolated(f"expected tensors of the worker, found {type(reply).__name__}")
        if sum(entry.size_bytes for entry in reply.outputs) != len(found):
            raise ProtocolViolated(f"expected the tensors that the worker names, found {len(found)} bytes")
        return TensorsReply(reply.outputs, found, reply.timings_ms)

    async def reprove(self, version: StoredVersion) -> Proven:
        """Runs the golden truth again with the labels and thresholds of `version`, whose model files are the same.

        Raises:
            GoldenMismatch, ModelTimeout, ModelCrashed: it does not hold; the worker, if alive, still serves.
            WorkerLost: the process had died before.
        """
        request = Prove(
            id=self._line.make_id(), folder=str(version.folder), spec=version.spec, golden=_make_golden(version)
        )
        future = self._line.ask(request)
        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                return _require_proven((await future)[0])
        except TimeoutError as error:
            raise ModelTimeout(f"{version} did not answer its golden truth in time") from error
        except WorkerLost as error:
            raise ModelCrashed(f"the worker died while {version} was being proven") from error

    async def wait_dead(self) -> int:
        """Waits until the process has exited; returns its exit code (negative: the signal)."""
        return await asyncio.shield(self._life)

    async def close(self, *, drain_timeout_s: float = 10.0) -> None:
        """Lets running requests finish for at most `drain_timeout_s`, then ends the process. Safe to call twice.

        It ends by itself, niced, in a moment when no request runs: giving its memory back takes milliseconds.
        """
        is_first, self._closing = not self._closing, True
        try:
            if is_first:
                await self._brake.wait_quiet(_QUIET_MAX_S)
                self._line.tell(Stop())
            await asyncio.wait((self._life,), timeout=max(drain_timeout_s, _LEAVES_S))
        finally:
            self._spawned.kill()
        await asyncio.wait((self._life,))

    async def kill(self) -> None:
        """Ends the process at once; what was asked gets WorkerLost."""
        self._closing = True
        self._spawned.kill()
        await asyncio.wait((self._life,))

    async def load(self, load: Load) -> None:
        """Sends the version and waits until it is proven; raises as `start_worker` does."""
        future = self._line.ask(_make_begin(self.version, self._settings))
        late = await self._wait_loaded(load, future)
        if late is not None:
            future.cancel()
            if self._settings.idle:
                raise _Starved from late
            raise late
        try:
            proven = _require_proven(future.result()[0])
        except WorkerLost as error:
            raise self._explain_death(await self.wait_dead()) from error
        self.report, self.terms, self.tensors = proven.report, proven.terms, proven.tensors

    async def _wait_loaded(self, load: Load, proven: asyncio.Future[Any]) -> EdgeferryError | None:
        """Waits for the reply to `Begin`; returns what to say of a load that took too long."""
        patience_s = _PATIENCE_S if self._settings.idle else math.inf
        start_s, load_s = self._settings.start_timeout_s, self._settings.load_timeout_s
        if not await load.wait({self._line.started, proven}, min(start_s, patience_s)):
            return WorkerStartFailed(f"expected a worker to be ready within {start_s:g} s, found it was not")
        if not await load.wait({proven}, min(load_s, patience_s)):
            return ModelTimeout(f"{self.version} was not loaded and proven within {load_s:g} s")
        return None

    async def _live(self) -> int:
        """Listens as long as there is a process; whoever breaks the line is ended."""
        try:
            await self._line.listen()
        finally:
            self._spawned.kill()
        try:
            return await self._spawned.wait()
        finally:
            self._line.close()

    async def _wait_answer(
        self, future: asyncio.Future[tuple[Reply, bytes]], id_: int, timeout_s: float
    ) -> tuple[Reply, bytes]:
        timer = asyncio.get_running_loop().call_later(timeout_s, _expire, future, timeout_s)
        try:
            with self._brake.run():
                return await future
        except (RequestTimeout, asyncio.CancelledError):  # also by the caller's, or because the caller left
            self._line.tell(Cancel(id_))
            raise
        finally:
            timer.cancel()
            if self._line.get_owed_s() > self._settings.hang_timeout_s:
                self._spawned.kill()

    def _explain_death(self, exit_code: int) -> EdgeferryError:
        how = f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
        said = self._spawned.get_printed()[-_PRINTED_MAX_CHARS:]
        if not self._line.started.done():
            return WorkerStartFailed(f"the worker ended with {how} before it was ready: {said}")
        if exit_code == -signal.SIGXCPU:
            return ModelTimeout(f"{self.version} used more CPU time than it may while being loaded and proven")
        return ModelCrashed(f"the worker ended with {how} while {self.version} was loaded and proven: {said}")


async def start_worker(version: StoredVersion, settings: WorkerSettings, brake: Brake | None = None) -> Worker:
    """Starts `python -m edgeferry.runtime.worker`, which loads `version`, proves it on its golden truth and warms up.

    `brake`: of all workers that share the cores with it; None: it shares them with none.

    Raises:
        ModelUnreadable, ModelUnsupported, ModelCrashed, ModelTimeout, GoldenMismatch: the model's fault.
        BundleUnreadable, BundleTooLarge: its label file is none.
        WorkerStartFailed, ToolMissing: the process or its engine could not be started.
    """
    brake = brake or Brake()
    if settings.idle:
        with suppress(_Starved):
            return await _start(version, settings, brake)
    return await _start(version, replace(settings, idle=False), brake)


async def _start(version: StoredVersion, settings: WorkerSettings, brake: Brake) -> Worker:
    await brake.wait_quiet(_QUIET_MAX_S)
    worker = Worker(version, settings, await spawn_worker(settings.start_timeout_s, idle=settings.idle), brake)
    try:
        with brake.load(worker.pid) as load:
            await worker.load(load)
    except BaseException:
        await worker.kill()
        raise
    return worker


def _expire(future: asyncio.Future[tuple[Reply, bytes]], timeout_s: float) -> None:
    if not future.done():
        future.set_exception(RequestTimeout(f"expected an answer within {timeout_s:g} s, found none"))


def _make_begin(version: StoredVersion, settings: WorkerSettings) -> Begin:
    return Begin(
        folder=str(version.folder),
        spec=version.spec,
        golden=_make_golden(version),
        threads=settings.threads,
        nice=settings.nice,
        idle=settings.idle,
        concurrency=settings.concurrency,
        memory_headroom_bytes=settings.memory_headroom_bytes,
        memory_factor=settings.memory_factor,
        cpu_limit_s=math.ceil(settings.load_timeout_s * settings.threads),
        picture_max_bytes=settings.picture_max_bytes,
        picture_max_pixels=settings.picture_max_pixels,
        scale_jpeg=settings.scale_jpeg,
    )


def _make_golden(version: StoredVersion) -> tuple[GoldenInput, ...]:
    return tuple(GoldenInput(sample.golden, str(sample.path)) for sample in version.golden)


def _require_proven(reply: Reply) -> Proven:
    if not isinstance(reply, Proved):
        raise ProtocolViolated(f"expected a proof of the worker, found {type(reply).__name__}")
    return Proven(reply.report, reply.terms, reply.tensors)
