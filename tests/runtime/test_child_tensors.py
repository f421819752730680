"""Tensors through a real worker process: answered in the model's dtypes, refused by name, forgotten with callers."""

from __future__ import annotations

import asyncio
import struct
import time
from dataclasses import replace

import pytest

from edgeferry.errors import LimitExceeded, RequestInvalid, RequestTimeout, WorkerLost
from edgeferry.runtime.child import TensorsReply, Worker, WorkerSettings, start_worker
from edgeferry.wire.v2_tensors import TensorEntry
from edgeferry.wire.worker_frames import BODY_MAX_BYTES, ModelTensors, TensorDescription
from runtime.versions import MakeVersion

SETTINGS = WorkerSettings(concurrency=1, load_timeout_s=20.0)
RED = bytes([255, 0, 0]) * 16


async def _ask(worker: Worker, *, name: str = "image", data: bytes = RED, timeout_s: float = 10.0) -> TensorsReply:
    entry = TensorEntry(name, "UINT8", (1, 4, 4, 3), len(data))
    return await worker.infer_tensors((entry,), memoryview(data), timeout_s=timeout_s)


async def test_a_worker_says_what_its_model_takes_and_runs_it(make_fake: MakeVersion) -> None:
    worker = await start_worker(make_fake(golden=False), SETTINGS)
    try:
        assert worker.tensors == ModelTensors(
            "litert_tflite",
            (TensorDescription("image", "UINT8", (1, 4, 4, 3)),),
            (TensorDescription("probs", "FP32", (1, 3)),),
        )
        reply = await _ask(worker)
        assert reply.outputs == (TensorEntry("probs", "FP32", (1, 3), 12),)
        assert struct.unpack("<3f", reply.body) == pytest.approx((0.9, 0.05, 0.05))
        with pytest.raises(RequestInvalid, match="expected the inputs image, found picture"):
            await _ask(worker, name="picture")
        with pytest.raises(RequestInvalid, match="found 47 bytes"):
            await _ask(worker, data=RED[1:])
        with pytest.raises(LimitExceeded):
            await _ask(worker, data=bytes(BODY_MAX_BYTES + 1))
        assert (await _ask(worker)).body == reply.body
    finally:
        await worker.close(drain_timeout_s=5.0)


async def test_tensors_that_nobody_waits_for_are_not_run(make_fake: MakeVersion) -> None:
    worker = await start_worker(make_fake("run sleep 0.3", golden=False), SETTINGS)
    try:
        hasty = [asyncio.create_task(_ask(worker, timeout_s=0.1)) for _ in range(10)]
        results = await asyncio.gather(*hasty, return_exceptions=True)
        assert {type(one) for one in results} == {RequestTimeout}
        started = time.monotonic()
        await _ask(worker)
        assert time.monotonic() - started < 2.0  # two runs, not eleven
    finally:
        await worker.close(drain_timeout_s=5.0)


async def test_a_worker_that_dies_of_tensors_fails_them_alone(make_fake: MakeVersion) -> None:
    worker = await start_worker(make_fake("run signal SIGSEGV", golden=False), replace(SETTINGS, concurrency=2))
    try:
        with pytest.raises(WorkerLost):
            await _ask(worker)
        assert not worker.alive
    finally:
        await worker.close(drain_timeout_s=0.0)
