"""What devices that die are asked for: a signed repository, classic bundles, a server, and folders to begin from.

What this file leaves to others: the devices (`crash_device.py`), what must be true in the end
(`test_device_crashes.py`).
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from tests.publish.desk import SPEC, make_model, make_request, say_nothing

from agent.agent_world import Origin, make_zip, open_origin
from edgeferry.agent.record import make_classic_key, make_local_version
from edgeferry.model.digest import Digest
from edgeferry.publish.publisher import publish
from edgeferry.storage.blob_store import open_blob_store
from edgeferry.trust.draft import open_draft
from edgeferry.trust.keys import KeyFolder
from edgeferry.trust.signer import Desk, init_repository
from edgeferry.twin.contract import CLASSIC_MODEL
from soak.crash_calls import Point
from soak.crash_device import Account, Job

ROOT = Path(__file__).resolve().parents[2]
MODEL = "gauge"
CLASSES = 16
"""Of the model: 196 KB of weights, so that bytes sent twice show."""
_LABELS = "".join(f"class {number}\n" for number in range(CLASSES)).encode()
_WEIGHTS = {
    "1.0.0": make_model(1, CLASSES),
    "1.1.0": make_model(2, CLASSES),
    "1.2.0": make_model(1, CLASSES, changed=300),
}
"""1.1.0 has nothing in common with 1.0.0, 1.2.0 most of it."""


@dataclass(frozen=True)
class Story:
    """An update that is crashed: what ran before, in order, and what is asked for."""

    name: str
    before: tuple[str, ...]
    target: str
    command: str = ""

    @property
    def model(self) -> str:
        return CLASSIC_MODEL if self.target.endswith(".zip") else MODEL


STORIES = [
    Story("first signed", (), "1.0.0"),
    Story("signed full", ("1.0.0",), "1.1.0"),
    Story("signed patch", ("1.0.0",), "1.2.0"),
    Story("first classic", (), "first.zip"),
    Story("classic", ("first.zip",), "second.zip"),
    Story("roll back", ("1.0.0", "1.1.0"), "1.1.0", "rollback"),
]


@dataclass
class CrashSite:
    """A published folder, its server, and a process that forks devices."""

    folder: Path
    origin: Origin
    root: bytes
    devices: asyncio.subprocess.Process
    digests: Mapping[str, Digest]
    zips: Mapping[str, bytes]
    begun: dict[tuple[str, ...], Path] = field(default_factory=dict)
    booked: dict[tuple[str, ...], int] = field(default_factory=dict)
    """What the ledger of such a device says at the beginning."""
    lives: int = 0

    # --- what is asked for --------------------------------------------------------------------------------------------
    def make_desired(self, target: str) -> dict[str, Any]:
        """A twin that asks for `target`."""
        if target in self.zips:
            md5 = base64.b64encode(hashlib.md5(self.zips[target]).digest()).decode()
            return {"$version": 2, "FileName": target, "DownloadUrl": f"{self.origin.url}/{target}", "ContentMD5": md5}
        entry = {"version": target, "manifest": str(self.digests[target])}
        return {"$version": 2, "edgeferry": {"repo": f"{self.origin.url}/repo", "models": {MODEL: entry}}}

    def get_version(self, target: str) -> str:
        """How the device calls `target`."""
        if target not in self.zips:
            return target
        desired = self.make_desired(target)
        key = make_classic_key(target, desired["ContentMD5"], desired["DownloadUrl"])
        return make_local_version(target, Digest.of(key.encode()))

    def count_payload(self) -> int:
        """Bytes of models that were sent to the last device: blobs and bundles, no metadata."""
        return sum(size for path, size in self.origin.sent.items() if "/blobs/" in path or path.endswith(".zip"))

    # --- lives --------------------------------------------------------------------------------------------------------
    async def live(self, story: Story, point: Point | None = None, *, busy: int = 0, **more: Any) -> Account:
        """A device that lived through `story.before` walks to the target, dying at `point`; `busy` answers are 503."""
        begun = await self._begin(story.before)
        folder = self.folder / f"life-{self.lives}"
        self.lives += 1
        await _copy(begun, folder)
        self.origin.sent.clear()
        self.origin.statuses.extend([503] * busy)
        try:
            return await self._ask(self._make_job(folder, story, point=point, **more))
        finally:
            shutil.rmtree(folder)

    async def _begin(self, targets: tuple[str, ...]) -> Path:
        """The folder of a device that ran `targets`, one after the other."""
        if targets not in self.begun:
            folder = self.folder / "-".join(("begun", *targets))
            self.booked[targets] = 0
            if targets:
                await _copy(await self._begin(targets[:-1]), folder)
                account = await self._ask(self._make_job(folder, Story("begin", (), targets[-1])))
                assert (account.state, account.orphans, account.error) == ("ACTIVE", [], ""), account
                self.booked[targets] = account.ledger_bytes
                (folder / "messages").unlink()
            else:
                folder.mkdir()
            self.begun[targets] = folder
        return self.begun[targets]

    def _make_job(self, folder: Path, story: Story, **more: Any) -> Job:
        return Job(
            folder=str(folder),
            desired=self.make_desired(story.target),
            model=story.model,
            target=self.get_version(story.target),
            root=self.root,
            command=story.command,
            **more,
        )

    async def _ask(self, job: Job) -> Account:
        assert self.devices.stdin is not None and self.devices.stdout is not None
        self.devices.stdin.write(msgspec.json.encode(job) + b"\n")
        return msgspec.json.decode(await self.devices.stdout.readline(), type=Account)


async def _copy(source: Path, target: Path) -> None:
    """A whole folder with its hard links."""
    copying = await asyncio.create_subprocess_exec("cp", "-a", str(source), str(target))
    assert await copying.wait() == 0


@asynccontextmanager
async def open_crash_site(folder: Path) -> AsyncIterator[CrashSite]:
    """A site below `folder`; the process that forks devices ends with the context."""
    desk = Desk(open_blob_store(str(folder / "site"), {}), KeyFolder(folder / "keys"), dt.datetime.now(dt.UTC))
    init_repository(desk)
    for version, data in _WEIGHTS.items():
        publish(make_request(version, model_data=data, labels_data=_LABELS), desk, say=say_nothing)
    draft = open_draft(desk.store, desk.keys)
    found = {version: draft.find_version(MODEL, version) for version in _WEIGHTS}
    zips = {
        f"{name}.zip": make_zip({"gauge.onnx": _WEIGHTS[version], "labels.txt": _LABELS, "spec.toml": SPEC.encode()})
        for name, version in (("first", "1.0.0"), ("second", "1.1.0"))
    }
    async with open_origin() as origin:
        origin.holds_back = True
        _fill(origin, folder / "site", zips)
        devices = await _start_devices()
        try:
            digests = {version: listed.digest for version, listed in found.items() if listed is not None}
            yield CrashSite(folder, origin, desk.keys.read_root(), devices, digests, zips)
        finally:
            assert devices.stdin is not None
            devices.stdin.close()
            await devices.wait()


def _fill(origin: Origin, site: Path, zips: Mapping[str, bytes]) -> None:
    for path in site.rglob("*"):
        if path.is_file():
            origin.files[f"/repo/{path.relative_to(site)}"] = path.read_bytes()
    origin.files |= {f"/{name}": data for name, data in zips.items()}


async def _start_devices() -> asyncio.subprocess.Process:
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT), *filter(None, sys.path)])
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "soak.crash_device",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 22,
        env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
    )
