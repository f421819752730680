"""From a v2 request to its outputs: raw tensors for the model, or one picture for the whole version.

What this file leaves to others: bodies (`wire/v2_tensors.py`), routes (`v2.py`), which model answers (`infer.py`).

Rules:
- Tensors go into the model as they are and come out as they are: no labels, no thresholds, no dequantising.
- One BYTES element where the version takes pictures is a picture, as OpenVINO's server has it: the typed answer leaves
  as one BYTES element named `answer`, JSON as `/v1/models/{name}/predict` has it under `answer`.
- `timeout_s` spans queue and inference.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

import msgspec

from edgeferry.errors import RequestInvalid, RequestTimeout
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.child import TensorsReply
from edgeferry.serve.infer import choose, require_version
from edgeferry.serve.slot import Lease
from edgeferry.serve.slots import Slots
from edgeferry.wire.v2_ranking import rank_classes
from edgeferry.wire.v2_tensors import (
    BYTES,
    OutputParameters,
    OutTensor,
    TensorEntry,
    TensorRequest,
    make_answer,
    pack_bytes,
)

ANSWER = "answer"
_PREFIX_BYTES = 4


@dataclass(frozen=True, slots=True)
class TensorInference:
    """Outputs, the version that gave them with its labels, and milliseconds: in the queue, and in all."""

    version: StoredVersion
    labels: tuple[str, ...]
    reply: TensorsReply
    queue_ms: float
    total_ms: float


async def infer_tensors(slots: Slots, request: TensorRequest, *, wanted: str, timeout_s: float) -> TensorInference:
    """Answers `request` with the model `wanted` (`name` or `name@version`).

    Raises:
        RequestInvalid: the tensors are not those of the model.
        As `infer.infer` besides.
    """
    started = time.monotonic()
    name, version = choose(slots, wanted)
    try:
        async with asyncio.timeout(timeout_s), slots.lease(name, version, size_bytes=len(request.body)) as lease:
            require_version(lease, version)
            waited_s = time.monotonic() - started
            reply = await _run(lease, request, timeout_s - waited_s)
    except TimeoutError as error:
        raise RequestTimeout(f"expected an answer within {timeout_s:g} s, found none") from error
    labels = lease.terms.labels[-1] if lease.terms.labels else ()
    return TensorInference(lease.version, labels, reply, 1000 * waited_s, 1000 * (time.monotonic() - started))


def make_body(request: TensorRequest, inference: TensorInference) -> tuple[bytes, int | None]:
    """The body of the answer, and how many bytes of it are JSON; None when it is JSON as a whole.

    Raises:
        RequestInvalid: an output cannot leave in the form that was asked for.
    """
    asked = {one.name: one.parameters for one in request.outputs}
    view, at, outputs = memoryview(inference.reply.body), 0, []
    for entry in inference.reply.outputs:
        parameters = asked.get(entry.name, OutputParameters())
        data: bytes | memoryview = view[at : at + entry.size_bytes]
        at += entry.size_bytes
        shown = entry
        if parameters.classification > 0:
            shown, data = rank_classes(entry, data, parameters.classification, inference.labels)
        is_binary = request.is_binary if parameters.binary_data is None else parameters.binary_data
        outputs.append(OutTensor(shown, data, is_binary))
    return make_answer(request.id, inference.version.model, inference.version.version, outputs)


async def _run(lease: Lease, request: TensorRequest, timeout_s: float) -> TensorsReply:
    if not _is_picture(request, lease.version):
        return await lease.infer_tensors(request, timeout_s=timeout_s)
    unknown = [one.name for one in request.outputs if one.name != ANSWER]
    if unknown:
        raise RequestInvalid(f"expected the output {ANSWER!r} of a picture, found {unknown[0]!r:.80}")
    reply = await lease.infer(bytes(memoryview(request.body)[_PREFIX_BYTES:]), timeout_s=timeout_s)
    body = pack_bytes([msgspec.json.encode(reply.answer)])
    return TensorsReply((TensorEntry(ANSWER, BYTES, (1,), len(body)),), body, reply.timings_ms)


def _is_picture(request: TensorRequest, version: StoredVersion) -> bool:
    (first, *more) = request.inputs
    single = not more and first.datatype == BYTES and math.prod(first.shape) == 1
    return single and version.spec.stages[0].task != "tensors"
