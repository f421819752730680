"""The device's connection to a hub: our own, whole; and one that refuses, lies, drops and falls silent."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.transport.raw_hub import RawHub, Reply, behave, open_raw_hub

from edgeferry.app.hub import HubSettings as RunSettings
from edgeferry.app.hub import RunningHub, open_hub
from edgeferry.errors import (
    ConfigInvalid,
    EdgeferryError,
    HubRefused,
    HubUnreachable,
    LinkTimeout,
    ProtocolViolated,
    ServerBusy,
    ServerFailed,
)
from edgeferry.storage.hub_certificates import CertificateFiles, ensure_certificates
from edgeferry.transport.mqtt import (
    HubConnection,
    HubIdentity,
    HubSettings,
    InputMessage,
    MethodCall,
    TwinBell,
    make_key_sign,
    open_hub_connection,
)
from edgeferry.wire import iothub_topics as topics
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_auth import parse_connection_string
from edgeferry.wire.service_api import Identity, MethodRequest
from polling import poll

ME = Identity("d", "me")
QUICK = HubSettings(connect_timeout_s=2.0, answer_timeout_s=1.0)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[RunningHub]:
    """Our own hub; what another module says on `out` comes to `me` on `in`."""
    routes = (
        'FROM /messages/modules/other/outputs/out INTO BrokeredEndpoint("/modules/me/inputs/in")',
        "FROM /messages/modules/me/* INTO $upstream",
    )
    async with open_hub(RunSettings(tmp_path / "hub", mqtt_port=0, https_port=0, routes=routes)) as running:
        yield running


async def make_identity(hub: RunningHub, module: str = "me") -> HubIdentity:
    """Registers a module and says who it is."""
    known = parse_connection_string(await hub.add_module("d", module))
    return HubIdentity(
        host=known.host_name,
        device="d",
        module=module,
        sign=make_key_sign(known.shared_access_key),
        ca_pem=hub.ca_pem_path.read_bytes(),
        port=hub.mqtt_port,
    )


async def set_desired(hub: RunningHub, **desired: object) -> None:
    """What an operator writes into the twin."""
    await hub.rooms.twins.write(ME, {"properties": {"desired": desired}}, if_match=None, replace_all=False)  # type: ignore[dict-item]


async def next_event(connection: HubConnection) -> object:
    """The next event, within a deadline."""
    async with asyncio.timeout(10):
        return await anext(connection.events())


# --- with our own hub -------------------------------------------------------------------------------------------------
async def test_the_twin_is_read_reported_to_and_rings_when_it_changes(hub: RunningHub) -> None:
    async with open_hub_connection(await make_identity(hub)) as connection:
        twin = await connection.fetch_twin()
        assert twin["desired"] == {"$version": 1}
        first = await connection.report({"edgeferry": {"agent": "0.1", "models": {"detector": {"state": "ACTIVE"}}}})
        assert await connection.report({"edgeferry": {"agent": None}}) == first + 1
        await set_desired(hub, FileName="a.zip")
        assert await next_event(connection) == TwinBell()
        twin = await connection.fetch_twin()
    assert twin["desired"] == {"FileName": "a.zip", "$version": 2}
    assert twin["reported"] == {"edgeferry": {"models": {"detector": {"state": "ACTIVE"}}}, "$version": first + 1}


async def test_bells_that_nobody_has_heard_are_one_bell(hub: RunningHub) -> None:
    async with open_hub_connection(await make_identity(hub)) as connection:
        for number in range(5):
            await set_desired(hub, FileName=f"{number}.zip")
        await connection.fetch_twin()  # came after the patches on the same connection: they have arrived
        assert await next_event(connection) == TwinBell()
        await connection.fetch_twin()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(connection.events())


async def test_an_output_is_with_the_hub_when_sending_returns(hub: RunningHub) -> None:
    async with open_hub_connection(await make_identity(hub)) as connection:
        await connection.send_output("DLModelOutput", b'{"local_model_path": "a/b"}', mid="m-1")
        message = (await hub.read_messages())[0]
    assert (message.output, message.payload, message.properties[topics.MESSAGE_ID_KEY]) == (
        "DLModelOutput",
        b'{"local_model_path": "a/b"}',
        "m-1",
    )
    assert message.properties[topics.CONTENT_TYPE_KEY] == "application/json"


async def test_what_another_module_sends_comes_to_the_input(hub: RunningHub) -> None:
    async with (
        open_hub_connection(await make_identity(hub, "other")) as other,
        open_hub_connection(await make_identity(hub)) as connection,
    ):
        await other.send_output("out", b'{"local_model_path": "a/b"}', mid="m-1")
        event = await next_event(connection)
    assert isinstance(event, InputMessage)
    assert (event.input, event.body) == ("in", b'{"local_model_path": "a/b"}')
    assert event.properties[topics.MESSAGE_ID_KEY] == "m-1"


async def test_a_method_is_answered(hub: RunningHub) -> None:
    async with open_hub_connection(await make_identity(hub)) as connection:
        calling = asyncio.create_task(hub.rooms.methods.call(ME, MethodRequest("rollback", {"model": "detector"})))
        event = await next_event(connection)
        assert isinstance(event, MethodCall)
        assert (event.name, event.payload) == ("rollback", {"model": "detector"})
        await connection.answer_method(event.rid, 200, payload={"done": True})
        assert msgspec.json.encode(await calling) == b'{"status":200,"payload":{"done":true}}'


async def test_more_than_can_be_held_drops_old_inputs_and_refuses_methods(hub: RunningHub) -> None:
    settings = HubSettings(queue_max=3)
    async with (
        open_hub_connection(await make_identity(hub, "other")) as other,
        open_hub_connection(await make_identity(hub), settings) as connection,
    ):
        for number in range(5):
            await other.send_output("out", b"%d" % number, mid=f"m-{number}")

        async def has_dropped() -> bool:
            return connection.dropped_inputs == 2

        await poll(has_dropped)
        answer = await hub.rooms.methods.call(ME, MethodRequest("status"))
        assert answer["status"] == 429
        held = [await next_event(connection) for _ in range(3)]
    assert [event.body for event in held if isinstance(event, InputMessage)] == [b"2", b"3", b"4"]


async def test_a_device_without_modules_connects_too(hub: RunningHub) -> None:
    known = parse_connection_string(await hub.add_device("plain"))
    identity = replace(await make_identity(hub), device="plain", module="", sign=make_key_sign(known.shared_access_key))
    async with open_hub_connection(identity) as connection:
        assert (await connection.fetch_twin())["desired"] == {"$version": 1}


async def test_the_peer_may_be_a_gateway_with_another_name(hub: RunningHub) -> None:
    identity = replace(await make_identity(hub), gateway="127.0.0.1")
    async with open_hub_connection(identity) as connection:
        assert "desired" in await connection.fetch_twin()


async def test_a_wrong_key_is_a_refusal_and_so_is_a_token_that_has_expired(hub: RunningHub) -> None:
    identity = await make_identity(hub)
    with pytest.raises(HubRefused):
        async with open_hub_connection(replace(identity, sign=make_key_sign("d3Jvbmc="))):
            raise AssertionError("connected")
    with pytest.raises(HubRefused):
        async with open_hub_connection(identity, HubSettings(token_ttl_s=-60)):
            raise AssertionError("connected")
    with pytest.raises(ConfigInvalid):
        async with open_hub_connection(replace(identity, sign=make_key_sign("no base64!"))):
            raise AssertionError("connected")


async def test_a_hub_that_another_authority_vouches_for_is_not_spoken_to(hub: RunningHub, tmp_path: Path) -> None:
    foreign = ensure_certificates(tmp_path / "foreign", ["localhost"], now=time.time())
    for pem in (foreign.authority.read_bytes(), None):
        with pytest.raises(HubUnreachable, match=r"(?i)certificate"):
            async with open_hub_connection(replace(await make_identity(hub, f"m{bool(pem)}"), ca_pem=pem)):
                raise AssertionError("connected")


async def test_the_connection_ends_when_its_token_does(hub: RunningHub) -> None:
    identity = await make_identity(hub)
    async with open_hub_connection(identity, HubSettings(token_ttl_s=2)) as connection:
        assert connection.expires_at - time.time() < 2.1
        with pytest.raises(HubUnreachable):
            await next_event(connection)
        with pytest.raises(HubUnreachable):
            await connection.fetch_twin()
    async with open_hub_connection(identity) as connection:
        assert await connection.fetch_twin()


async def test_a_cancel_while_connecting_leaves_no_connection_behind(hub: RunningHub) -> None:
    identity = await make_identity(hub)

    async def connect() -> None:
        async with open_hub_connection(identity):
            await asyncio.Event().wait()

    for wait_s in (0.0, 0.001, 0.01, 0.03):
        task = asyncio.create_task(connect())
        await asyncio.sleep(wait_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def nobody_is_there() -> bool:
        return hub.rooms.presence.find(ME) is None

    await poll(nobody_is_there)
    async with open_hub_connection(identity) as connection:
        assert await connection.fetch_twin()


# --- with a hub that misbehaves ---------------------------------------------------------------------------------------
@pytest.fixture
def certificates(tmp_path: Path) -> CertificateFiles:
    """For localhost, from an authority of our own."""
    return ensure_certificates(tmp_path / "certificates", ["localhost"], now=time.time())


def make_stranger(files: CertificateFiles, port: int) -> HubIdentity:
    """Somebody whom a raw hub does not check."""
    sign = make_key_sign("a2V5")
    return HubIdentity("localhost", "d", sign, module="me", ca_pem=files.authority.read_bytes(), port=port)


@asynccontextmanager
async def open_raw_connection(files: CertificateFiles, reply: Reply) -> AsyncIterator[tuple[RawHub, HubConnection]]:
    """A raw hub and an impatient connection to it."""
    async with (
        open_raw_hub(files, reply) as raw,
        open_hub_connection(make_stranger(files, raw.port), QUICK) as connection,
    ):
        yield raw, connection


def answering(status: int, body: bytes = b"", tail: str = "") -> Reply:
    """A hub that answers every twin request with this."""

    def reply(packet: mqtt.Packet) -> Sequence[mqtt.Packet] | None:
        said = list(behave(packet) or [])
        if isinstance(packet, mqtt.Publish):
            rid = packet.topic.rpartition("$rid=")[2]
            said.append(mqtt.Publish(f"$iothub/twin/res/{status}/?$rid={rid}{tail}", body))
        return None if isinstance(packet, mqtt.Disconnect) else said

    return reply


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (answering(200, b'{"desired": {"$version": 1}, "reported": {}}'), None),
        (answering(200, b"[]"), ProtocolViolated),
        (answering(200, b'{"reported": {}}'), ProtocolViolated),
        (answering(200, b"\xff"), ProtocolViolated),
        (answering(200, b"[" * 100_000), ProtocolViolated),
        (answering(200, b'"' + b"x" * 300_000 + b'"'), ProtocolViolated),
        (answering(400), ProtocolViolated),
        (answering(401), HubRefused),
        (answering(429), ServerBusy),
        (answering(503), ServerFailed),
        (behave, LinkTimeout),
        (lambda packet: None if isinstance(packet, mqtt.Publish) else behave(packet), HubUnreachable),
        (lambda packet: [] if isinstance(packet, mqtt.Publish) else behave(packet), EdgeferryError),
    ],
)
async def test_what_a_hub_answers_becomes_a_twin_or_a_leaf(
    certificates: CertificateFiles, reply: Reply, expected: type[EdgeferryError] | None
) -> None:
    async with open_raw_connection(certificates, reply) as (_, connection):
        if expected is None:
            assert await connection.fetch_twin() == {"desired": {"$version": 1}, "reported": {}}
        else:
            with pytest.raises(expected):
                await connection.fetch_twin()


async def test_the_client_speaks_as_the_measured_sdks_do(certificates: CertificateFiles) -> None:
    async with open_raw_hub(certificates, answering(204, tail="&$version=7")) as raw:
        stranger = make_stranger(certificates, raw.port)
        async with open_hub_connection(stranger, QUICK) as connection:
            assert await connection.report({"a": 1}) == 7
        await poll(lambda: _is_last(raw, mqtt.Disconnect), 5.0)
    connect, subscribe, publish = raw.seen[:3]
    assert isinstance(connect, mqtt.Connect) and connect.clean_session is False
    assert (connect.client_id, connect.keepalive_s) == ("d/me", 60)
    assert connect.user_name == "localhost/d/me/?api-version=2021-04-12&DeviceClientType=edgeferry"
    assert (connect.password or b"").startswith(b"SharedAccessSignature sr=localhost%2Fdevices%2Fd%2Fmodules%2Fme&sig=")
    assert isinstance(subscribe, mqtt.Subscribe) and len(subscribe.filters) == 4
    assert isinstance(publish, mqtt.Publish) and json.loads(publish.payload) == {"a": 1}


async def _is_last(raw: RawHub, kind: type) -> bool:
    return isinstance(raw.seen[-1], kind)


def refusing(code: int) -> Reply:
    """A hub whose CONNACK says no."""
    return lambda packet: [mqtt.ConnAck(code)] if isinstance(packet, mqtt.Connect) else None


def granting(code: int) -> Reply:
    """A hub whose SUBACK says this to the last filter."""

    def reply(packet: mqtt.Packet) -> Sequence[mqtt.Packet] | None:
        if isinstance(packet, mqtt.Subscribe):
            return [mqtt.SubAck(packet.packet_id, (1, 1, 1, code))]
        return behave(packet)

    return reply


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (refusing(5), HubRefused),
        (refusing(4), HubRefused),
        (refusing(3), HubUnreachable),
        (refusing(2), HubUnreachable),
        (granting(mqtt.SUBACK_REFUSED), HubRefused),
        (lambda packet: None, HubUnreachable),
        (lambda packet: [], HubUnreachable),
        (lambda packet: [mqtt.PingResp()], HubUnreachable),
        (lambda packet: None if isinstance(packet, mqtt.Subscribe) else behave(packet), HubUnreachable),
    ],
)
async def test_a_connection_that_does_not_come_about_says_why_and_leaves_nothing(
    certificates: CertificateFiles, reply: Reply, expected: type[EdgeferryError]
) -> None:
    async with open_raw_hub(certificates, reply) as raw:
        with pytest.raises(expected):
            async with open_hub_connection(make_stranger(certificates, raw.port), QUICK):
                raise AssertionError("connected")

        async def is_hung_up() -> bool:
            return raw.open_connections == 0

        await poll(is_hung_up, 5.0)


async def test_a_message_that_is_not_the_hubs_to_send_is_dropped(certificates: CertificateFiles) -> None:
    strange = [
        mqtt.Publish("devices/d/modules/somebody-else/inputs/in/", b"1"),
        mqtt.Publish("$iothub/twin/res/abc/?$rid=1", b"1"),
        mqtt.Publish("$iothub/methods/POST/reload/?$rid=9", b"{not json"),
        mqtt.Publish("nonsense", b"1"),
        mqtt.Publish("devices/d/modules/me/inputs/in/%24.mid=m", b"good"),
    ]

    def reply(packet: mqtt.Packet) -> Sequence[mqtt.Packet] | None:
        said = behave(packet)
        return [*said, *strange] if said and isinstance(packet, mqtt.Subscribe) else said

    async with open_raw_connection(certificates, reply) as (raw, connection):
        event = await next_event(connection)
        await poll(lambda: _is_last(raw, mqtt.Publish), 5.0)
    assert event == InputMessage("in", b"good", {"$.mid": "m"})
    answers = [packet.topic for packet in raw.seen if isinstance(packet, mqtt.Publish)]
    assert answers == ["$iothub/methods/res/400/?$rid=9"]


async def test_where_nobody_listens_or_nobody_speaks_the_hub_is_unreachable(certificates: CertificateFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(HubUnreachable):
            async with open_hub_connection(make_stranger(certificates, port), QUICK):
                raise AssertionError("connected")
    with pytest.raises(HubUnreachable):
        async with open_hub_connection(make_stranger(certificates, port), QUICK):
            raise AssertionError("connected")


def test_an_identity_shows_no_secret() -> None:
    identity = HubIdentity("localhost", "d", make_key_sign("c2VjcmV0"), ca_pem=b"secret")
    assert "c2VjcmV0" not in repr(identity) and "sign" not in repr(identity) and "ca_pem" not in repr(identity)
