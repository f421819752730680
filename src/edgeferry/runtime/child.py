"""child: how the device's main process starts a worker, waits for its proof, asks it, and ends it.

Public signatures are final; the bodies follow.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from edgeferry.model.spec import Thresholds
from edgeferry.model.stored import StoredVersion
from edgeferry.vision.answer import Answer


class Terms(msgspec.Struct, frozen=True):
    """What may differ between versions that share one worker, per stage: label lines and thresholds. Travels with each request."""

    labels: tuple[tuple[str, ...], ...]
    thresholds: tuple[Thresholds, ...]


class ProofReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the proof went: truths found of all, how many were needed, and what it took (milliseconds)."""

    found: int = 0
    total: int = 0
    needed: float = 0.0
    load_ms: float = 0.0
    prove_ms: float = 0.0
    warm_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Limits of a worker. `threads` is engine threads per inference; `concurrency` inferences at once."""

    threads: int = 1
    concurrency: int = field(default_factory=lambda: os.cpu_count() or 1)
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
    """The answer to one picture. `width`, `height`: the upright picture, pixels. `drawn`: the picture with the answer drawn on it, if asked for."""

    answer: Answer
    width: int
    height: int
    timings_ms: dict[str, float]
    drawn: bytes = b""


@dataclass(frozen=True, slots=True)
class Proven:
    """The outcome of a proof: the report, and the terms (label lines, thresholds) that the version is served with."""

    report: ProofReport
    terms: Terms


class Worker:
    """A running worker process that has proven one version (or several that share its model files)."""

    pid: int
    version: StoredVersion
    report: ProofReport
    terms: Terms

    @property
    def alive(self) -> bool:
        """True until the process has died or was closed."""
        raise NotImplementedError

    async def infer(
        self, picture: bytes, *, terms: Terms | None = None, timeout_s: float, draw: Literal["", "png", "jpeg"] = ""
    ) -> InferReply:
        """Asks the worker about one picture (`terms`: the worker's own when None).

        Raises:
            PictureUnreadable, PictureTooLarge, MediaTypeRefused: the picture is at fault.
            RequestTimeout: no answer within `timeout_s` seconds.
            WorkerLost: the process died, or died before.
            ModelUnsupported: the outputs do not fit the answer family.
        """
        raise NotImplementedError

    async def reprove(self, version: StoredVersion) -> Proven:
        """Runs the golden truth again with the labels and thresholds of `version`, whose model files are the same.

        Raises:
            GoldenMismatch, ModelTimeout, ModelCrashed: it does not hold; the worker, if alive, still serves.
        """
        raise NotImplementedError

    async def wait_dead(self) -> int:
        """Waits until the process has exited; returns its exit code (negative: the signal)."""
        raise NotImplementedError

    async def close(self, *, drain_timeout_s: float = 10.0) -> None:
        """Lets running requests finish for at most `drain_timeout_s`, then ends the process. Safe to call twice."""
        raise NotImplementedError


async def start_worker(version: StoredVersion, settings: WorkerSettings) -> Worker:
    """Starts `python -m edgeferry.runtime.worker`, which loads `version`, proves it on its golden truth and warms up.

    Raises:
        ModelUnreadable, ModelUnsupported, ModelCrashed, ModelTimeout, GoldenMismatch: the model's fault.
        WorkerStartFailed, ToolMissing: the process or its engine could not be started.
    """
    raise NotImplementedError
