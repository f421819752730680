"""Versions for the fake engine, and how to wait for something without sleeping for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, ModelSpec, Stage, Thresholds
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.fake import FakeEngine
from edgeferry.serve.slots import Slots, SlotsSettings

MakeVersion = Callable[..., StoredVersion]
Until = Callable[[Callable[[], bool]], Awaitable[None]]


def make_spec(*labels: str, file: str = "m.onnx", offset: int = 0, score: float = 0.5) -> ModelSpec:
    """A detector's spec with the labels stated outright."""
    return ModelSpec(
        stages=(
            Stage(
                file=file,
                task="detection",
                input=InputSpec(width=8, height=8, layout="nchw", dtype="float32"),
                answer=AnswerSpec(family="ssd"),
                labels=LabelSpec(names=labels or ("cat",), offset=offset),
                thresholds=Thresholds(score=score),
            ),
        )
    )


@pytest.fixture
def make_version() -> MakeVersion:
    """Makes versions whose first label is `label`; one `folder` means the same model files."""

    def make(version: str = "1.0.0", *, label: str = "", model: str = "detector", folder: str = "") -> StoredVersion:
        spec = make_spec(label or f"label-of-{version}")
        return StoredVersion(model, version, f"{model}:{version}", Path("/nowhere") / (folder or version), spec)

    return make


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def slots(engine: FakeEngine) -> AsyncIterator[Slots]:
    """Slots over the fake engine: two at once, two waiting."""
    slots = Slots(engine, SlotsSettings(concurrency=2, waiting=2))
    yield slots
    await slots.close()


@pytest.fixture
def until() -> Until:
    """Waits until a condition holds; fails after five seconds."""

    async def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            await asyncio.sleep(0.005)

    return wait
