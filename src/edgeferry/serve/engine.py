"""Workers in processes of their own (`runtime/child.py`), as an EnginePort.

Rules:
- Two versions may share a worker when their model files are the same files and all that shapes the tensors and reads
  the outputs is equal; label lists and thresholds may differ, since they travel with each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import msgspec

from edgeferry.model.spec import LabelSpec, Stage, Thresholds
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.brake import Brake
from edgeferry.runtime.child import WorkerSettings, start_worker
from edgeferry.runtime.memory import MemoryReading, read_memory
from edgeferry.serve.headroom import fits_beside
from edgeferry.serve.ports import WorkerPort
from edgeferry.storage.identity import read_file_identity


class ChildEngine:
    """Starts worker processes with `settings`.

    `require_sound` raises StorageFailed when the version's files are not what was stored; called before each load.
    `read_memory` says what is free, and what the process of a number has taken. Who starts while no other worker lives
    gives way to nobody: not a single request could be late for it. Whoever loads beside others stands still while they
    need the cores.
    """

    def __init__(
        self,
        settings: WorkerSettings | None = None,
        *,
        require_sound: Callable[[StoredVersion], None] | None = None,
        read_memory: Callable[[int], MemoryReading] = read_memory,
    ) -> None:
        self._settings = settings or WorkerSettings()
        self._require_sound = require_sound
        self._read_memory = read_memory
        self._workers: list[WorkerPort] = []
        self._brake = Brake()

    async def start(self, version: StoredVersion) -> WorkerPort:
        """Starts a worker that has loaded and proven `version`; raises as `runtime.child.start_worker`."""
        if self._require_sound is not None:
            await asyncio.to_thread(self._require_sound, version)
        self._workers = [worker for worker in self._workers if worker.alive]
        beside, alone = replace(self._settings, idle=True), replace(self._settings, nice=0)
        worker = await start_worker(version, beside if self._workers else alone, self._brake)
        self._workers.append(worker)
        return worker

    async def has_room(self, version: StoredVersion, *, beside: StoredVersion, pid: int) -> bool:
        """Whether memory allows a worker for `version` beside that of `beside`, which is process `pid`."""
        return await asyncio.to_thread(self._has_room, version, beside, pid)

    def _has_room(self, version: StoredVersion, beside: StoredVersion, pid: int) -> bool:
        sizes = {"new_bytes": _read_model_bytes(version), "old_bytes": _read_model_bytes(beside)}
        return fits_beside(self._read_memory(pid), **sizes)

    async def read_share_key(self, version: StoredVersion) -> str:
        """Identity of the model files, and the spec without labels and thresholds."""
        return await asyncio.to_thread(_read_share_key, version)


def _read_model_bytes(version: StoredVersion) -> int:
    paths = [version.folder / stage.file for stage in version.spec.stages]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _read_share_key(version: StoredVersion) -> str:
    stages = version.spec.stages
    files = [read_file_identity(version.folder / stage.file) for stage in stages]
    shapes = [msgspec.json.encode(_without_terms(stage), order="sorted").decode() for stage in stages]
    return "\n".join([*files, *shapes])


def _without_terms(stage: Stage) -> Stage:
    """The stage as far as it binds the worker: the label's offset does, since it does not travel with requests."""
    labels = LabelSpec(offset=stage.labels.offset)
    return msgspec.structs.replace(stage, file="", labels=labels, thresholds=Thresholds())
