"""worker: the process that loads, proves and then serves one version. `python -m edgeferry.runtime.worker FD`.

The device's main process starts it (`child.py`) with one end of a socket pair. Frames are `wire/worker_frames.py`'s.

Rules:
- `concurrency` threads serve, started before anything is niced. Whoever of them is free reads the next frame and
  serves it: a request wakes one thread, and none where one has just become free.
- Where none is free the main thread reads in passing, so that a proof, a Cancel or a Stop waits for no answer that does
  not come; and it alone reads before a version is proven. Each proof has a thread of its own, niced.
- Until the version is proven, soft RLIMIT_AS and RLIMIT_CPU hold: a model that wants too much fails in here.
- Engine and numpy are imported on the proving thread, so that not even the import competes with what serves elsewhere.
- It ends when its parent does: end of file on the socket, and PR_SET_PDEATHSIG (`worker_start.py`) where an engine
  holds the interpreter.
- Errors of ours travel as `Failed`. What nobody foresaw ends the process while it loads (that is the model's fault),
  and becomes `invariant_broken` while it serves.
"""

from __future__ import annotations

import gc
import os
import queue
import resource
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeferry.errors import (
    EdgeferryError,
    GoldenMismatch,
    InvariantBroken,
    ModelNotReady,
    ModelUnreadable,
    RequestTimeout,
)
from edgeferry.runtime import limits
from edgeferry.runtime.shared_bodies import open_shared_bodies
from edgeferry.runtime.worker_line import Frame, WorkerLine
from edgeferry.wire.worker_frames import (
    Answered,
    AnsweredTensors,
    Ask,
    AskTensors,
    Begin,
    Cancel,
    Failed,
    GoldenInput,
    ProofReport,
    Prove,
    Proved,
    Reply,
    Request,
    Started,
    Stop,
    Terms,
    part_picture,
)

if TYPE_CHECKING:
    from edgeferry.runtime.served import PictureSettings, ServedModel
    from edgeferry.runtime.session import EngineSettings

_NICE = 10
_LEAVES_NICE = 19
"""The end of a process takes milliseconds, to give its memory back."""
_LOAD_ID = 0
_IN_PLACE_BYTES = 256 << 10
_PASSES_EVERY_S = 1.0
"""How long a proof, a Cancel or a Stop may lie unread while every thread serves."""
_UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h


@dataclass(frozen=True, slots=True)
class _Job:
    ask: Ask | AskTensors
    terms: Terms


@dataclass(frozen=True, slots=True)
class _Warm:
    """What each serving thread does once, all at the same time."""

    model: ServedModel
    terms: Terms
    together: threading.Barrier
    faults: list[EdgeferryError]


