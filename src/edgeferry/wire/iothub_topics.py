"""The MQTT topics of IoT Hub, parsed and built for both ends: the device's client and the hub.

What a topic means is decided elsewhere; here it becomes a small frozen value and back.

Rules:
- Up is from the device, down is from the hub. An unknown topic raises ProtocolViolated: the hub closes the connection.
- A property bag is percent-encoded pairs joined with `&`. Keys are decoded before they are looked at (SDKs send
  `%24.on`), `+` is literal, a trailing `/` (Node) is dropped, `key` alone is None, `key=` is the empty string.
- Below `inputs/{input}/` the next segment is the bag; input names are percent-encoded.
- `$rid` is echoed exactly as it was sent.

Source: docs/formats/iothub.md section 2 (measured with the Python and Node SDKs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from edgeferry.errors import ProtocolViolated

TWIN_RESPONSE_FILTER = "$iothub/twin/res/#"
DESIRED_PATCH_FILTER = "$iothub/twin/PATCH/properties/desired/#"
METHOD_FILTER = "$iothub/methods/POST/#"
_TWIN_GET = "$iothub/twin/GET/"
_REPORTED = "$iothub/twin/PATCH/properties/reported/"
_DESIRED = "$iothub/twin/PATCH/properties/desired/"
_TWIN_RESPONSE = "$iothub/twin/res/"
_METHOD_CALL = "$iothub/methods/POST/"
_METHOD_ANSWER = "$iothub/methods/res/"

OUTPUT_KEY = "$.on"
MESSAGE_ID_KEY = "$.mid"
CONTENT_TYPE_KEY = "$.ct"
CONTENT_ENCODING_KEY = "$.ce"
FROM_DEVICE_KEY = "$.cdid"
FROM_MODULE_KEY = "$.cmid"

INPUT_FILTER_MAX_CHARS = 512  # behind `inputs/`: a name of 128 characters, percent-encoded, and its bag

Bag = Mapping[str, str | None]


# --- up: from the device to the hub -----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TwinGet:
    """The device asks for its whole twin."""

    rid: str


@dataclass(frozen=True, slots=True)
class ReportedPatch:
    """The device merges into its reported properties."""

    rid: str


@dataclass(frozen=True, slots=True)
class MethodAnswer:
    """The device answers a direct method."""

    rid: str
    status: int


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A message; `output` is None for plain telemetry. `properties` holds all keys decoded, system keys included."""

    output: str | None
    properties: Bag


Uplink = TwinGet | ReportedPatch | MethodAnswer | Telemetry


# --- down: from the hub to the device ---------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TwinResponse:
    """The answer to TwinGet (200, body) or ReportedPatch (204, `version`), or a status of refusal."""

    rid: str
    status: int
    version: int | None = None


@dataclass(frozen=True, slots=True)
class DesiredPatch:
    """A twin patch of the desired properties; the body carries `$version` too."""

    version: int | None


@dataclass(frozen=True, slots=True)
class MethodCall:
    """A direct method to answer with MethodAnswer."""

    name: str
    rid: str


@dataclass(frozen=True, slots=True)
class InputMessage:
    """A message routed to an input of this module."""

    name: str
    properties: Bag


Downlink = TwinResponse | DesiredPatch | MethodCall | InputMessage


def parse_uplink(topic: str, *, device_id: str, module_id: str | None) -> Uplink:
    """What a PUBLISH of this very identity asks for; another identity's topic is as unknown as any other.

    Raises:
        ProtocolViolated: no such topic.
    """
    events = _get_events_prefix(device_id, module_id)
    if topic.startswith(_TWIN_GET):
        return TwinGet(_require_rid(topic[len(_TWIN_GET) :]))
    if topic.startswith(_REPORTED):
        return ReportedPatch(_require_rid(topic[len(_REPORTED) :]))
    if topic.startswith(_METHOD_ANSWER):
        status, _, query = topic[len(_METHOD_ANSWER) :].partition("/")
        return MethodAnswer(_require_rid(query), _require_number(status, signed=True))
    if topic == events[:-1] or topic.startswith(events):
        bag = decode_bag(topic[len(events) :])
        if not (bag.get(OUTPUT_KEY) or "x").isprintable():
            raise ProtocolViolated("the name of an output holds control characters")
        return Telemetry(bag.get(OUTPUT_KEY) or None, bag)
    raise ProtocolViolated(f"no such topic to publish to: {topic!r:.120}")


