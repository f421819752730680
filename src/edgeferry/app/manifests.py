"""Manifests that the pinned root vouches for: the verifier in a thread, fetching as the device fetches all else.

Rules:
- Without a pinned root nothing signed is believed; the error says how to pin one.
- One verification at a time: the trust folder has one writer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from edgeferry.agent.fetch import Fetcher
from edgeferry.agent.small_fetch import Fetch, SmallFetch
from edgeferry.errors import MetadataUntrusted
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Delivery
from edgeferry.trust.verifier import Verifier


class TrustedManifests:
    """A ManifestSource. `root`: the bytes of a root.json, its digest, or None: nothing is pinned."""

    def __init__(
        self, fetcher: Fetcher, trust_folder: Path, root: bytes | Digest | None, *, now: Callable[[], float]
    ) -> None:
        self._fetcher = fetcher
        self._trust_folder = trust_folder
        self._root = root
        self._now = now
        self._one = asyncio.Lock()

    async def fetch_manifests(self, model: str, version: str, digest: Digest, *, repo: str, sas: str) -> Delivery:
        """See ManifestSource.fetch_manifests."""
        if self._root is None:
            raise MetadataUntrusted("no root is pinned on this device: run edgeferry device init --root root.json")
        root = self._root

        def verify(fetch: Fetch) -> Delivery:
            return Verifier(self._trust_folder, root, fetch, self._now).fetch_manifests(model, version, digest)

        async with self._one:
            return await SmallFetch(self._fetcher, repo=repo, sas=sas).run(verify)
