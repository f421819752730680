"""From a request's picture to its answer: which model answers, for how long it may take, how long it took.

What this file leaves to others: HTTP (`api.py`), shapes of answers (`formats/`), queue and workers (`slots.py`).

Rules:
- A request that names no model is answered by the default model, else by the only active one, else it is ambiguous.
- `name@version` is answered by that very version, active or resident, or not at all.
- A model of the family "tensors" answers no pictures.
- `timeout_s` spans queue and inference.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

from edgeferry.errors import ModelAmbiguous, ModelNotFound, ModelNotReady, RequestInvalid, RequestTimeout
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.blocks import Body
from edgeferry.runtime.child import InferReply
from edgeferry.serve.ports import Drawn
from edgeferry.serve.slot import NOT_READY_MESSAGE, Lease
from edgeferry.serve.slots import Slots


@dataclass(frozen=True, slots=True)
class Inference:
    """An answer, the version that gave it, and milliseconds: in the queue, and in all."""

    version: StoredVersion
    reply: InferReply
    queue_ms: float
    total_ms: float


async def infer(slots: Slots, picture: Body, *, wanted: str = "", timeout_s: float, draw: Drawn = "") -> Inference:
    """Answers `picture` with the model `wanted` (`name`, `name@version`, or empty for the one that is meant).

    Raises:
        ModelNotReady: nothing is active.
        ModelAmbiguous: none is named and several are active.
        ModelNotFound: no such model, or another version of it is active.
        QueueFull, RequestTimeout, WorkerLost: not now.
        PictureUnreadable, PictureTooLarge: the picture is at fault.
        RequestInvalid: the model takes tensors, not pictures.
        ModelUnsupported: the model's outputs are not what its spec says.
    """
    started = time.monotonic()
    name, version = choose(slots, wanted)
    try:
        async with asyncio.timeout(timeout_s), slots.lease(name, version, size_bytes=len(picture)) as lease:
            require_version(lease, version)
            _require_pictures(lease.version)
            waited_s = time.monotonic() - started
            reply = await lease.infer(picture, timeout_s=timeout_s - waited_s, draw=draw)
    except TimeoutError as error:
        raise RequestTimeout(f"expected an answer within {timeout_s:g} s, found none") from error
    return Inference(lease.version, reply, 1000 * waited_s, 1000 * (time.monotonic() - started))


def choose(slots: Slots, wanted: str) -> tuple[str, str]:
    """The model that answers `wanted`, and the version where it must be a certain one; raises as `pick_model`."""
    picked = slots.find_resident(wanted) or pick_model(wanted, slots.list_names(), slots.default_model)
    name, _, version = picked.partition("@")
    return name, version


def pick_model(wanted: str, active: Iterable[str], default: str) -> str:
    """The model that answers, with its `@version` where one is wanted; raises as `infer`."""
    names = sorted(active)
    if not names:
        raise ModelNotReady(NOT_READY_MESSAGE)
    chosen = wanted or default
    if chosen and chosen.partition("@")[0] in names:
        return chosen
    if wanted:
        raise ModelNotFound(f"no model {wanted!r:.80} is active here; active: {', '.join(names)}")
    if default:
        raise ModelNotReady(NOT_READY_MESSAGE, model=default)
    if len(names) > 1:
        raise ModelAmbiguous(f"several models are active: {', '.join(names)}")
    return names[0]


def _require_pictures(version: StoredVersion) -> None:
    if version.spec.stages[-1].task == "tensors":
        raise RequestInvalid(
            f"expected a model that answers pictures, {version} takes tensors: POST /v2/models/{version.model}/infer,"
            " or declare its answer family in a spec"
        )


def require_version(lease: Lease, version: str) -> None:
    """Raises ModelNotFound when another version than the wanted one would answer."""
    if version and version != lease.version.version:
        raise ModelNotFound(f"version {version!r:.80} is not active here; active: {lease.version}")
