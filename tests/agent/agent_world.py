"""A device's agent between fakes with knobs: real disk, journal and HTTP; serving, trust and hub in memory."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import io
import random
import sys
import termios
import time
import zipfile
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from aiohttp import web

from edgeferry.agent.agent import Agent, Parts
from edgeferry.agent.fetch import Fetcher
from edgeferry.agent.gate import Gate
from edgeferry.agent.ledger import Ledger
from edgeferry.agent.machine import State
from edgeferry.agent.ports import ManifestSource
from edgeferry.agent.record import UpdateRecord
from edgeferry.agent.tools import AgentSettings
from edgeferry.delta.apply import get_memory
from edgeferry.delta.codecs import compress_zstd
from edgeferry.delta.make import make_full, make_patch
from edgeferry.errors import EdgeferryError, HubUnreachable, ObjectMissing, ServerBusy
from edgeferry.link.policy import LinkPolicy
from edgeferry.model.chunks import make_chunk_list
from edgeferry.model.digest import Digest
from edgeferry.model.health import Health
from edgeferry.model.manifest import (
    Delivery,
    FileEntry,
    Golden,
    Manifest,
    Source,
    TruthObject,
    make_manifest_bytes,
    read_manifest_bytes,
)
from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, ModelSpec, Stage
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.journal import Journal, open_journal
from edgeferry.storage.repository import Repository
from edgeferry.transport.http import HttpSettings, open_http
from edgeferry.transport.mqtt import InputMessage, MethodCall, TwinBell
from edgeferry.twin.document import merge
from edgeferry.twin.shadow import ShadowPolicy
from edgeferry.vision.agreement import Agreement

FAST = AgentSettings(
    probation_s=0.05,
    poll_s=0.01,
    retry_base_s=0.02,
    retry_max_s=0.1,
    access_retry_s=30.0,
    connect_base_s=0.01,
    connect_max_s=0.05,
    report_every_s=0.2,
)
SPEC = ModelSpec(
    stages=(
        Stage(
            file="model.onnx",
            task="detection",
            input=InputSpec(width=32, height=32, layout="nchw", dtype="float32"),
            answer=AnswerSpec(family="ssd"),
            labels=LabelSpec(file="labels.txt"),
        ),
    )
)
PICTURE = b"a golden picture"
LARGE_BYTES = 50_000

BLOCK_BYTES = 4096
"""The origin sends and counts in blocks of this size."""


class Crash(BaseException):
    """kill -9, as near as a test in one process comes to it."""


def check_sound(version: StoredVersion) -> None:
    """No worker ever loads a byte that is not the one that was published."""
    manifest = read_manifest_bytes((version.folder / "manifest.json").read_bytes())
    for entry in manifest.files:
        assert str(Digest.of((version.folder / entry.path).read_bytes())) == entry.sha256, f"{entry.path} is damaged"
    for one in version.golden:
        assert str(Digest.of(one.path.read_bytes())) == one.golden.input, "a golden picture is damaged"


@dataclass
class FakeActivator:
    """Serving in memory. `failures` are raised by the next calls of that name."""

    failures: dict[str, deque[Exception]] = field(default_factory=lambda: defaultdict(deque))
    proven: list[str] = field(default_factory=list)
    switched: list[str] = field(default_factory=list)
    serving: dict[str, StoredVersion] = field(default_factory=dict)
    discarded: int = 0
    deaths: int = 0
    alive: bool = True
    answered: int = 0
    health: Health | None = None
    before: Health | None = None
    proven_again: int = 0
    hold: asyncio.Event | None = None
    agreements: deque[Agreement | None] = field(default_factory=deque)
    """What the candidate and the live version agree on, each time that is asked; none: nothing can be compared."""
    shadows: list[ShadowPolicy] = field(default_factory=list)
    shadowing: bool = False

    async def prove(self, version: StoredVersion) -> None:
        if self.hold is not None:
            await self.hold.wait()
        check_sound(version)
        self._fail("prove")
        self.proven.append(version.version)

    async def switch(self, version: StoredVersion) -> None:
        self._fail("switch")
        self.deaths = self.answered = 0
        self.alive = True
        self.switched.append(version.version)
        self.serving[version.model] = version

    async def discard(self, model: str) -> None:
        self.discarded += 1

    async def prove_again(self, model: str) -> None:
        self._fail("prove_again")
        self.proven_again += 1

    def start_shadow(self, model: str, policy: ShadowPolicy) -> bool:
        self._fail("start_shadow")
        self.shadows.append(policy)
        self.shadowing = bool(self.agreements)
        return self.shadowing

    def find_agreement(self, model: str) -> Agreement | None:
        return self.agreements.popleft() if len(self.agreements) > 1 else self.agreements[0]

    def stop_shadow(self, model: str) -> None:
        self.shadowing = False

    def is_alive(self, model: str) -> bool:
        return self.alive

    def get_health(self, model: str) -> Health:
        return self.health or Health(deaths=self.deaths, answered=self.answered)

    def find_health_before(self, model: str) -> Health | None:
        return self.before

    def _fail(self, name: str) -> None:
        if self.failures.get(name):
            raise self.failures[name].popleft()


@dataclass
class FakeManifests:
    """A repository whose signatures hold. `failures` are raised by the next calls."""

    known: dict[tuple[str, str], bytes] = field(default_factory=dict)
    contents: dict[Digest, bytes] = field(default_factory=dict)
    failures: deque[Exception] = field(default_factory=deque)
    calls: list[str] = field(default_factory=list)

    async def fetch_manifests(self, model: str, version: str, digest: Digest, *, repo: str, sas: str) -> Delivery:
        self.calls.append(sas)
        if self.failures:
            raise self.failures.popleft()
        if (model, version) not in self.known:
            raise ObjectMissing(f"no {model} {version}")
        others = (data for (name, other), data in self.known.items() if name == model and other != version)
        return Delivery(self.known[model, version], tuple(others), self.contents)


Odd = Callable[["Origin", web.Request, bytes], Awaitable[web.StreamResponse]] | None


@dataclass
class Origin:
    """A file server with bad manners on demand."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    cut_after: deque[int] = field(default_factory=deque)
    """The next answers break off after so many bytes."""
    statuses: deque[int] = field(default_factory=deque)
    """The next answers are these."""
    sas: str = ""
    block_delay_s: float = 0.0
    odd: deque[Odd] = field(default_factory=deque)
    """The next large files are answered by these; None: as usual."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    connections: set[object] = field(default_factory=set)
    """Who has asked: address and port."""
    sent_bytes: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    """The same by path."""
    url: str = ""
    holds_back: bool = False
    """A block counts as sent, and the next one follows, once the device's kernel has it."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = request.headers.get("Range", "")
        self.requests.append((request.path, asked))
        self.connections.add(request.transport and request.transport.get_extra_info("peername"))
        if self.statuses:
            return web.Response(status=self.statuses.popleft())
        if self.sas and request.query_string != self.sas:
            return web.Response(status=403)
        data = self.files.get(request.path)
        if data is None:
            return web.Response(status=404)
        odd = self.odd.popleft() if self.odd and len(data) >= LARGE_BYTES else None
        if odd is not None:
            return await odd(self, request, data)
        etag = f'"{hashlib.md5(data).hexdigest()}"' if self.etags else ""
        if etag and request.headers.get("If-Match", etag) != etag:
            return web.Response(status=412)
        first, _, last = asked.removeprefix("bytes=").partition("-") if self.ranges else ("", "", "")
        start, stop = int(first or 0), min(int(last or len(data) - 1) + 1, len(data))
        if start >= len(data) and start:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        headers = {"ETag": etag} if etag else {}
        if first:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return await self.send(request, 206 if first else 200, data[start:stop], headers)

    async def send(
        self, request: web.Request, status: int, body: bytes, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Sends `body` as the knobs say, and counts it."""
        reply = web.StreamResponse(status=status, headers={"Content-Length": str(len(body)), **headers})
        await reply.prepare(request)
        cut = self.cut_after.popleft() if self.cut_after else None
        body = body if cut is None else body[:cut]
        for at in range(0, len(body), BLOCK_BYTES):
            await reply.write(body[at : at + BLOCK_BYTES])
            if self.holds_back:
                await wait_acknowledged(request)
            self.sent_bytes += len(body[at : at + BLOCK_BYTES])
            self.sent[request.path] += len(body[at : at + BLOCK_BYTES])
            await asyncio.sleep(self.block_delay_s)
        if cut is not None and request.transport is not None:
            request.transport.close()
        return reply


async def wait_acknowledged(request: web.Request) -> None:
    while (transport := request.transport) is not None and transport.get_extra_info("socket").fileno() >= 0:
        left = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        if not int.from_bytes(left, sys.byteorder) and not transport.get_write_buffer_size():
            return
        await asyncio.sleep(0.0002)
    raise ConnectionResetError("the device has gone")


class FakeHub:
    """One device's hub in memory: a twin, bells, messages, methods; `down` refuses connections."""

    def __init__(self) -> None:
        self.desired: dict[str, Any] = {"$version": 1}
        self.reported: dict[str, Any] = {"$version": 1}
        self.reports: list[dict[str, Any]] = []
        self.outputs: list[tuple[str, bytes, str]] = []
        self.answers: list[tuple[str, int, Any]] = []
        self.down = False
        self.connections = 0
        self.expires_at = 4e9
        self.busy = 0
        """How many reads of the twin are answered with 429 first."""
        self.bytes = 0
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[FakeHub]:
        if self.down:
            raise HubUnreachable("the hub is down")
        self.connections += 1
        yield self

    async def fetch_twin(self) -> dict[str, Any]:
        self.busy, was_busy = max(0, self.busy - 1), self.busy
        if was_busy:
            raise ServerBusy("the hub asks to send less")
        return {"desired": dict(self.desired), "reported": dict(self.reported)}

    async def report(self, patch: dict[str, Any]) -> int:
        self.reports.append(patch)
        self.reported = merge(self.reported, patch)
        return 1

    async def send_output(self, output: str, body: bytes, *, mid: str) -> None:
        self.outputs.append((output, body, mid))

    async def answer_method(self, rid: str, status: int, *, payload: object = None) -> None:
        self.answers.append((rid, status, payload))

    async def events(self) -> AsyncIterator[Any]:
        while True:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event

    def desire(self, **fields: Any) -> None:
        """Writes desired properties and rings."""
        self.desired = {**merge(self.desired, fields), "$version": self.desired["$version"] + 1}
        self._events.put_nowait(TwinBell())

    def send(self, name: str, body: bytes) -> None:
        self._events.put_nowait(InputMessage(name, body, {}))

    def call(self, name: str, payload: object = None, rid: str = "1") -> None:
        self._events.put_nowait(MethodCall(rid, name, payload))

    def drop(self) -> None:
        self._events.put_nowait(HubUnreachable("the connection broke"))


class CrashingJournal:
    """The real journal, and a kill before or after a record of one state is written."""

    def __init__(self, journal: Journal, state: State, *, after: bool) -> None:
        self._journal = journal
        self._state = state
        self._after = after
        self.crashed = False

    def __getattr__(self, name: str) -> Any:
        if self.crashed:
            raise Crash
        return getattr(self._journal, name)

    async def save_record(self, key: str, *, model: str, state: str, body: bytes) -> None:
        if self.crashed or (state == self._state and not self._after):
            self.crashed = True
            raise Crash
        await self._journal.save_record(key, model=model, state=state, body=body)
        if state == self._state:
            self.crashed = True
            raise Crash


@dataclass
class World:
    """One storage folder, one hub, one origin; agents come and go."""

    root: Path
    settings: AgentSettings
    origin: Origin
    hub: FakeHub = field(default_factory=FakeHub)
    manifests: FakeManifests = field(default_factory=FakeManifests)
    activator: FakeActivator = field(default_factory=FakeActivator)
    wrap: Callable[[Journal], Any] = lambda journal: journal
    http: HttpSettings | None = None
    boot: str = "boot-1"
    policy: LinkPolicy = field(default_factory=LinkPolicy)
    interface: str = "eth0"
    clock_error_s: float = 0.0
    carried_bytes: int = 0
    quota_bytes: int = 0
    agent: Agent | None = None
    make_manifests: Callable[[Fetcher], ManifestSource] | None = None
    """A real verifier in the place of `manifests`."""
    now: Callable[[], float] = time.time
    """The clock that `clock_error_s` adds to."""

    @property
    def repository(self) -> Repository:
        return Repository(self.root, quota_bytes=self.quota_bytes)

    @asynccontextmanager
    async def run(self, *, fresh_activator: bool = True) -> AsyncIterator[Agent]:
        """An agent on the folder, until the block ends; what it raised is raised."""
        if fresh_activator:
            failures = self.activator.failures
            self.activator = FakeActivator(failures=failures)
        repository = self.repository
        repository.prepare()
        async with AsyncExitStack() as stack:
            journal = self.wrap(await stack.enter_async_context(open_journal(repository.journal_path)))
            http = await stack.enter_async_context(open_http(self.http))
            meters = {"http": lambda: self.carried_bytes + http.received_bytes, "hub": lambda: self.hub.bytes}
            gate = Gate(
                Ledger(journal, meters),
                policy=self.policy,
                now=lambda: self.now() + self.clock_error_s,
                find_interface=lambda: self.interface,
            )
            fetcher = Fetcher(http, gate, rate_bps=self.settings.rate_bps)
            parts = Parts(
                repository=repository,
                journal=journal,
                gate=gate,
                fetcher=fetcher,
                manifests=self.manifests if self.make_manifests is None else self.make_manifests(fetcher),
                activator=self.activator,
                open_hub=self.hub.open,  # type: ignore[arg-type] # the fake has the shape
                now=lambda: self.now() + self.clock_error_s,
                random=lambda: 0.5,
                boot=self.boot,
            )
            self.agent = Agent(parts, self.settings)
            running = asyncio.create_task(self.agent.run())
            started = asyncio.create_task(self.agent.started.wait())
            await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
            try:
                yield self.agent
            finally:
                started.cancel()
                running.cancel()
                await asyncio.wait({running})
                if not running.cancelled() and (error := running.exception()) is not None and not is_crash(error):
                    raise error

    # --- publishing ---------------------------------------------------------------------------------------------------
    def publish(
        self,
        version: str,
        *,
        model: str = "detector",
        codec: str = "none",
        size: int = 20_000,
        bases: tuple[str, ...] = (),
    ) -> Manifest:
        """A version with a model file, labels and one golden picture; returns its manifest.

        The model file has patches from the versions `bases`.
        """
        files = {"model.onnx": make_model_file(model, version, size), "labels.txt": b"worker\nfire\n"}
        entries = tuple(self._publish_file(name, data, codec) for name, data in files.items())
        patches = tuple(self._publish_patch(model, base, files["model.onnx"]) for base in bases)
        entries = (msgspec.structs.replace(entries[0], sources=(*entries[0].sources, *patches)), *entries[1:])
        self.put_blob(PICTURE)
        golden = (Golden(input=str(Digest.of(PICTURE)), size=len(PICTURE), truth=(TruthObject(label="worker"),)),)
        manifest = Manifest(model=model, version=version, spec=SPEC, files=entries, golden=golden)
        self.manifests.known[model, version] = make_manifest_bytes(manifest)
        return manifest

    def _publish_file(self, name: str, data: bytes, codec: str) -> FileEntry:
        coded = {"none": lambda: data, "zstd": lambda: compress_zstd(data), "efd1": lambda: make_full(data).data}[
            codec
        ]()
        chunks = make_chunk_list(coded)
        source = Source(
            kind="full",
            codec=codec,
            blob=self.put_blob(coded),
            size=len(coded),
            memory=get_memory(coded, codec),
            chunks=self.put_blob(chunks) if chunks else "",
        )
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        return FileEntry(path=name, sha256=str(Digest.of(data)), md5=md5, size=len(data), sources=(source,))

    def _publish_patch(self, model: str, base: str, data: bytes) -> Source:
        entry = read_manifest_bytes(self.manifests.known[model, base]).files[0]
        old = make_model_file(model, base, entry.size)
        assert Digest.of(old) == Digest.from_str(entry.sha256)
        made = make_patch(old, data)
        return Source(
            kind="patch",
            codec=made.codec,
            blob=self.put_blob(made.data),
            size=len(made.data),
            memory=made.memory_bytes,
            base=entry.sha256,
        )

    def put_blob(self, data: bytes) -> str:
        digest = Digest.of(data)
        self.origin.files[f"/repo/{digest.blob_path}"] = data
        return str(digest)

    def deploy(self, version: str, *, model: str = "detector", sas: str | None = None, **more: Any) -> None:
        """What `edgeferry deploy` does."""
        manifest = self.manifests.known[model, version]
        entry = {"version": version, "manifest": str(Digest.of(manifest)), **more}
        section: dict[str, Any] = {"repo": f"{self.origin.url}/repo", "models": {model: entry}}
        self.hub.desire(edgeferry={**section, **({"sas": sas} if sas is not None else {})})

    def deploy_classic(self, name: str, data: bytes, *, md5: str | None = None) -> None:
        """What the guide's operator does."""
        self.origin.files[f"/{name}"] = data
        sum_ = base64.b64encode(hashlib.md5(data).digest()).decode() if md5 is None else md5
        self.hub.desire(
            FileName=name, DownloadUrl=f"{self.origin.url}/{quote(name)}?sig=secret", ContentMD5=sum_ or None
        )

    # --- looking ------------------------------------------------------------------------------------------------------
    def get_record(self, model: str = "detector") -> UpdateRecord | None:
        assert self.agent is not None
        lane = self.agent._lanes.get(model)
        return lane.record if lane is not None else None

    async def wait_state(
        self, *states: State, version: str = "", model: str = "detector", timeout_s: float = 10
    ) -> UpdateRecord:
        """The record once it is in one of `states` (and of `version`)."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    record = self.get_record(model)
                    if record is not None and record.state in states and version in ("", record.version):
                        return record
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"never {states} {version}: {self.get_record(model)}") from None

    def list_leftovers(self) -> list[str]:
        """What lies where nothing should lie between updates."""
        root = self.root / "edgeferry"
        partial = [f"partial/{path.name}" for path in (root / "partial").iterdir()]
        shared = [path.name for path in self.root.iterdir() if path.name != "edgeferry"]
        temp = [str(path) for path in self.root.rglob(".tmp-*")]
        return [*partial, *shared, *temp]


def make_model_file(model: str, version: str, size: int) -> bytes:
    """Noise that all versions share, and the version's name here and there in it."""
    shared = bytearray(random.Random(model).randbytes(size))
    for at in range(0, size, max(size // 4, 1)):
        shared[at : at + len(version)] = version.encode()
    return bytes(shared[:size])


def is_crash(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(is_crash(inner) for inner in error.exceptions)
    return isinstance(error, Crash)


def make_zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


@asynccontextmanager
async def open_origin() -> AsyncIterator[Origin]:
    origin = Origin()
    app = web.Application()
    app.router.add_get("/{path:.*}", origin.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    origin.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield origin
    finally:
        await runner.cleanup()


__all__ = ["EdgeferryError"]
