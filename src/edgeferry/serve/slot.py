"""One slot: the model that answers under one name, the candidate that was proven, and the switch between them.

What this file leaves to others: all slots and the queue (`slots.py`), starting workers (`engine.py`), HTTP (`api.py`).

Rules:
- What a request needs stands in one frozen Serving: version, worker and terms (labels, thresholds). A switch is one
  reference assignment, so no request can meet the labels of another version.
- The old Serving drains: its worker is let go of when its last lease ends, at the latest after `drain_timeout_s`, and
  not before _SETTLE_S: the end of a process must not meet the new one's first answers, whose caches are cold.
- Versions with the same model files and preprocessing hold one worker together; only the golden truth runs again.
- Where memory does not allow two workers, what serves is paused before the new one is loaded: it drains and ends, its
  requests wait. It comes back when the proof fails, the candidate is let go of, or no switch follows in time.
- A worker that dies while serving is started again: at once after a long life, else after pauses that grow while starts
  fail or workers die young. Requests in flight fail alone with WorkerLost; new ones wait for the restart, but at most
  `restart_wait_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog

from edgeferry.errors import EdgeferryError, ModelError, ModelNotReady, WorkerLost
from edgeferry.model.health import Health
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.blocks import Body
from edgeferry.runtime.child import InferReply, TensorsReply, Terms
from edgeferry.serve.ports import Drawn, EnginePort, WorkerPort
from edgeferry.serve.serving import HeldWorker, Serving
from edgeferry.serve.shadow import Shadow
from edgeferry.serve.tally import Tally
from edgeferry.twin.shadow import ShadowPolicy
from edgeferry.wire.v2_tensors import TensorRequest

_log = structlog.get_logger(__name__)
_RESTART_PAUSE_S, _RESTART_PAUSE_MAX_S, _LONG_LIFE_S = 0.5, 60.0, 60.0
_SETTLE_S = 0.1
NOT_READY_MESSAGE = "PLEASE SET AI MODEL FIRST"  # the guide's own words: its clients look for them


@dataclass(frozen=True, slots=True)
class Lease:
    """One request's hold on one Serving."""

    version: StoredVersion
    terms: Terms
    _worker: WorkerPort
    _tally: Tally
    _shadow: Shadow | None = None

    async def infer(self, picture: Body, *, timeout_s: float, draw: Drawn = "") -> InferReply:
        """Answers `picture` with worker, labels and thresholds of this very version; raises as WorkerPort.infer."""
        try:
            reply = await self._worker.infer(picture, terms=self.terms, timeout_s=timeout_s, draw=draw)
        except (ModelError, WorkerLost):
            self._tally.failed += 1
            raise
        self._tally.note_answer(reply)
        if self._shadow is not None and not draw:  # a drawing takes the place of a picture that was made
            self._shadow.offer(picture, reply)
        return reply

    async def infer_tensors(self, request: TensorRequest, *, timeout_s: float) -> TensorsReply:
        """Runs this very version on tensors as they are; raises as WorkerPort.infer_tensors."""
        outputs = tuple(one.name for one in request.outputs)
        try:
            reply = await self._worker.infer_tensors(request.inputs, request.body, outputs=outputs, timeout_s=timeout_s)
        except (ModelError, WorkerLost):
            self._tally.failed += 1
            raise
        self._tally.note_tensors(reply.timings_ms, counts=self.version.spec.stages[-1].task == "tensors")
        return reply


@dataclass(frozen=True, slots=True)
class SlotSettings:
    """Waiting times, seconds. `pause_max_s`: so long after its proof may a candidate keep what serves away."""

    drain_timeout_s: float = 30.0
    restart_wait_s: float = 10.0
    pause_max_s: float = 10.0


