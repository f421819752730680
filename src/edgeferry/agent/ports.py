"""What the agent needs of the rest of the device, as Protocols; `app/device.py` wires the real ones.

Rules:
- The agent moves serving only through Activator; it never sees a worker, an engine or a slot.
- It takes a manifest only through ManifestSource, which has verified it.
- Errors cross as leaves of `errors.py`.
"""

from __future__ import annotations

from typing import Protocol

from edgeferry.model.digest import Digest
from edgeferry.model.health import Health
from edgeferry.model.manifest import Delivery
from edgeferry.model.stored import StoredVersion
from edgeferry.twin.shadow import ShadowPolicy
from edgeferry.vision.agreement import Agreement


class Activator(Protocol):
    """Serving, as far as an update moves it."""

    async def prove(self, version: StoredVersion) -> None:
        """Loads the version in a worker of its own, answers its golden truth, warms up, and keeps that worker ready.

        Where memory does not allow two workers the live one is paused until `switch`: requests wait. It serves again
        when this raises, after `discard`, and when no switch follows soon.

        Raises:
            ModelError: the model's fault (unreadable, crashed, timed out, golden truth); the live one serves on.
            InternalError: the worker could not be started; ours to retry.
        """

    async def switch(self, version: StoredVersion) -> None:
        """Points the model's slot at the proven worker (proves first if none is held); the old one drains and exits."""

    async def discard(self, model: str) -> None:
        """Lets go of a proven worker that was never switched to."""

    async def prove_again(self, model: str) -> None:
        """Runs the golden truth once more on the worker that serves `model`; raises as `prove`, WorkerLost too."""

    def start_shadow(self, model: str, policy: ShadowPolicy) -> bool:
        """Shows the proven worker a share of the live pictures.

        Returns:
            False where there is nothing to compare: no version serves beside it, or the proven worker is gone.

        Raises:
            WorkerLost: the live worker died and is being started again; to be asked once more.
        """

    def find_agreement(self, model: str) -> Agreement | None:
        """How far the proven worker and the live one agree so far; None once the proven one is gone."""

    def stop_shadow(self, model: str) -> None:
        """Shows it nothing more; it stays ready."""

    def is_alive(self, model: str) -> bool:
        """Whether a living worker serves `model`."""

    def get_health(self, model: str) -> Health:
        """How the serving version of this model does since the last switch."""

    def find_health_before(self, model: str) -> Health | None:
        """How the version before did that served here until the last switch; None when there was none."""


class ManifestSource(Protocol):
    """Signed metadata, as far as an update needs it."""

    async def fetch_manifests(self, model: str, version: str, digest: Digest, *, repo: str, sas: str) -> Delivery:
        """The version's manifest, of this digest, and what came along with it.

        Manifests are signed by the repository whose root is pinned here; contents have the digests they are named by.

        Raises:
            LinkError, AccessError: it cannot be had now.
            MetadataUntrusted, MetadataExpired: it does not verify.
            DigestMismatch, ManifestInvalid: it verifies and is not what the twin names.
        """