class WorkerProcess:
    """All of a worker: one model, its queue, its threads."""

    def __init__(self, line: WorkerLine, begin: Begin, bodies: memoryview) -> None:
        self._line = line
        self._bodies = bodies
        self._begin = begin
        self._reading = threading.Lock()
        """Who holds it reads; jobs and terms are its alone."""
        self._jobs: deque[_Job] = deque()
        self._pictures: dict[int, bytearray | bytes | memoryview] = {}  # or tensors, of asks that wait
        self._terms = Terms((), ())
        self._ending = threading.Event()
        self._model: ServedModel | None = None
        self._warms: queue.SimpleQueue[_Warm | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(begin.concurrency)]

    def run(self, first: Iterable[Frame]) -> None:
        """Serves, `first` what has come already, until told to stop."""
        for thread in self._threads:
            thread.start()
        threading.Thread(target=self._load_and_prove, daemon=True).start()
        with self._reading:
            self._take(first)
            while self._model is None and not self._ending.is_set():
                self._take(self._line.receive(wait=True))
                while self._jobs and self._model is None:
                    self._serve_one(self._jobs.popleft())
        while not self._ending.wait(_PASSES_EVERY_S):
            self._read_in_passing()
        for _ in self._threads:
            self._warms.put(None)  # whoever still waits to warm up waits no longer
        for thread in self._threads:
            thread.join()
        limits.set_thread_nice(_LEAVES_NICE)

    def _read_in_passing(self) -> None:
        if self._reading.acquire(blocking=False):
            try:
                self._take(self._line.receive(wait=False))
            finally:
                self._reading.release()

    def _serve(self) -> None:
        if (warm := self._warms.get()) is not None:
            _warm(warm)
        while (job := self._next_job()) is not None:
            self._serve_one(job)  # its answer is held no longer than it takes, however long the next job takes to come

    def _next_job(self) -> _Job | None:
        """The next request, which this thread waits for where there is none; None when it is to end."""
        with self._reading:
            while self._jobs or not self._ending.is_set():
                if not self._ending.is_set():
                    self._take(self._line.receive(wait=not self._jobs))  # one that waits may have been cancelled
                if self._jobs:
                    return self._jobs.popleft()
        return None

    def _take(self, frames: Iterable[Frame]) -> None:
        for request, body in frames:
            self._take_one(request, body)

    def _take_one(self, request: Request, body: bytearray) -> None:
        match request:
            case Ask():
                self._terms = request.terms or self._terms
                self._pictures[request.id] = self._find_shared(*request.place) if request.place else body
                self._jobs.append(_Job(request, self._terms))
            case AskTensors():
                self._pictures[request.id] = body
                self._jobs.append(_Job(request, self._terms))
            case Prove():
                threading.Thread(target=self._prove_again, args=(request,), daemon=True).start()
            case Cancel():
                self._pictures.pop(request.id, None)
            case Stop():
                self._ending.set()
            case Begin():
                raise InvariantBroken("expected one Begin, found a second")

    def _find_shared(self, offset: int, size: int) -> bytes | memoryview:
        """A picture that was written into the shared memory; a small one is copied, since bytes are read faster."""
        view = self._bodies[offset : offset + size]
        return view if size > _IN_PLACE_BYTES else bytes(view)

    def _serve_one(self, job: _Job) -> None:
        try:
            self._line.send(*self._answer(job))
        except EdgeferryError as error:  # also of an answer that no frame holds
            self._line.send(_make_failed(job.ask.id, error))
        except Exception as error:  # noqa: BLE001  request edge: one picture must not end the worker
            self._line.send(_make_unforeseen(job.ask.id, error))

    def _answer(self, job: _Job) -> tuple[Reply, bytes]:
        picture = self._pictures.pop(job.ask.id, None)
        if picture is None:
            raise RequestTimeout("nobody waited any more when its turn came")
        if self._model is None:
            raise ModelNotReady("expected a proven model, found none in this worker")
        if isinstance(job.ask, AskTensors):
            found = self._model.answer_tensors(picture, job.ask)
            return AnsweredTensors(id=job.ask.id, outputs=found.outputs, timings_ms=found.timings_ms), found.body
        served = self._model.answer(picture, job.terms, job.ask.draw)
        answer, body = part_picture(served.answer, served.drawn)
        reply = Answered(
            id=job.ask.id,
            answer=answer,
            width=served.width,
            height=served.height,
            timings_ms=served.timings_ms,
        )
        return reply, body

    def _load_and_prove(self) -> None:
        if self._begin.nice and self._begin.threads == 1:  # with more, engine threads would start here and stay niced
            limits.set_thread_nice(self._begin.nice)
            if self._begin.idle:
                limits.set_thread_idle()
        try:
            self._line.send(self._load())
        except EdgeferryError as error:
            self._line.send(_make_failed(_LOAD_ID, error))
        except MemoryError:
            too_large = ModelUnreadable("the model needs more memory than its size allows for")
            self._line.send(_make_failed(_LOAD_ID, too_large))

    def _load(self) -> Proved:
        """Loads, proves and warms up under limits; the model serves from the moment this returns."""
        from edgeferry.runtime.open import load_engine
        from edgeferry.runtime.served import load_served, make_terms

        begin, folder = self._begin, Path(self._begin.folder)
        for stage in begin.spec.stages:
            load_engine(stage.file)
        self._line.send(Started())
        self._hold_limits([folder / stage.file for stage in begin.spec.stages])
        watch = _Stopwatch()
        model = load_served(folder, begin.spec, _make_engine_settings(begin), _make_picture_settings(begin))
        terms = make_terms(folder, begin.spec)
        load_ms = watch.take_ms()
        report = _prove(model, terms, begin.golden)
        watch.take_ms()
        model.warm_up()
        limits.trim_heap()  # before the threads warm up: what they have freed is what a picture will want
        gc.freeze()  # what is loaded stays: no collection walks through it between two requests
        self._warm_threads(model, terms)
        report = msgspec.structs.replace(report, load_ms=load_ms, warm_ms=watch.take_ms())
        self._lift_limits()
        self._model = model
        return Proved(id=_LOAD_ID, report=report, terms=terms, tensors=model.describe_tensors())

    def _warm_threads(self, model: ServedModel, terms: Terms) -> None:
        """Lets every serving thread answer once: memory, caches and code are cold for each of them."""
        warm = _Warm(model, terms, threading.Barrier(len(self._threads) + 1), [])
        for _ in self._threads:
            self._warms.put(warm)
        warm.together.wait()
        if warm.faults:
            raise warm.faults[0]

    def _prove_again(self, request: Prove) -> None:
        from edgeferry.runtime.served import make_terms

        limits.set_thread_nice(_NICE)
        try:
            if self._model is None:
                raise ModelNotReady("expected a proven model, found none in this worker")
            terms = make_terms(Path(request.folder), request.spec)
            report = _prove(self._model, terms, request.golden)
            self._line.send(Proved(id=request.id, report=report, terms=terms))
        except EdgeferryError as error:
            self._line.send(_make_failed(request.id, error))
        except Exception as error:  # noqa: BLE001  request edge: this worker serves another version
            self._line.send(_make_unforeseen(request.id, error))

    def _hold_limits(self, model_paths: list[Path]) -> None:
        model_bytes = sum(path.stat().st_size for path in model_paths if path.is_file())
        headroom = max(self._begin.memory_headroom_bytes, self._begin.memory_factor * model_bytes)
        limits.set_soft_limit(resource.RLIMIT_AS, limits.read_virtual_bytes() + headroom)
        limits.set_soft_limit(resource.RLIMIT_CPU, int(limits.read_cpu_seconds()) + self._begin.cpu_limit_s)

    def _lift_limits(self) -> None:
        limits.lift_soft_limit(resource.RLIMIT_AS)
        limits.lift_soft_limit(resource.RLIMIT_CPU)
        limits.end_group_nice()


