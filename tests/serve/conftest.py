"""Versions for the fake engine, and how to wait for something without sleeping for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edgeferry.app.serving import open_api
from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, ModelSpec, Stage, Thresholds
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.api import ApiSettings, make_app
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


@dataclass
class ApiClient:
    """A raw HTTP client of one running API; `seen` holds (method, path, status) of all that was asked."""

    url: str
    port: int
    session: aiohttp.ClientSession
    seen: list[tuple[str, str, int]] = field(default_factory=list)

    async def ask(self, method: str, path: str, **options: Any) -> Answered:
        async with self.session.request(method, self.url + path, **options) as response:
            body = await response.read()
            self.seen.append((method, path.partition("?")[0], response.status))
            return Answered(response.status, response.headers, body)

    async def post(self, path: str, data: Any = b"cat", **options: Any) -> Answered:
        return await self.ask("POST", path, data=data, **options)

    async def get(self, path: str, **options: Any) -> Answered:
        return await self.ask("GET", path, **options)

    async def send_raw(self, request: bytes, *, half_close: bool = False) -> bytes:
        """Sends bytes on a connection of its own and reads until the server closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            await writer.drain()
            if half_close:
                writer.write_eof()
            return await asyncio.wait_for(reader.read(), 5)
        except ConnectionError:
            return b""
        finally:
            writer.close()


@dataclass
class Answered:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code; fails when the body is not an error in its documented shape."""
        (error,) = self.json.values()
        assert sorted(error) == ["advice", "code", "message"]
        assert all(error.values())
        return str(error["code"])


OpenClient = Callable[..., AbstractAsyncContextManager[ApiClient]]


@pytest.fixture
def open_client() -> OpenClient:
    """Opens a real server over given slots and a client of it."""

    @asynccontextmanager
    async def open_(slots: Slots, settings: ApiSettings | None = None, **options: Any) -> AsyncIterator[ApiClient]:
        ports = {name: options.pop(name, None) for name in ("fetch", "store")}
        app = make_app(slots, options.pop("device", None), settings, **ports)
        async with open_api(app, "127.0.0.1", 0, **options) as address, aiohttp.ClientSession() as session:
            yield ApiClient(address.url, address.port, session)

    return open_


@pytest.fixture
async def client(slots: Slots, open_client: OpenClient) -> AsyncIterator[ApiClient]:
    """A server over the fake engine without any limits lowered."""
    async with open_client(slots) as client:
        yield client
