"""An engine in memory: workers that answer from a script, for tests and for trying the API without any model.

Rules:
- It keeps the promises of `ports.py`: terms travel with each request, a dead worker raises WorkerLost, close drains.
- A picture is any bytes; its answer is one object with the first label of the terms it was asked with. As a model it
  takes tensors `x` of FP32 [n, 4] and gives them back as `y`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from edgeferry.errors import PictureUnreadable, RequestInvalid, RequestTimeout, WorkerLost
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.blocks import Body
from edgeferry.runtime.child import InferReply, ModelTensors, ProofReport, Proven, TensorsReply, Terms
from edgeferry.serve.ports import Drawn, WorkerPort
from edgeferry.vision.answer import Answer, DetectionAnswer, FoundObject
from edgeferry.wire.v2_tensors import TensorEntry
from edgeferry.wire.worker_frames import TensorDescription

WHOLE_PICTURE = (0.0, 0.0, 1.0, 1.0)
TENSORS = ModelTensors("fake", (TensorDescription("x", "FP32", (-1, 4)),), (TensorDescription("y", "FP32", (-1, 4)),))


def make_terms(version: StoredVersion) -> Terms:
    """The terms that the spec of `version` states outright (`labels.names`)."""
    stages = version.spec.stages
    return Terms(tuple(stage.labels.names for stage in stages), tuple(stage.thresholds for stage in stages))


def answer_first_label(_: bytes, terms: Terms) -> Answer:
    """One object over the whole picture, named by the first label."""
    return DetectionAnswer(
        objects=(FoundObject(class_index=0, label=terms.labels[0][0], score=0.9, box=WHOLE_PICTURE),)
    )


class FakeWorker:
    """A worker without a process. `die()` is what a signal would be; `b"bad"` is a picture that nobody can read."""

    def __init__(self, engine: FakeEngine, version: StoredVersion) -> None:
        self.version = version
        self.terms = make_terms(version)
        self.tensors = TENSORS
        self.closed = False
        self.running = 0
        self.pid = 0
        self._engine = engine
        self._cores = asyncio.Semaphore(engine.concurrency)
        self._dead: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        """True until `die()` or `close()`."""
        return not self._dead.done()

    async def infer(self, picture: Body, *, terms: Terms, timeout_s: float, draw: Drawn = "") -> InferReply:
        """Answers by the engine's `answer` after its `infer_s` seconds."""
        async with self._cores:
            self.running += 1
            try:
                await self._work(timeout_s)
            finally:
                self.running -= 1
        data = bytes(picture)
        if data == b"bad":
            raise PictureUnreadable("expected a picture, found something else")
        drawn = b"picture drawn as " + draw.encode() if draw else b""
        return InferReply(self._engine.answer(data, terms), 640, 480, {"infer": 1.0}, drawn)

    async def infer_tensors(
        self, inputs: tuple[TensorEntry, ...], body: Body, *, outputs: tuple[str, ...] = (), timeout_s: float
    ) -> TensorsReply:
        """Gives `x` back as `y` after the engine's `infer_s` seconds."""
        await self._work(timeout_s)
        if [(one.name, one.datatype, one.shape[1:]) for one in inputs] != [("x", "FP32", (4,))] or set(outputs) > {"y"}:
            raise RequestInvalid(f"expected input x FP32[-1, 4] and output y, found {[one.name for one in inputs]}")
        entry = TensorEntry("y", "FP32", inputs[0].shape, inputs[0].size_bytes)
        return TensorsReply((entry,), bytes(body), {"infer": 1.0})

    async def _work(self, timeout_s: float) -> None:
        done, _ = await asyncio.wait({self._dead}, timeout=min(self._engine.infer_s, timeout_s))
        if done:
            raise WorkerLost("the worker died")
        if self._engine.infer_s > timeout_s:
            raise RequestTimeout(f"no answer within {timeout_s} s")

    async def reprove(self, version: StoredVersion) -> Proven:
        """Counts, and fails as the engine is told to for that version."""
        self._engine.reproved.append(version)
        self._engine.raise_told(version)
        return Proven(ProofReport(), make_terms(version), TENSORS)

    async def wait_dead(self) -> int:
        """Returns once it is dead or closed."""
        return await asyncio.shield(self._dead)

    async def close(self, *, drain_timeout_s: float) -> None:
        """Ends it."""
        self.closed = True
        self.die(0)

    def die(self, exit_code: int = -9) -> None:
        """Ends it as a signal would."""
        if not self._dead.done():
            self._dead.set_result(exit_code)


@dataclass
class FakeEngine:
    """Starts FakeWorkers. `failures`: identity -> errors of the next starts; `infer_s`: time one answer takes;
    `concurrency`: pictures that a worker answers at once; `room`: whether memory allows two workers.
    """

    answer: Callable[[bytes, Terms], Answer] = answer_first_label
    infer_s: float = 0.0
    concurrency: int = 2
    start_s: float = 0.0
    room: bool = True
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    started: list[FakeWorker] = field(default_factory=list)
    reproved: list[StoredVersion] = field(default_factory=list)

    async def start(self, version: StoredVersion) -> WorkerPort:
        """A worker for `version`, after `start_s` seconds."""
        await asyncio.sleep(self.start_s)
        self.raise_told(version)
        worker = FakeWorker(self, version)
        self.started.append(worker)
        return worker

    async def has_room(self, version: StoredVersion, *, beside: StoredVersion, pid: int) -> bool:
        """As told."""
        return self.room

    async def read_share_key(self, version: StoredVersion) -> str:
        """Versions in one folder share their model files."""
        return str(version.folder)

    def raise_told(self, version: StoredVersion) -> None:
        """Raises the next failure told for `version`, if any."""
        waiting = self.failures.get(version.identity)
        if waiting:
            raise waiting.pop(0)
