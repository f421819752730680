"""Routes of a deployment manifest, `FROM <source> [WHERE <condition>] INTO <sink>`: read, written back, and judged.

Delivery is the hub's. The language of conditions stands in expression.py; here is what its names mean in a message.

Rules:
- Sources: `/*`, `/messages/*`, `/messages/modules/*`, `/messages/modules/{m}/*`, `/messages/modules/{m}/outputs/*`,
  `/messages/modules/{m}/outputs/{o}`. Sinks: `$upstream`, `BrokeredEndpoint("/modules/{m}/inputs/{i}")`.
- The three words compare without case, names with case. `parse_route(str(route)) == route`.
- A condition is read with its route: one that can never hold (a property against a number, a twin) is refused.
- In a condition a bare name is an application property, which is a string; `$name` a system property, else an
  application property; `$body.x` what stands in a JSON body. Property names compare without case, those of a body with.

Source: docs/formats/iothub.md section 7, docs/formats/query.md section 5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec

from edgeferry.errors import ConfigInvalid, RequestInvalid
from edgeferry.twin.expression import (
    Compare,
    Expression,
    In,
    Literal,
    Path,
    find_value,
    get_nodes,
    is_true,
    parse_expression,
)
from edgeferry.twin.functions import UNDEFINED
from edgeferry.twin.tokens import Steps

ROUTE_MAX_CHARS = 4096
ROUTES_MAX = 1000
BODY_MAX_BYTES = 256 * 1024  # a message of IoT Hub
UPSTREAM = "$upstream"
PRIORITY_MAX = 9
PRIORITY_NONE = 10  # a route without a priority comes after all that have one
TIME_TO_LIVE_MAX_S = 2**32 - 1
_NAME = r"[A-Za-z0-9_.:%$!~()@=+',-]{1,128}"
_SOURCE = re.compile(rf"/(?:messages/)?\*|/messages/modules/(?:\*|{_NAME}/(?:\*|outputs/(?:\*|{_NAME})))")
_SINK = re.compile(rf"BrokeredEndpoint\(\s*[\"']/modules/({_NAME})/inputs/({_NAME})[\"']\s*\)", re.IGNORECASE)
_INTO = re.compile(r"\sINTO\s", re.IGNORECASE)
_ENCODINGS = MappingProxyType({"utf-8": "utf-8-sig", "utf-16": "utf-16", "utf-32": "utf-32"})
_JSON_TYPE = "application/json"
_BAG_KEYS: Mapping[str, str] = MappingProxyType(  # system property in small letters -> key of the property bag
    {
        "contenttype": "$.ct",
        "content-type": "$.ct",
        "contentencoding": "$.ce",
        "content-encoding": "$.ce",
        "messageid": "$.mid",
        "correlationid": "$.cid",
        "userid": "$.uid",
        "to": "$.to",
        "expirytimeutc": "$.exp",
        "creationtimeutc": "$.ctime",
        "dt-subject": "$.sub",
    }
)


@dataclass(frozen=True)  # without slots: a cached property needs a place
class RoutedMessage:
    """A message as a route judges it.

    Attributes:
        module_id: who sent it; None for the device itself.
        output: None for plain telemetry.
        properties: all keys decoded, those of the system (`$.ct`, `$.mid`, ...) included.
        payload: the body.
        device_id: the device that sent it.
    """

    module_id: str | None
    output: str | None
    properties: Mapping[str, str | None]
    payload: bytes
    device_id: str

    @cached_property
    def body(self) -> Any:
        """The body as JSON; UNDEFINED unless the message says that it is JSON and in which encoding."""
        kind, encoding = self.properties.get("$.ct") or "", self.properties.get("$.ce") or ""
        codec = _ENCODINGS.get(encoding.lower())
        if kind.lower() != _JSON_TYPE or codec is None or len(self.payload) > BODY_MAX_BYTES:
            return UNDEFINED
        try:
            return msgspec.json.decode(self.payload.decode(codec))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return UNDEFINED

    def find(self, steps: Steps) -> Any:
        """What a path of a condition stands for here, UNDEFINED for nothing."""
        first = str(steps[0])
        if first.lower() == "$body":
            is_below = len(steps) > 1 and isinstance(steps[1], str)  # the body as a whole is not looked at
            return find_value(self.body, steps[1:]) if is_below else UNDEFINED
        if not all(isinstance(step, str) for step in steps):
            return UNDEFINED
        name = ".".join(map(str, steps))
        found = self._system.get(name[1:].lower(), UNDEFINED) if first.startswith("$") else UNDEFINED
        return self._application.get(name.lower(), UNDEFINED) if found is UNDEFINED else found

    @cached_property
    def _system(self) -> dict[str, str | None]:
        found = {name: self.properties[key] for name, key in _BAG_KEYS.items() if key in self.properties}
        known = {"connectiondeviceid": self.device_id, "connectionmoduleid": self.module_id, "outputname": self.output}
        return found | {name: value for name, value in known.items() if value is not None}

    @cached_property
    def _application(self) -> dict[str, str | None]:
        return {name.lower(): value for name, value in self.properties.items() if not name.startswith("$.")}


@dataclass(frozen=True, slots=True)
class Route:
    """Where messages come from and go to.

    Attributes:
        source: the path after FROM, as written.
        sink: (module, input), or None for `$upstream`.
        condition: the text after WHERE, or None.

    Raises:
        ConfigInvalid: the condition is none, or can never hold.
    """

    source: str
    sink: tuple[str, str] | None
    condition: str | None = None
    _expression: Expression | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_expression", _parse_condition(self.condition) if self.condition else None)

    def __str__(self) -> str:
        where = f" WHERE {self.condition}" if self.condition else ""
        into = UPSTREAM if self.sink is None else f'BrokeredEndpoint("/modules/{self.sink[0]}/inputs/{self.sink[1]}")'
        return f"FROM {self.source}{where} INTO {into}"

    def takes(self, module_id: str | None, output: str | None) -> bool:
        """Whether a message of this module (None: the device itself) and output (None: plain telemetry) goes here."""
        if self.source in ("/*", "/messages/*"):
            return True
        if module_id is None:
            return False
        if self.source == "/messages/modules/*":
            return True
        wanted_module, _, tail = self.source.removeprefix("/messages/modules/").partition("/")
        if wanted_module != module_id:
            return False
        return tail == "*" or (output is not None and tail in ("outputs/*", f"outputs/{output}"))

    def accepts(self, message: RoutedMessage) -> bool:
        """Whether the message comes from the source and meets the condition."""
        if not self.takes(message.module_id, message.output):
            return False
        return self._expression is None or is_true(self._expression, message.find)


@dataclass(frozen=True, slots=True)
class NamedRoute:
    """A route as a manifest names it.

    Attributes:
        name: its key in the section.
        route: what it does.
        priority: 0 (first) to 9, or PRIORITY_NONE (last).
        time_to_live_s: how long its messages are kept; None for the hub's own time.
    """

    name: str
    route: Route
    priority: int = PRIORITY_NONE
    time_to_live_s: int | None = None


def parse_route(text: str) -> Route:
    """Reads one route.

    Raises:
        ConfigInvalid: it does not follow the grammar; the message says which part.
    """
    into = [*_INTO.finditer(text)] if len(text) <= ROUTE_MAX_CHARS else []
    words = text[: into[-1].start()].split(None, 2) if into else []  # the last INTO: a condition may quote the word
    if len(words) < 2 or words[0].upper() != "FROM":
        raise ConfigInvalid(f"expected a route 'FROM <source> [WHERE <condition>] INTO <sink>', found {text!r:.120}")
    if not _SOURCE.fullmatch(words[1]):
        raise ConfigInvalid(f"expected a source like '/messages/modules/X/outputs/Y', found {words[1]!r:.120}")
    return Route(words[1], _parse_sink(text[into[-1].end() :].strip()), _split_condition("".join(words[2:])))


def parse_routes(section: Any) -> tuple[NamedRoute, ...]:
    """Reads `routes` of the desired properties of `$edgeHub`, in the order of their priorities.

    Raises:
        ConfigInvalid: a route is none; the message names it.
    """
    if not isinstance(section, dict) or len(section) > ROUTES_MAX:
        raise ConfigInvalid(f"expected an object of at most {ROUTES_MAX} routes, found {type(section).__name__}")
    routes = [_parse_named(str(name), value) for name, value in section.items()]
    return tuple(sorted(routes, key=lambda named: named.priority))


def _parse_named(name: str, value: Any) -> NamedRoute:
    fields = {"route": value} if isinstance(value, str) else value
    known = {"route", "priority", "timeToLiveSecs"}
    if not isinstance(fields, dict) or not isinstance(fields.get("route"), str) or not fields.keys() <= known:
        raise ConfigInvalid(f"route {name!r:.80}: expected a text, or 'route' with 'priority' and 'timeToLiveSecs'")
    try:
        route = parse_route(fields["route"])
        priority = _require_integer(fields, "priority", PRIORITY_NONE, most=PRIORITY_MAX)
        time_to_live_s = _require_integer(fields, "timeToLiveSecs", 0, most=TIME_TO_LIVE_MAX_S)
    except ConfigInvalid as error:
        raise ConfigInvalid(f"route {name!r:.80}: {error.message}") from error
    return NamedRoute(name, route, priority, time_to_live_s or None)


def _require_integer(fields: dict[str, Any], name: str, default: int, *, most: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not int or not 0 <= value <= most:
        raise ConfigInvalid(f"expected '{name}' of 0 to {most}, found {value!r:.80}")
    return value


def _split_condition(text: str) -> str | None:
    word, *condition = text.split(None, 1) or [""]
    if not word:
        return None
    if word.upper() != "WHERE" or not condition:
        raise ConfigInvalid(f"expected WHERE and a condition before INTO, found {text!r:.120}")
    return condition[0].strip()


def _parse_sink(text: str) -> tuple[str, str] | None:
    if text.lower() == UPSTREAM:
        return None
    endpoint = _SINK.fullmatch(text)
    if endpoint is None:
        raise ConfigInvalid(f'expected $upstream or BrokeredEndpoint("/modules/Z/inputs/I"), found {text!r:.120}')
    return endpoint[1], endpoint[2]


def _parse_condition(text: str) -> Expression:
    try:
        expression = parse_expression(text)
    except RequestInvalid as error:
        raise ConfigInvalid(f"the condition {text!r:.120}: {error.message}") from error
    for node in get_nodes(expression):
        _check_node(node, text)
    return expression


def _check_node(node: Expression, text: str) -> None:
    """Refuses what can never hold, so that nobody waits for messages that do not come."""
    match node:
        case Path(steps=(str(first), *_)) if first.lower() == "$twin":
            _refuse(text, "a condition on the message", "$twin")
        case Compare(left=Path() as path, right=Literal() as literal):
            _check_literals(path, (literal,), text)
        case Compare(left=Literal() as literal, right=Path() as path):
            _check_literals(path, (literal,), text)
        case In(operand=Path() as path, values=values):
            _check_literals(path, values, text)


def _check_literals(path: Path, values: tuple[Literal, ...], text: str) -> None:
    wrong = [value for value in values if value.kind in ("number", "bool")]
    if wrong and str(path.steps[0]).lower() != "$body":
        _refuse(text, f"a string to compare the property {path} with (or as_number({path}))", str(wrong[0]))


def _refuse(text: str, expected: str, found: str) -> NoReturn:
    raise ConfigInvalid(f"the condition {text!r:.120}: expected {expected:.300}, found {found:.80}")
