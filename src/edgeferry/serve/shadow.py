"""Shadow: a proven candidate sees a share of the live pictures, and is compared with what was answered.

What this file leaves to others: the comparison (`vision/agreement.py`), what follows from it (`agent/shadowing.py`).

Rules:
- A picture is shown to the candidate once its answer is on its way to the caller, and while a core is free.
- Budget: after each picture the candidate rests until its time in the engine is at most `cpu` of all time. Wall time
  counts, which is never less than what it takes of a core.
- One picture waits at a time; those that come meanwhile are left out. Nothing here ever fails or delays a request.
- What the candidate cannot answer counts as a picture that it does not agree on; a picture at fault counts as none.
  A candidate whose worker died says so by `is_gone`, not in figures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgeferry.errors import EdgeferryError, PictureTooLarge, PictureUnreadable, WorkerLost
from edgeferry.runtime.blocks import Body
from edgeferry.runtime.child import InferReply
from edgeferry.serve.serving import Serving
from edgeferry.twin.shadow import ShadowPolicy
from edgeferry.vision.agreement import Agreement, compare
from edgeferry.vision.answer import Answer

_SENT_AFTER_S = 0.02
_BUSY_POLL_S = 0.01
_BUSY_MAX_S = 2.0
_TIMEOUT_S = 30.0


class Shadow:
    """One candidate in the shadow. `agreement` grows while `run` runs."""

    def __init__(self, candidate: Serving, policy: ShadowPolicy, is_busy: Callable[[], bool]) -> None:
        self.agreement = Agreement()
        self._candidate = candidate
        self._policy = policy
        self._is_busy = is_busy
        self._due = 0.0
        self._waiting: asyncio.Queue[tuple[bytes, Answer]] = asyncio.Queue(maxsize=1)

    def is_gone(self, live: Serving | None) -> bool:
        """Whether the candidate's worker died; one that it shares with `live` comes back."""
        worker = self._candidate.worker
        return not worker.port.alive and (live is None or live.worker is not worker)

    def offer(self, picture: Body, reply: InferReply) -> None:
        """Takes note of a live picture and its answer, if it is one of the share; never waits."""
        self._due += self._policy.share
        if self._due < 1 or self._waiting.full():
            self._due = min(self._due, 1.0)
            return
        self._due -= 1
        self._waiting.put_nowait((bytes(picture), reply.answer))

    async def run(self) -> None:
        """Compares, until cancelled."""
        while True:
            picture, live = await self._waiting.get()
            await asyncio.sleep(_SENT_AFTER_S)
            if not await self._wait_idle():
                continue
            spent_s = await self._show(picture, live)
            await asyncio.sleep(spent_s / self._policy.cpu - spent_s)

    async def _wait_idle(self) -> bool:
        """False when requests wait for cores all the time: then this picture is left out."""
        ends_at = asyncio.get_running_loop().time() + _BUSY_MAX_S
        while self._is_busy():
            if asyncio.get_running_loop().time() > ends_at:
                return False
            await asyncio.sleep(_BUSY_POLL_S)
        return True

    async def _show(self, picture: bytes, live: Answer) -> float:
        """Asks the candidate; returns the seconds that it took."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        candidate = self._candidate
        try:
            reply = await candidate.worker.port.infer(picture, terms=candidate.terms, timeout_s=_TIMEOUT_S)
            self.agreement += compare(live, reply.answer)
        except (PictureUnreadable, PictureTooLarge, WorkerLost):
            pass
        except EdgeferryError:
            self.agreement += Agreement(1)
        return loop.time() - began_at
