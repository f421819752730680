"""What serving needs of others, as Protocols: of the agent and of the engines.

Of the agent: a frozen DeviceStatus out, commands in; `app/device.py` wires it. Of the engines: workers;
`serve/engine.py` has the real ones, `serve/fake.py` some in memory.

Rules:
- Plain values only; serve never imports the agent.
"""

from __future__ import annotations

from typing import Literal, Protocol

from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.child import InferReply, Proven, Terms
from edgeferry.twin.status import DeviceStatus

Drawn = Literal["", "png", "jpeg"]
"""In which format the answer is drawn onto the picture; empty: not at all."""


class DevicePort(Protocol):
    """The agent, as the API and the CLI may use it."""

    def get_status(self) -> DeviceStatus:
        """The state now; no I/O."""


class WorkerPort(Protocol):
    """A worker that has proven a version, as `runtime/child.py: Worker` is one."""

    @property
    def pid(self) -> int:
        """Its process."""

    @property
    def alive(self) -> bool:
        """True until the worker has died or was closed."""

    @property
    def terms(self) -> Terms:
        """Label lines and thresholds of the version it was started with."""

    async def infer(self, picture: bytes, *, terms: Terms, timeout_s: float, draw: Drawn = "") -> InferReply:
        """Answers one picture; raises RequestError leaves, WorkerLost when the process died, ModelError leaves."""

    async def reprove(self, version: StoredVersion) -> Proven:
        """Runs the golden truth again with the labels and thresholds of `version`, which has the same model files."""

    async def wait_dead(self) -> int:
        """Returns once the process is gone."""

    async def close(self, *, drain_timeout_s: float) -> None:
        """Lets running requests finish for at most `drain_timeout_s`, then ends the process; safe to call twice."""


class EnginePort(Protocol):
    """Where workers come from."""

    async def start(self, version: StoredVersion) -> WorkerPort:
        """Starts a worker that has loaded and proven `version`; raises ModelError or InternalError leaves."""

    async def has_room(self, version: StoredVersion, *, beside: StoredVersion, pid: int) -> bool:
        """Whether memory allows a worker for `version` beside the one of `beside`, which is process `pid`."""

    async def read_share_key(self, version: StoredVersion) -> str:
        """Equal for versions with the same model files and preprocessing, and for no others: these share a worker."""
