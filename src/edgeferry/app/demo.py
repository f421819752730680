"""The demo: the whole story on one machine, told with real processes and ended with its figures.

What this file leaves to others: the processes and the link (`demo_site.py`).

Rules:
- A claim is a check: the story ends as a success only if all of `DemoFigures.claims` are true.
- One loop of requests runs through every switch; whatever it did not answer rightly counts as failed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgeferry.app.demo_site import MODEL, Site, open_site
from edgeferry.errors import ConfigInvalid, EdgeferryError, InvariantBroken
from edgeferry.transport.http import HttpClient, HttpSettings, open_http

DEFAULT_LINK_BPS = 64_000
BAD_VERSION = "1.3.0-bad"
FILE_NAME = "detector.onnx"
NEW_CLASS = "leak"
_ACTIVE_TIMEOUT_S = 170.0
_REQUEST_PAUSE_S = 0.05
_POLL_S = 0.5
Say = Callable[[str], None]
Progress = Callable[[float, str], None]
"""Called with a share 0..1 and a line of words while something long goes on."""


class DemoFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo measured. Bytes are above TCP; times in seconds; `claims` names what had to hold.

    `patch_bytes` is what the new model file took as a patch, `full_bytes` what it would have taken whole, coded.
    """

    guide_zip_bytes: int
    full_bytes: int
    patch_bytes: int
    update_wire_bytes: int
    update_payload_bytes: int
    link_bps: int
    update_s: float
    requests: int
    requests_during_update: int
    failed: int
    answers_by_version: dict[str, int]
    refused_code: str
    total_s: float
    claims: dict[str, bool]
    pictures: list[str]


