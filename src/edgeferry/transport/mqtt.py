"""The device's connection to its hub: Azure IoT Hub's MQTT 3.1.1, spoken over TLS through aiomqtt.

Topics and tokens are `wire/`'s; what a twin means, and when to connect again, is the agent's.

Rules:
- One `open_hub_connection` is one connection: when it breaks, `events` and all that waits raise HubUnreachable; the
  caller opens the next one. It does so too before `expires_at`: a token is renewed by a new CONNECT.
- The session is kept by the hub (clean session 0), and subscriptions are made anew all the same: hubs forget.
- A twin patch is a bell without content: bells that nobody has heard yet are one bell.
- Bounded: answers wait `answer_timeout_s`, at most `queue_max` events are held; of inputs the oldest give way, methods
  are answered with 429.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import aiomqtt
import msgspec
import structlog
from aiomqtt.exceptions import MqttConnectError

from edgeferry.errors import (
    EdgeferryError,
    HubRefused,
    HubUnreachable,
    LinkTimeout,
    ProtocolViolated,
    ServerBusy,
    ServerFailed,
)
from edgeferry.transport.identity import HubIdentity, Sign, make_key_sign
from edgeferry.transport.tls import make_tls_context
from edgeferry.transport.wire_bytes import WireMeter
from edgeferry.wire import iothub_topics as topics
from edgeferry.wire.iothub_auth import make_client_id, make_user_name

__all__ = [
    "HubConnection",
    "HubIdentity",
    "HubSettings",
    "Event",
    "InputMessage",
    "MethodCall",
    "Sign",
    "TwinBell",
    "make_key_sign",
    "open_hub_connection",
]

PAYLOAD_MAX_BYTES = 256 << 10
"""What IoT Hub allows a message to be (docs/formats/iothub.md section 2)."""
_REFUSED = frozenset({4, 5, 134, 135})
"""CONNACK: bad user name or password, not authorised; in the numbers of MQTT 3.1.1 and, after paho, of 5."""
_GOODBYE_S = 3.0
"""How long a hub may take to close a connection that we end."""
_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HubSettings:
    """How patient a connection is. `token_ttl_s` is how long a token lasts; `keepalive_s` costs bytes when idle."""

    connect_timeout_s: float = 10.0
    answer_timeout_s: float = 30.0
    keepalive_s: int = 60
    token_ttl_s: int = 3600
    queue_max: int = 100


@dataclass(frozen=True, slots=True)
class TwinBell:
    """The desired properties have changed: read the whole twin."""


@dataclass(frozen=True, slots=True)
class InputMessage:
    """A message routed to an input of this module; it may come twice."""

    input: str
    body: bytes
    properties: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class MethodCall:
    """A direct method; answer it with `answer_method(rid, ...)`. `payload` is decoded JSON, None when empty."""

    rid: str
    name: str
    payload: object


Event = TwinBell | InputMessage | MethodCall


class _Ids(TypedDict):
    device_id: str
    module_id: str | None


class HubConnection:
    """An open connection; made by `open_hub_connection`. `expires_at`: the Unix second at which the hub drops it."""

    def __init__(self, client: aiomqtt.Client, identity: HubIdentity, settings: HubSettings, expires_at: int) -> None:
        self.expires_at = expires_at
        self.dropped_inputs = 0
        self._client = client
        self._settings = settings
        self._ids: _Ids = {"device_id": identity.device, "module_id": identity.module or None}
        self._rids = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[tuple[topics.TwinResponse, bytes]]] = {}
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._failure: EdgeferryError | None = None
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refusals: set[asyncio.Task[None]] = set()

    async def fetch_twin(self) -> dict[str, object]:
        """The whole twin: `{"desired": {..., "$version": n}, "reported": {...}}`.

        Raises:
            HubUnreachable, LinkTimeout, ServerBusy, ServerFailed: try later.
            HubRefused: this identity may not read it. ProtocolViolated: what came is no twin.
        """
        _, body = await self._ask(topics.TwinGet(self._make_rid()), b"")
        twin = _decode(body)
        if not isinstance(twin, dict) or not isinstance(twin.get("desired"), dict):
            raise ProtocolViolated("expected a twin with desired properties, found something else")
        return twin

    async def report(self, patch: Mapping[str, object]) -> int:
        """Merges `patch` into the reported properties (None deletes); returns their `$version` once the hub has it."""
        version, _ = await self._ask(topics.ReportedPatch(self._make_rid()), msgspec.json.encode(patch))
        return version

    async def send_output(self, output: str, body: bytes, *, mid: str) -> None:
        """Sends a JSON message to `output`; returns when the hub has it. By its `mid` a receiver drops doubles."""
        properties = {
            topics.MESSAGE_ID_KEY: mid,
            topics.CONTENT_TYPE_KEY: "application/json",
            topics.CONTENT_ENCODING_KEY: "utf-8",
        }
        await self._publish(topics.Telemetry(output, properties), body)

    async def answer_method(self, rid: str, status: int, *, payload: object = None) -> None:
        """Answers the MethodCall of that `rid` with an HTTP-like status and a JSON payload."""
        body = b"" if payload is None else msgspec.json.encode(payload)
        await self._publish(topics.MethodAnswer(rid, status), body)

    async def events(self) -> AsyncIterator[Event]:
        """What the hub sends, in order, for one reader; ends by raising HubUnreachable when the connection breaks."""
        while True:
            while self._events:
                yield self._events.popleft()
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            await self._arrived.wait()

    # --- asking and publishing ----------------------------------------------------------------------------------------
    async def _ask(self, question: topics.TwinGet | topics.ReportedPatch, body: bytes) -> tuple[int, bytes]:
        """Publishes a question; returns version and body of its answer when that is a success."""
        answer = self._waiting[question.rid] = asyncio.get_running_loop().create_future()
        try:
            await self._publish(question, body, qos=0)  # its answer acknowledges it
            response, data = await self._hold(answer)
        finally:
            del self._waiting[question.rid]
        _require_success(response)
        return response.version or 0, data

    async def _publish(self, message: topics.Uplink, body: bytes, *, qos: int = 1) -> None:
        topic = topics.make_uplink_topic(message, **self._ids)
        await self._hold(asyncio.ensure_future(self._client.publish(topic, body, qos=qos, timeout=math.inf)))

    async def _hold(self, work: asyncio.Future[_T]) -> _T:
        """What `work` gives, while the connection holds and for as long as the hub may take.

        aiomqtt's own time-outs are not used: they rest on `wait_for`, which loses a cancel in Python 3.11.
        """
        try:
            async with asyncio.timeout(self._settings.answer_timeout_s):
                await asyncio.wait((work, self._broken), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and self._failure is not None:
                raise self._failure
            with _translate_mqtt_errors():
                return work.result()
        except TimeoutError as error:
            raise LinkTimeout(f"the hub gave no answer in {self._settings.answer_timeout_s:g} s") from error
        finally:
            work.cancel()

    def _make_rid(self) -> str:
        return str(next(self._rids))

    # --- what arrives -------------------------------------------------------------------------------------------------
    async def subscribe(self) -> None:
        """Asks for twin answers, bells, methods and inputs; raises HubRefused when the hub grants one of them not."""
        filters = [topics.TWIN_RESPONSE_FILTER, topics.DESIRED_PATCH_FILTER, topics.METHOD_FILTER]
        if self._ids["module_id"]:
            filters.append(topics.get_input_filter(self._ids["device_id"], self._ids["module_id"]))
        asking = self._client.subscribe([(name, 1) for name in filters], timeout=math.inf)
        granted = await self._hold(asyncio.ensure_future(asking))
        if any(_get_code(code) >= 128 for code in granted):
            raise HubRefused("the hub does not let this identity subscribe to its own topics")

    async def receive(self) -> None:
        """Hands out what arrives until the connection breaks; `open_hub_connection` runs it."""
        try:
            with _translate_mqtt_errors():
                async for message in self._client.messages:
                    self._take(str(message.topic), bytes(message.payload or b""))
        except EdgeferryError as error:
            self._fail(error)

    def _take(self, topic: str, body: bytes) -> None:
        try:
            message = topics.parse_downlink(topic, **self._ids)
        except ProtocolViolated as error:
            _log.warning("message of the hub dropped", reason=error.message)
            return
        match message:
            case topics.TwinResponse(rid):
                waiting = self._waiting.get(rid)
                if waiting is not None and not waiting.done():
                    waiting.set_result((message, body))
            case topics.DesiredPatch():
                self._put(TwinBell())
            case topics.InputMessage(name, properties):
                self._put(InputMessage(name, body, properties))
            case topics.MethodCall(name, rid):
                self._take_method(rid, name, body)

    def _take_method(self, rid: str, name: str, body: bytes) -> None:
        if len(self._events) >= self._settings.queue_max:
            self._refuse(rid, 429)
            return
        try:
            self._put(MethodCall(rid, name, _decode(body) if body.strip() else None))
        except ProtocolViolated:
            self._refuse(rid, 400)

    def _refuse(self, rid: str, status: int) -> None:
        """Answers in a task of its own: what else arrives must not wait for it."""

        async def refuse() -> None:
            with suppress(EdgeferryError):  # the caller of the method sees a time-out instead
                await self.answer_method(rid, status)

        task = asyncio.create_task(refuse())
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)

    def _put(self, event: Event) -> None:
        if isinstance(event, TwinBell) and event in self._events:
            return
        if isinstance(event, InputMessage) and len(self._events) >= self._settings.queue_max:
            self._drop_oldest_input()
        self._events.append(event)
        self._arrived.set()

    def _drop_oldest_input(self) -> None:
        oldest = next((event for event in self._events if isinstance(event, InputMessage)), None)
        if oldest is not None:
            self._events.remove(oldest)
            self.dropped_inputs += 1
            _log.warning("too many messages wait: the oldest was dropped", input=oldest.input[:80])

    def _fail(self, error: EdgeferryError) -> None:
        self._failure = error
        self._arrived.set()
        if not self._broken.done():
            self._broken.set_result(None)


@asynccontextmanager
async def open_hub_connection(
    identity: HubIdentity,
    settings: HubSettings | None = None,
    *,
    now: Callable[[], float] = time.time,
    meter: WireMeter | None = None,
) -> AsyncIterator[HubConnection]:
    """Connects, subscribes, and stays connected while the block runs; `meter` counts what that costs.

    Raises:
        HubUnreachable: no connection, or it broke in the block. HubRefused: the hub does not accept this identity.
        ConfigInvalid: key or CA certificates cannot be read.
    """
    settings = settings or HubSettings()
    expires_at = int(now()) + settings.token_ttl_s
    client = _make_client(identity, settings, await identity.make_password(expires_at), meter)
    with _translate_mqtt_errors():
        await _connect(client)
    connection = HubConnection(client, identity, settings, expires_at)
    receiving = asyncio.create_task(connection.receive())
    try:
        await connection.subscribe()
        yield connection
    finally:
        receiving.cancel()
        await asyncio.wait([receiving])
        await _disconnect(client)


def _make_client(
    identity: HubIdentity, settings: HubSettings, password: str, meter: WireMeter | None
) -> aiomqtt.Client:
    context = make_tls_context(identity.ca_pem, system_too=False)
    client = aiomqtt.Client(
        identity.gateway or identity.host,
        identity.port,
        username=make_user_name(identity.host, identity.device, identity.module or None, client_type="edgeferry"),
        password=password,
        identifier=make_client_id(identity.device, identity.module or None),
        protocol=aiomqtt.ProtocolVersion.V311,
        clean_session=False,
        keepalive=settings.keepalive_s,
        timeout=settings.answer_timeout_s,
        tls_context=context if meter is None else meter.meter_tls(context),
    )
    client._client.connect_timeout = settings.connect_timeout_s  # aiomqtt has no word for it, and paho's 5 s are few
    return client


async def _connect(client: aiomqtt.Client) -> None:
    """Enters `client`. A cancel waits until its thread is through: a connection left behind throws out the next."""
    connecting = asyncio.ensure_future(client.__aenter__())
    try:
        await asyncio.shield(connecting)
    except BaseException:
        await asyncio.wait([connecting])
        if connecting.exception() is None:
            await _disconnect(client)
        else:
            client._client.disconnect()  # without a CONNACK aiomqtt leaves the socket open
        raise


async def _disconnect(client: aiomqtt.Client) -> None:
    client.timeout = _GOODBYE_S
    try:
        await client.__aexit__(None, None, None)
    except aiomqtt.MqttError as error:  # it is gone, which is all that was wanted
        _log.info("the hub was not there to say goodbye to", reason=str(error))


@contextmanager
def _translate_mqtt_errors() -> Iterator[None]:
    try:
        yield
    except aiomqtt.MqttCodeError as error:
        if isinstance(error, MqttConnectError) and _get_code(error.rc) in _REFUSED:
            raise HubRefused(
                "the hub does not accept this identity: wrong key, unknown, disabled, or a wrong clock"
            ) from error
        raise HubUnreachable(f"the connection to the hub broke: {error}") from error
    except (aiomqtt.MqttError, OSError, ValueError) as error:
        raise HubUnreachable(f"the hub cannot be reached: {error}") from error


def _require_success(response: topics.TwinResponse) -> None:
    status = response.status
    if status < 300:
        return
    if status == 429:
        raise ServerBusy("the hub asks to send less")
    if status in (401, 403):
        raise HubRefused(f"the hub refused the twin request with status {status}")
    kind = ServerFailed if status >= 500 else ProtocolViolated
    raise kind(f"the hub answered the twin request with status {status}", status=status)


def _get_code(reason: object) -> int:
    code = getattr(reason, "value", reason)  # paho: a ReasonCode or the number itself
    return code if isinstance(code, int) else 255


def _decode(body: bytes) -> object:
    if len(body) > PAYLOAD_MAX_BYTES:
        raise ProtocolViolated(f"expected at most {PAYLOAD_MAX_BYTES} bytes from the hub, found {len(body)}")
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolated("expected JSON from the hub, found something else") from error
