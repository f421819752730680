"""The workload API: a module without a key of its own connects with what its host signs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from tests.transport.raw_server import make_answer, open_raw_server

from edgeferry.app.hub import HubSettings, RunningHub, open_hub
from edgeferry.errors import ConfigInvalid, EdgeferryError, LinkDown, ProtocolViolated, ServerFailed
from edgeferry.transport.mqtt import HubIdentity, open_hub_connection
from edgeferry.transport.workload import Workload
from edgeferry.wire.iothub_auth import make_signature, parse_connection_string
from edgeferry.wire.service_api import Identity


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[RunningHub]:
    """Our hub with its workload socket, for device `d`."""
    settings = HubSettings(
        tmp_path / "hub", mqtt_port=0, https_port=0, workload_socket=tmp_path / "w.sock", workload_device="d"
    )
    async with open_hub(settings) as running:
        yield running


async def test_a_module_connects_with_what_its_host_signs(hub: RunningHub, tmp_path: Path) -> None:
    key = parse_connection_string(await hub.add_module("d", "me")).shared_access_key
    generation = (await hub.rooms.registry.read(Identity("d", "me"))).generation_id
    workload = Workload(f"unix://{tmp_path}/w.sock")
    assert await workload.sign("me", generation, data=b"to sign") == make_signature(key, b"to sign")
    bundle = await workload.fetch_trust_bundle()
    assert bundle == hub.ca_pem_path.read_bytes()

    async def sign(data: bytes) -> str:
        return await workload.sign("me", generation, data=data)

    identity = HubIdentity("localhost", "d", sign, module="me", ca_pem=bundle, port=hub.mqtt_port)
    async with open_hub_connection(identity) as connection:
        assert "desired" in await connection.fetch_twin()


async def test_another_generation_or_module_is_refused(hub: RunningHub, tmp_path: Path) -> None:
    await hub.add_module("d", "me")
    sign = partial(Workload(f"unix://{tmp_path}/w.sock").sign, data=b"x")
    for module, generation in (("me", "other"), ("nobody", "1"), ("../../x", "1")):
        with pytest.raises(EdgeferryError) as caught:
            await sign(module, generation)
        assert caught.value.values["status"] in (400, 404)


async def test_calls_carry_the_api_version_and_plain_http_works_too() -> None:
    async with open_raw_server(make_answer(200, b'{"digest": "YWJj"}')) as server:
        assert await Workload(server.url, "2020-07-07").sign("a b", "1", data=b"x") == "YWJj"
    assert server.heads[0].startswith("POST /modules/a%20b/genid/1/sign?api-version=2020-07-07 HTTP/1.1\r\n")


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"digest": 1}', b"\xff"])
async def test_an_answer_of_another_shape_is_said(body: bytes) -> None:
    async with open_raw_server(make_answer(200, body)) as server:
        with pytest.raises(ProtocolViolated):
            await Workload(server.url).sign("m", "1", data=b"x")


async def test_a_daemon_that_fails_or_is_not_there_is_said(tmp_path: Path) -> None:
    async with open_raw_server(make_answer(500)) as server:
        with pytest.raises(ServerFailed):
            await Workload(server.url).fetch_trust_bundle()
    with pytest.raises(LinkDown):
        await Workload(f"unix://{tmp_path}/none.sock").fetch_trust_bundle()


@pytest.mark.parametrize("url", ["", "unix://", "ftp://host", "/run/x.sock", "http:"])
def test_a_url_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(ConfigInvalid):
        Workload(url)