def _warm(job: _Warm) -> None:
    try:
        job.model.answer_example(job.terms)
    except EdgeferryError as error:
        job.faults.append(error)
    job.together.wait()  # with all others: none takes the job of two


class _Stopwatch:
    def __init__(self) -> None:
        self._at = time.perf_counter()

    def take_ms(self) -> float:
        """Milliseconds since it was made or last taken."""
        before, self._at = self._at, time.perf_counter()
        return round((self._at - before) * 1000, 3)


def _prove(model: ServedModel, terms: Terms, golden: tuple[GoldenInput, ...]) -> ProofReport:
    watch = _Stopwatch()
    found = model.prove(terms, golden)
    if not found.passed:
        raise GoldenMismatch(
            f"found {found.found} of {found.total} golden truths, needed {found.needed:.1f}: "
            + "; ".join(found.details),
            found=found.found,
            total=found.total,
            needed=found.needed,
        )
    return ProofReport(found=found.found, total=found.total, needed=found.needed, prove_ms=watch.take_ms())


def _make_engine_settings(begin: Begin) -> EngineSettings:
    from edgeferry.runtime.session import EngineSettings

    return EngineSettings(threads=begin.threads, concurrency=begin.concurrency)


def _make_picture_settings(begin: Begin) -> PictureSettings:
    from edgeferry.runtime.served import PictureSettings
    from edgeferry.vision.image import PictureLimits

    return PictureSettings(PictureLimits(begin.picture_max_bytes, begin.picture_max_pixels), begin.scale_jpeg)


def _make_failed(request_id: int, error: EdgeferryError) -> Failed:
    return Failed(id=request_id, code=error.code, message=error.message, values=error.values)


def _make_unforeseen(request_id: int, error: Exception) -> Failed:
    return _make_failed(request_id, InvariantBroken(f"{type(error).__name__}: {error!s:.300}"))


def _end_at_once(what: threading.ExceptHookArgs) -> None:
    """A thread that dies takes the process along: the parent sees the exit code, and the traceback on stderr."""
    threading.__excepthook__(what)
    os._exit(_UNFORESEEN)


def main() -> None:
    """Takes over the socket whose number is the only argument, reads `Begin`, and serves until the end."""
    threading.excepthook = _end_at_once
    limits.set_soft_limit(resource.RLIMIT_CORE, 0)
    line = WorkerLine(socket.socket(fileno=int(sys.argv[1])))
    bodies = open_shared_bodies(int(sys.argv[2]))
    (begin, _), *others = line.receive(wait=True)
    if isinstance(begin, Begin):
        WorkerProcess(line, begin, bodies).run(others)
    os._exit(0)  # engines' destructors have nothing to save, and may take long


if __name__ == "__main__":
    main()