@dataclass(slots=True)
class Loop:
    """The loop of requests: what was answered by which version, and what failed."""

    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set after the first round: an update then meets a device at work."""

    @property
    def total(self) -> int:
        """Requests so far."""
        return self.answered.total() + len(self.failures)


async def run_demo(out: Path, models: Path, *, link_bps: int, say: Say, progress: Progress) -> DemoFigures:
    """Tells the story in the folder `out` and returns the figures; raises what made it impossible to go on.

    `link_bps`: bits per second between device and hub during the update.
    """
    begun = time.monotonic()
    async with open_site(out, models) as site, open_http(HttpSettings()) as http:
        await _begin(site, http, say=say)
        async with _open_loop(site, http) as loop:
            update = await _update(site, loop, link_bps=link_bps, say=say, progress=progress)
            say(f"{MODEL} 1.1.0 has taken over. What it sees:")
            await _tell_scenes(site, http, say=say)
            pictures = await _draw_scenes(site, http, out / "pictures")
            refused = await _refuse(site, say=say)
            sees_leak = await _find_labels(site, http, NEW_CLASS)
        figures = _make_figures(update, loop, refused=refused, sees_leak=sees_leak, pictures=pictures)
    return msgspec.structs.replace(figures, total_s=round(time.monotonic() - begun, 1))


async def run_up(out: Path, models: Path, *, say: Say) -> None:
    """A hub and one device with the demo model, until the process is told to end."""
    async with open_site(out, models) as site, open_http(HttpSettings()) as http:
        await _begin(site, http, say=say)
        say(f"  device   {site.api}/score and {site.api}/v1/models/{MODEL}/predict")
        say(f"  models   {site.repo_url}   (published folder: {out / 'site'})")
        say(f"  status   edgeferry device status --storage {out / 'device'}")
        say(f"  logs     {out / 'logs'}")
        say("Ctrl-C ends it.")
        await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class _Update:
    """What the update cost."""

    link_bps: int
    guide_zip_bytes: int
    full_bytes: int
    patch_bytes: int
    wire_bytes: int
    payload_bytes: int
    seconds: float
    requests: int


async def _begin(site: Site, http: HttpClient, *, say: Say) -> None:
    say("A hub, a folder of published models and a device run on this machine.")
    await site.publish("1.0.0", FILE_NAME, "v1.0")
    await site.deploy("1.0.0")
    await _wait_active(site, "1.0.0")
    say(f"{MODEL} 1.0.0 is published, fetched, verified, proven and active. What it sees:")
    await _tell_scenes(site, http, say=say)


async def _update(site: Site, loop: Loop, *, link_bps: int, say: Say, progress: Progress) -> _Update:
    report = await site.publish("1.1.0", FILE_NAME, "v1.1")
    say(f"{MODEL} 1.1.0 is published: it also knows '{NEW_CLASS}'. The link is now {link_bps // 1000} kbit/s.")
    await loop.settled.wait()
    before, requests, begun = site.link.passed_bytes, loop.total, time.monotonic()
    site.link.limit(link_bps)
    await site.deploy("1.1.0")
    await _wait_active(site, "1.1.0", progress=progress)
    seconds = time.monotonic() - begun
    site.link.limit(0)
    return _Update(
        link_bps=link_bps,
        guide_zip_bytes=int(report["classic"]["size"]),
        full_bytes=sum(int(file["coded_size"]) for file in report["files"]),
        patch_bytes=sum(int(patch["size"]) for patch in report["patches"]),
        wire_bytes=site.link.passed_bytes - before,
        payload_bytes=int(report["update_bytes"]),
        seconds=seconds,
        requests=loop.total - requests,
    )


async def _refuse(site: Site, *, say: Say) -> str:
    """Deploys the bad version; returns the code that it was refused with, or "" when it was not."""
    say(f"{MODEL} {BAD_VERSION} is published: a valid file whose labels are rotated.")
    await site.publish(BAD_VERSION, FILE_NAME, None)
    await site.deploy(BAD_VERSION)
    async with asyncio.timeout(_ACTIVE_TIMEOUT_S):
        while True:
            status = await _read_model(site)
            if status["state"] == "REJECTED":
                error = status["error"] or {}
                say(f"  refused: {error.get('code')}: {str(error.get('message', '')).partition(':')[0]}")
                say(f"  {MODEL} {status['active']} serves on.")
                return str(error.get("code", ""))
            if status["active"] == BAD_VERSION:
                return ""
            await asyncio.sleep(_POLL_S)


async def _read_model(site: Site) -> dict[str, Any]:
    site.require_device()
    status = await site.read_status()
    return next((entry for entry in status["models"] if entry["model"] == MODEL), {"active": "", "state": ""})


async def _wait_active(site: Site, version: str, *, progress: Progress | None = None) -> None:
    async with asyncio.timeout(_ACTIVE_TIMEOUT_S):
        while True:
            status = await _read_model_or_nothing(site)
            if progress is not None:
                share = 1.0 if status["active"] == version else float(status.get("progress", 0.0))
                progress(share, f"{status['state'].lower() or 'waiting'}, {site.link.passed_bytes:,} bytes on the link")
            if status["active"] == version:
                return
            if status["state"] in ("REJECTED", "FAILED", "ROLLED_BACK"):
                raise InvariantBroken(f"{version} ended as {status['state']}: {status.get('error')}")
            await asyncio.sleep(_POLL_S)


async def _read_model_or_nothing(site: Site) -> dict[str, Any]:
    """The model's status; nothing while the device's socket is not there yet."""
    try:
        return await _read_model(site)
    except EdgeferryError:
        site.require_device()
        return {"active": "", "state": ""}


# --- requests ---------------------------------------------------------------------------------------------------------
@asynccontextmanager
async def _open_loop(site: Site, http: HttpClient) -> AsyncIterator[Loop]:
    """One client that asks again and again, as an application on the device would."""
    loop = Loop()
    task = asyncio.create_task(_ask_on(site, http, loop))
    try:
        yield loop
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _ask_on(site: Site, http: HttpClient, loop: Loop) -> None:
    scenes = [path.read_bytes() for path in _list_scenes(site)]
    while True:
        for picture in scenes:
            try:
                answer = await _predict(site, http, picture)
                loop.answered[str(answer["version"])] += 1
            except EdgeferryError as error:
                loop.failures.append(f"{error.code}: {error.message}")
            await asyncio.sleep(_REQUEST_PAUSE_S)
        loop.settled.set()


async def _predict(site: Site, http: HttpClient, picture: bytes) -> dict[str, Any]:
    url = f"{site.api}/v1/models/{MODEL}/predict"
    answer = await http.fetch(url, max_bytes=1 << 20, method="POST", body=picture)
    if answer.status != 200:
        raise InvariantBroken(f"expected 200 from the device, found {answer.status}: {answer.body[:200]!r}")
    found: dict[str, Any] = msgspec.json.decode(answer.body)
    return found


async def _tell_scenes(site: Site, http: HttpClient, *, say: Say) -> None:
    for scene in _list_scenes(site):
        say(f"  {scene.name:<20} {await _describe(site, http, scene)}")


async def _describe(site: Site, http: HttpClient, scene: Path) -> str:
    objects = _get_objects(await _predict(site, http, scene.read_bytes()))
    counts = Counter(entry["label"] for entry in objects)
    return ", ".join(f"{count} {label}" for label, count in sorted(counts.items())) or "nothing"


def _get_objects(answer: dict[str, Any]) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = answer["answer"]["objects"]
    return objects


async def _find_labels(site: Site, http: HttpClient, label: str) -> bool:
    for scene in _list_scenes(site):
        answer = await _predict(site, http, scene.read_bytes())
        if any(entry["label"] == label for entry in _get_objects(answer)):
            return True
    return False


async def _draw_scenes(site: Site, http: HttpClient, folder: Path) -> list[str]:
    folder.mkdir()
    written = []
    for scene in _list_scenes(site):
        url = f"{site.api}/v1/models/{MODEL}/predict"
        headers = {"Accept": "image/png"}
        answer = await http.fetch(url, max_bytes=8 << 20, method="POST", body=scene.read_bytes(), headers=headers)
        path = folder / f"{scene.stem}.png"
        path.write_bytes(answer.body)
        written.append(str(path))
    return written


def _list_scenes(site: Site) -> list[Path]:
    scenes = sorted((site.models / "scenes").glob("*.jpg"))
    if not scenes:
        raise ConfigInvalid(f"expected scenes under {site.models / 'scenes'}: run from a checkout, or give --models")
    return scenes


def _make_figures(update: _Update, loop: Loop, *, refused: str, sees_leak: bool, pictures: list[str]) -> DemoFigures:
    """The figures, and what had to hold. `total_s` is filled in by the caller."""
    claims = {
        "no request failed": not loop.failures,
        "requests were answered during the update": update.requests > 0,
        "both versions answered": {"1.0.0", "1.1.0"} <= set(loop.answered),
        f"1.1.0 sees '{NEW_CLASS}'": sees_leak,
        "the update cost fewer bytes than the guide's ZIP": update.wire_bytes < update.guide_zip_bytes,
        "all of it took a quarter of the coded full file at most": 4 * update.wire_bytes <= update.full_bytes,
        f"{BAD_VERSION} was refused on its golden truth": refused == "golden_mismatch",
        f"{BAD_VERSION} never answered": BAD_VERSION not in loop.answered,
    }
    return DemoFigures(
        guide_zip_bytes=update.guide_zip_bytes,
        full_bytes=update.full_bytes,
        patch_bytes=update.patch_bytes,
        update_wire_bytes=update.wire_bytes,
        update_payload_bytes=update.payload_bytes,
        link_bps=update.link_bps,
        update_s=round(update.seconds, 1),
        requests=loop.total,
        requests_during_update=update.requests,
        failed=len(loop.failures),
        answers_by_version=dict(loop.answered),
        refused_code=refused,
        total_s=0.0,
        claims=claims,
        pictures=pictures,
    )