class Slot:
    """See the module. `tally` counts since the last switch, `before` is how the version before ended."""

    def __init__(self, model: str, engine: EnginePort, settings: SlotSettings) -> None:
        self.model = model
        self.serving: Serving | None = None
        self.tally = Tally()
        self.before: Health | None = None
        self._candidate: Serving | None = None
        self._engine = engine
        self._settings = settings
        self._moving = asyncio.Lock()
        self._ready = asyncio.Event()
        self._restart_error: Exception | None = None
        self._restart_pause_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._paused: Serving | None = None
        self.shadow: Shadow | None = None
        self._shadowing: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """True while a living worker serves."""
        return not self.paused and self.serving is not None and self.serving.worker.port.alive

    @property
    def paused(self) -> bool:
        """True while what serves has given its memory to a candidate."""
        return self._paused is not None

    # --- the update's side: prove, switch, discard --------------------------------------------------------------------
    async def prove(self, version: StoredVersion) -> None:
        """Holds a proven worker for `version` as the candidate; raises as Activator.prove. What serves stays."""
        async with self._moving:
            candidate = await self._hold_candidate(version)
        if self.paused:
            self._spawn(self._end_pause(candidate))

    async def switch(self, version: StoredVersion) -> None:
        """Serves `version` from now on, proving it first unless it is the living candidate; the old one drains."""
        async with self._moving:
            if self.ready and self.serving is not None and self.serving.version.identity == version.identity:
                await self._drop_candidate()
                return
            new = await self._hold_candidate(version)
            self.stop_shadow()
            self._candidate, had_one = None, self.serving is not None
            self._point_at(new)
            self.before = self.tally.get_health() if had_one else None
            self.tally = Tally()
            self._restart_pause_s = 0.0
            _log.info("switched", model=self.model, version=version.version)

    async def prove_again(self) -> None:
        """Runs the golden truth on the worker that serves; raises as Activator.prove_again."""
        serving = self._require_serving()
        await serving.worker.port.reprove(serving.version)

    def start_shadow(self, policy: ShadowPolicy, is_busy: Callable[[], bool]) -> bool:
        """Shows live pictures to the candidate from now on; see Activator.start_shadow."""
        self.stop_shadow()
        candidate, live = self._candidate, self.serving
        if candidate is None or live is None or self.paused:
            return False
        shadow = Shadow(candidate, policy, is_busy)
        if shadow.is_gone(live):
            return False
        if not self.ready:
            raise self._make_lost()
        self.shadow, self._shadowing = shadow, self._spawn(shadow.run())
        return True

    def stop_shadow(self) -> None:
        """Shows the candidate nothing more."""
        self.shadow = None
        if self._shadowing is not None:
            self._shadowing.cancel()

    async def discard(self) -> None:
        """Lets go of the candidate, if there is one."""
        async with self._moving:
            await self._drop_candidate()
            await self._resume()

    async def close(self) -> None:
        """Ends watching and restarting, lets running requests finish for at most the drain time, ends the workers."""
        async with self._moving:
            await self._drop_candidate()
            old, self.serving, self._paused = self.serving, None, None
            self._ready.set()
            if old is not None:
                await self._retire(old)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- the request's side -------------------------------------------------------------------------------------------
    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Holds what serves now.

        Raises:
            ModelNotReady: nothing is served.
        """
        serving = self._require_serving()
        with serving.leases:
            yield Lease(serving.version, serving.terms, serving.worker.port, self.tally, self.shadow)

    async def wait_ready(self) -> None:
        """Waits for a restart or a switch under way.

        Raises:
            WorkerLost: the restart failed or takes too long.
            ModelNotReady: nothing is served.
        """
        while not self.ready:
            self._require_serving()
            self._ready.clear()
            if self.paused:
                await self._ready.wait()
            elif not await self._wait_restarted():
                raise self._make_lost()

    def _make_lost(self) -> WorkerLost:
        return WorkerLost(f"the worker of {self.model} died and is not back yet", model=self.model)

    async def _wait_restarted(self) -> bool:
        """False when the restart failed, or takes too long."""
        if self._restart_error is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.restart_wait_s):
                    await self._ready.wait()
        self._require_serving()
        return self.ready or self.paused

    def _require_serving(self) -> Serving:
        if self.serving is None:
            raise ModelNotReady(NOT_READY_MESSAGE, model=self.model)
        return self.serving

    # --- the candidate ------------------------------------------------------------------------------------------------
    async def _hold_candidate(self, version: StoredVersion) -> Serving:
        held = self._candidate
        if held is not None and held.version.identity == version.identity and held.worker.port.alive:
            return held
        await self._drop_candidate()
        self._candidate = await self._make_serving(version)
        return self._candidate

    async def _drop_candidate(self) -> None:
        candidate, self._candidate = self._candidate, None
        self.stop_shadow()
        if candidate is not None:
            await candidate.worker.release(0.0)

    async def _make_serving(self, version: StoredVersion) -> Serving:
        share_key = await self._engine.read_share_key(version)
        shared = await self._share_worker(version, share_key)
        if shared is not None:
            return shared
        async with self._making_room(version):
            port = await self._engine.start(version)
        return Serving(version, HeldWorker(port, share_key), port.terms)

    async def _share_worker(self, version: StoredVersion, share_key: str) -> Serving | None:
        """`version` on the worker that serves already, or None where its files differ or that worker is gone."""
        current = self.serving
        if current is None or current.worker.share_key != share_key or not current.worker.port.alive:
            return None
        worker, port = current.worker.hold(), current.worker.port
        try:
            proven = await port.reprove(version)
        except (ModelError, WorkerLost):
            await worker.release(0.0)
            if port.alive:
                raise
            return None  # it died, perhaps of a picture: a worker of its own gives the verdict on this version
        except BaseException:
            await worker.release(0.0)
            raise
        return Serving(version, worker, proven.terms)

    # --- where memory does not allow two ------------------------------------------------------------------------------
    @asynccontextmanager
    async def _making_room(self, version: StoredVersion) -> AsyncIterator[None]:
        """What serves is paused first where both do not fit, and comes back when the block fails."""
        live = self.serving
        try:
            if live is not None and self.ready and not await self._has_room(version, live):
                await self._pause(live)
            yield
        except Exception:
            await self._resume()
            raise
        except BaseException:  # cut off: nothing may be waited for
            self._bring_back()
            raise

    async def _has_room(self, version: StoredVersion, live: Serving) -> bool:
        return await self._engine.has_room(version, beside=live.version, pid=live.worker.port.pid)

    async def _pause(self, live: Serving) -> None:
        """Lets go of the worker that serves: requests under way are answered, new ones wait."""
        _log.warning("paused", model=self.model, version=live.version.version, reason="no memory for a second worker")
        self._paused = live
        self._ready.clear()
        if self._watching is not None:
            self._watching.cancel()  # what follows is no death
        await live.leases.wait_none(self._settings.drain_timeout_s)
        await live.worker.port.close(drain_timeout_s=0.0)

    async def _resume(self) -> None:
        """Brings back what was paused, and waits until it is there or has failed to come once."""
        if self._bring_back():
            await self._ready.wait()

    def _bring_back(self) -> bool:
        paused, self._paused = self._paused, None
        if paused is None or self.serving is not paused:
            return False
        if paused.worker.port.alive:  # cut off while it drained
            self._watching = self._spawn(self._watch(paused))
            self._ready.set()
            return True
        self._restart_error, self._restart_pause_s = None, 0.0
        self._watching = self._spawn(self._restart(paused))
        return True

    async def _end_pause(self, candidate: Serving) -> None:
        """A proof that no switch follows must not keep requests waiting: what served comes back."""
        await asyncio.sleep(self._settings.pause_max_s)
        async with self._moving:
            if self.paused and self._candidate is candidate:
                await self._drop_candidate()
                await self._resume()

    # --- the switch, and what follows from it -------------------------------------------------------------------------
    def _point_at(self, new: Serving) -> None:
        old, self.serving = self.serving, new
        self._restart_error = self._paused = None
        self._ready.set()
        watching, self._watching = self._watching, self._spawn(self._watch(new))
        if watching is not None and watching is not asyncio.current_task():
            watching.cancel()  # with it a restart of the old version that is under way
        if old is not None:
            self._spawn(self._retire(old, _SETTLE_S))

    async def _retire(self, old: Serving, after_s: float = 0.0) -> None:
        try:
            await asyncio.sleep(after_s)
            if old.worker.port.alive and not await old.leases.wait_none(self._settings.drain_timeout_s):
                _log.warning("drain_timed_out", model=self.model, version=old.version.version)
        finally:  # also when the slot is closed while this drains
            await old.worker.release(0.0)

    async def _watch(self, serving: Serving) -> None:
        """Waits for the worker's death; when it was still the one that serves, counts it and starts it again."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        exit_code = await serving.worker.port.wait_dead()
        if self.serving is not serving:
            return
        self._ready.clear()
        self.tally.note_death()
        _log.error("worker_died", model=self.model, version=serving.version.version, exit_code=exit_code)
        if loop.time() - began_at >= _LONG_LIFE_S:
            self._restart_pause_s = 0.0
        await self._restart(serving)

    async def _restart(self, dead: Serving) -> None:
        while self.serving is dead:
            await self._pause_restart()
            try:
                port = await self._engine.start(dead.version)
            except EdgeferryError as error:
                _log.error("restart_failed", model=self.model, code=error.code, message=error.message)
                self._note_failed_restart(error)
            except Exception as error:  # noqa: BLE001 - the edge of a task: a defect must not leave the slot dead
                _log.error("restart_failed", model=self.model, exc_info=error)
                self._note_failed_restart(error)
            else:
                await self._take_restarted(dead, port)

    def _note_failed_restart(self, error: Exception) -> None:
        self._restart_error = error
        self._ready.set()

    async def _pause_restart(self) -> None:
        """Waits before a start: not before the first one, then longer each time."""
        pause_s = self._restart_pause_s
        self._restart_pause_s = min(max(2 * pause_s, _RESTART_PAUSE_S), _RESTART_PAUSE_MAX_S)
        await asyncio.sleep(pause_s)

    async def _take_restarted(self, dead: Serving, port: WorkerPort) -> None:
        unused = port
        if self.serving is dead:
            unused, dead.worker.port = dead.worker.port, port  # also for a candidate that shares the worker
            self._point_at(Serving(dead.version, dead.worker.hold(), port.terms))
        await unused.close(drain_timeout_s=0.0)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)
        return task

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("slot_task_failed", model=self.model, exc_info=error)