def parse_downlink(topic: str, *, device_id: str, module_id: str | None) -> Downlink:
    """What the hub sent to this identity.

    Raises:
        ProtocolViolated: no such topic.
    """
    inputs = _get_inputs_prefix(device_id, module_id)
    if topic.startswith(_TWIN_RESPONSE):
        status, _, query = topic[len(_TWIN_RESPONSE) :].partition("/")
        version = _parse_query(query).get("$version")
        return TwinResponse(_require_rid(query), _require_number(status), _require_number(version) if version else None)
    if topic.startswith(_DESIRED):
        version = _parse_query(topic[len(_DESIRED) :]).get("$version")
        return DesiredPatch(_require_number(version) if version else None)
    if topic.startswith(_METHOD_CALL):
        name, _, query = topic[len(_METHOD_CALL) :].partition("/")
        return MethodCall(unquote(name), _require_rid(query))
    if topic.startswith(inputs):
        name, _, bag = topic[len(inputs) :].partition("/")
        return InputMessage(unquote(name), decode_bag(bag))
    raise ProtocolViolated(f"no such topic from a hub: {topic!r:.120}")


def make_uplink_topic(message: Uplink, *, device_id: str, module_id: str | None) -> str:
    """The topic that `parse_uplink` reads back as `message`."""
    match message:
        case TwinGet(rid):
            return f"{_TWIN_GET}?$rid={rid}"
        case ReportedPatch(rid):
            return f"{_REPORTED}?$rid={rid}"
        case MethodAnswer(rid, status):
            return f"{_METHOD_ANSWER}{status}/?$rid={rid}"
        case Telemetry(output, properties):
            named = {**properties, OUTPUT_KEY: output} if output else properties
            return _get_events_prefix(device_id, module_id) + encode_bag(named)


def make_downlink_topic(message: Downlink, *, device_id: str, module_id: str | None) -> str:
    """The topic that `parse_downlink` reads back as `message`."""
    match message:
        case TwinResponse(rid, status, version):
            tail = "" if version is None else f"&$version={version}"
            return f"{_TWIN_RESPONSE}{status}/?$rid={rid}{tail}"
        case DesiredPatch(version):
            return _DESIRED if version is None else f"{_DESIRED}?$version={version}"
        case MethodCall(name, rid):
            return f"{_METHOD_CALL}{quote(name, safe='')}/?$rid={rid}"
        case InputMessage(name, properties):
            return f"{_get_inputs_prefix(device_id, module_id)}{quote(name, safe='')}/{encode_bag(properties)}"


def get_input_filter(device_id: str, module_id: str) -> str:
    """The subscription that brings all inputs of a module."""
    return _get_inputs_prefix(device_id, module_id) + "#"


def is_known_filter(topic_filter: str, *, device_id: str, module_id: str | None) -> bool:
    """Whether an identity may subscribe to this: its own four kinds of topic, whole or narrowed to one input."""
    fixed = {TWIN_RESPONSE_FILTER, DESIRED_PATCH_FILTER, METHOD_FILTER, f"devices/{device_id}/messages/devicebound/#"}
    if topic_filter in fixed:
        return True
    tail = topic_filter.removeprefix(_get_inputs_prefix(device_id, module_id))
    is_short = len(tail) <= INPUT_FILTER_MAX_CHARS and tail.count("/") <= 2
    return module_id is not None and tail != topic_filter and is_short


def encode_bag(properties: Bag) -> str:
    """Percent-encoded pairs joined with `&`; None is written as the key alone."""
    pairs = [(quote(key, safe=""), value) for key, value in properties.items()]
    return "&".join(key if value is None else f"{key}={quote(value, safe='')}" for key, value in pairs)


def decode_bag(text: str) -> dict[str, str | None]:
    """The pairs of a bag with keys and values decoded; see the rules above.

    Raises:
        ProtocolViolated: a key stands twice or is empty, or there is more than a bag.
    """
    bag: dict[str, str | None] = {}
    body = text.removesuffix("/").removeprefix("?")
    if "/" in body:
        raise ProtocolViolated(f"expected a property bag, found more topic levels: {text!r:.120}")
    for pair in filter(None, body.split("&")):
        name, equals, value = pair.partition("=")
        key = unquote(name)
        if not key or key in bag:
            raise ProtocolViolated(f"a property is empty or stands twice: {key!r:.80}")
        bag[key] = unquote(value) if equals else None
    return bag


def _get_events_prefix(device_id: str, module_id: str | None) -> str:
    module = f"modules/{module_id}/" if module_id else ""
    return f"devices/{device_id}/{module}messages/events/"


def _get_inputs_prefix(device_id: str, module_id: str | None) -> str:
    return f"devices/{device_id}/modules/{module_id}/inputs/"


def _parse_query(text: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in text.removeprefix("?").split("&"))
    return {unquote(name): value for name, _, value in pairs}


def _require_rid(query: str) -> str:
    rid = _parse_query(query).get("$rid", "")
    if not query.startswith("?") or not 0 < len(rid) <= 256:
        raise ProtocolViolated(f"expected '?$rid=...' at the end of the topic, found {query!r:.80}")
    return rid


def _require_number(text: str, *, signed: bool = False) -> int:
    digits = text.removeprefix("-") if signed else text
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
        raise ProtocolViolated(f"expected a number in the topic, found {text!r:.40}")
    return int(text)
