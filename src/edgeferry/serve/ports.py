"""What serving needs of others, as Protocols: of the agent, of what is stored, of the network and of the engines.

Of the agent: a frozen DeviceStatus out, commands in; of the store: versions; `app/device.py` wires both. Of the
network: pictures from URLs. Of the engines: workers; `serve/engine.py` has the real ones, `serve/fake.py` some in
memory.

Rules:
- Plain values only; serve never imports the agent.
"""

from __future__ import annotations

from typing import Literal, Protocol

from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.blocks import Body
from edgeferry.runtime.child import InferReply, ModelTensors, Proven, TensorsReply, Terms
from edgeferry.twin.status import DeviceStatus
from edgeferry.wire.v2_tensors import TensorEntry

Drawn = Literal["", "png", "jpeg"]
"""In which format the answer is drawn onto the picture; empty: not at all."""


class DevicePort(Protocol):
    """The agent, as the API and the CLI may use it."""

    def get_status(self) -> DeviceStatus:
        """The state now; no I/O."""


class FetchPort(Protocol):
    """The network, as far as a caller may have a picture fetched from it; `app/picture_fetch.py` is one."""

    async def fetch_picture(self, url: str) -> bytes:
        """The picture at `url`, bounded in size and time.

        Raises:
            FetchForbidden: nothing is fetched from that host.
            RequestInvalid: no such URL, or no answer from it.
            QueueFull: too many are being fetched.
        """


class StorePort(Protocol):
    """The versions on this disk, as `storage/repository.py: Repository` has them. Both read the disk."""

    def list_models(self) -> list[str]:
        """Names of all models that have a folder here."""

    def list_versions(self, model: str) -> list[StoredVersion]:
        """All whole versions of `model`."""


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

    @property
    def tensors(self) -> ModelTensors:
        """What goes into its model and comes out."""

    async def infer(self, picture: Body, *, terms: Terms, timeout_s: float, draw: Drawn = "") -> InferReply:
        """Answers one picture; raises RequestError leaves, WorkerLost when the process died, ModelError leaves."""

    async def infer_tensors(
        self, inputs: tuple[TensorEntry, ...], body: Body, *, outputs: tuple[str, ...] = (), timeout_s: float
    ) -> TensorsReply:
        """Runs the model on raw tensors; raises RequestError leaves, WorkerLost when the process died."""

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
