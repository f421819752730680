"""Routes of a deployment manifest: grammar, what a route takes, and which messages its condition accepts."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.errors import ConfigInvalid
from edgeferry.twin.routes import (
    BODY_MAX_BYTES,
    PRIORITY_NONE,
    ROUTES_MAX,
    NamedRoute,
    Route,
    RoutedMessage,
    parse_route,
    parse_routes,
)

LOADER = 'FROM /messages/modules/loader/outputs/DLModelOutput INTO BrokeredEndpoint("/modules/infer/inputs/model")'


@pytest.mark.parametrize(
    ("text", "route"),
    [
        (LOADER, Route("/messages/modules/loader/outputs/DLModelOutput", ("infer", "model"))),
        ("from /* into $UPSTREAM", Route("/*", None)),
        (
            "FROM /messages/* WHERE $body.x > 1 INTO $upstream",
            Route("/messages/*", None, "$body.x > 1"),
        ),
        ("FROM /* WHERE a = ' INTO ' INTO $upstream", Route("/*", None, "a = ' INTO '")),
        ("FROM /*\nwhere\n  a = 'x'\n  OR b = 'y'\nINTO\n$upstream\n", Route("/*", None, "a = 'x'\n  OR b = 'y'")),
        (
            "  FROM /messages/modules/m/* INTO BrokeredEndpoint( '/modules/z/inputs/i' ) ",
            Route("/messages/modules/m/*", ("z", "i")),
        ),
    ],
)
def test_a_route_is_read_and_written_back(text: str, route: Route) -> None:
    assert parse_route(text) == route
    assert parse_route(str(route)) == route


@pytest.mark.parametrize(
    "text",
    [
        "",
        "FROM /messages/* INTO",
        "FROM messages/* INTO $upstream",
        "FROM /messages/modules/a/inputs/b INTO $upstream",
        "FROM /messages/modules/a/outputs/b/c INTO $upstream",
        "FROM /messages/* INTO BrokeredEndpoint(/modules/a/inputs/b)",
        'FROM /messages/* INTO BrokeredEndpoint("/modules/a/outputs/b")',
        "FROM /messages/* INTO $upstream INTO $upstream",
        "FROM /messages/* WHERE a = 'x' INTO $upstream INTO $upstream",
        "FROM /messages/* WHERE INTO $upstream",
        "FROM /messages/* a = 'x' INTO $upstream",
        "FROM /messages/* WHERE a = INTO $upstream",
        "INTO $upstream FROM /messages/*",
        "FROM /messages/modules/" + "a" * 5000 + "/* INTO $upstream",
    ],
)
def test_what_is_no_route_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        parse_route(text)


@pytest.mark.parametrize(
    ("source", "taken"),
    [
        ("/*", {"device", "plain", "x", "y", "other"}),
        ("/messages/*", {"device", "plain", "x", "y", "other"}),
        ("/messages/modules/*", {"plain", "x", "y", "other"}),
        ("/messages/modules/m/*", {"plain", "x", "y"}),
        ("/messages/modules/m/outputs/*", {"x", "y"}),
        ("/messages/modules/m/outputs/x", {"x"}),
    ],
)
def test_a_source_takes_just_its_messages(source: str, taken: set[str]) -> None:
    messages = {"device": (None, None), "plain": ("m", None), "x": ("m", "x"), "y": ("m", "y"), "other": ("m2", "x")}
    route = parse_route(f"FROM {source} INTO $upstream")
    assert {name for name, (module, output) in messages.items() if route.takes(module, output)} == taken


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("a = ", "the condition 'a =': expected a path"),
        ("a == 'x'", "found '=' at character 4"),
        ("severity <= 2", "expected a string to compare the property severity with (or as_number(severity)), found 2"),
        ("2 >= severity", "or as_number(severity)"),
        ("$messageId = 7", "or as_number($messageId)"),
        ("alert = true", "found true"),
        ("level IN ['1', 2]", "found 2"),
        ("a = 'x' AND NOT (b = 1)", "or as_number(b)"),
        ("$twin.tags.a = 'x'", "expected a condition on the message, found $twin"),
    ],
)
def test_a_condition_that_can_never_hold_is_refused_with_its_route(condition: str, said: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_route(f"FROM /* WHERE {condition} INTO $upstream")
    assert said in str(caught.value)


@pytest.mark.parametrize("blank", [" ", "\n", "\t"])
@pytest.mark.parametrize("text", ["FROM /* WHERE{}", "FROM{}", "{}INTO", "FROM /* WHERE a{} INTO{}", "FROM /* INTO{}x"])
def test_blanks_take_no_time(text: str, blank: str) -> None:
    started = time.process_time()
    with pytest.raises(ConfigInvalid):
        parse_route(text.replace("{}", blank * (4000 // text.count("{}"))))
    assert time.process_time() - started < 0.5


BODY = {"Weather": {"Temperature": 50, "IsEnabled": True, "History": [{"Month": "Feb"}], "State": "WA"}, "a b": None}


def make_message(payload: Any = BODY, **changes: Any) -> RoutedMessage:
    properties = {
        "$.ct": "application/json",
        "$.ce": "utf-8",
        "$.mid": "m-1",
        "$.cid": "c-1",
        "$.uid": "u",
        "$.on": "out",
        "$.cdid": "forged",
        "path": "hot",
        "severity": "10",
        "Mixed": "case",
        "dotted.name": "d",
        "prop name": "p",
        "$own": "o",
        "none": None,
        "empty": "",
    }
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    properties |= changes.pop("properties", {})
    fields = {"module_id": "m", "output": "out", "device_id": "d"} | changes
    return RoutedMessage(properties=properties, payload=data, **fields)


def accepts(condition: str, message: RoutedMessage) -> bool:
    return parse_route(f"FROM /* WHERE {condition} INTO $upstream").accepts(message)


@pytest.mark.parametrize(
    ("condition", "is_accepted"),
    [
        ("path = 'hot'", True),
        ("PATH = 'hot'", True),
        ("path = 'Hot'", False),
        ("mixed = 'case'", True),
        ("gone = 'x'", False),
        ("NOT gone = 'x'", False),
        ("NOT is_defined(gone)", True),
        ("severity = '10'", True),
        ("severity > '9'", False),
        ("as_number(severity) > 9", True),
        ("as_number(path) > 9", False),
        ("severity IN ['9', '10']", True),
        ("dotted.name = 'd'", True),
        ("{dotted.name} = 'd'", True),
        ("{prop name} = 'p'", True),
        ("$own = 'o'", True),
        ("none = null", True),
        ("empty = ''", True),
        ("path[0] = 'h'", False),
        ("$connectionDeviceId = 'd'", True),
        ("$connectionModuleId = 'm'", True),
        ("$CONNECTIONMODULEID = 'm'", True),
        ("$outputName = 'out'", True),
        ("$contentType = 'application/json'", True),
        ("$content-type = 'application/json'", True),
        ("$contentEncoding = 'utf-8'", True),
        ("{$messageId} = 'm-1'", True),
        ("$correlationId = 'c-1' AND $userId = 'u'", True),
        ("messageId = 'm-1'", False),
        ("is_defined($enqueuedTime)", False),
        ("{$.mid} = 'm-1'", False),
        ("$body.Weather.Temperature = 50", True),
        ("$BODY.Weather.Temperature >= 50 AND path = 'hot'", True),
        ("$body.weather.Temperature = 50", False),
        ("$body.Weather.Temperature = '50'", False),
        ("$body.Weather.IsEnabled", True),
        ("$body.Weather.IsEnabled = true", True),
        ("$body.Weather.History[0].Month = 'Feb'", True),
        ("$body.Weather.History[1].Month = 'Feb'", False),
        ("length($body.Weather.State) = 2", True),
        ("$body['a b'] = null", True),
        ("is_defined($body)", False),
        ("is_defined($body[0])", False),
        ("STARTSWITH(path, 'h') OR $body.gone", True),
    ],
)
def test_a_condition_judges_properties_and_body(condition: str, is_accepted: bool) -> None:
    assert accepts(condition, make_message()) is is_accepted


def test_the_device_itself_has_no_module_id() -> None:
    message = make_message(module_id=None, output=None)
    assert not accepts("is_defined($connectionModuleId) OR is_defined($outputName)", message)


@pytest.mark.parametrize(
    ("payload", "properties", "is_seen"),
    [
        (b'{"x": 1}', {}, True),
        (b'{"x": 1}', {"$.ct": "Application/JSON", "$.ce": "UTF-8"}, True),
        (b'\xef\xbb\xbf{"x": 1}', {}, True),
        ('{"x": 1}'.encode("utf-16"), {"$.ce": "utf-16"}, True),
        ('{"x": 1}'.encode("utf-32"), {"$.ce": "utf-32"}, True),
        (b'{"x": 1}', {"$.ce": "utf-16"}, False),
        (b'{"x": 1}', {"$.ce": "latin-1"}, False),
        (b'{"x": 1}', {"$.ct": "text/plain"}, False),
        (b'{"x": 1}', {"$.ct": None}, False),
        (b'{"x": 1}', {"$.ce": None}, False),
        (b"", {}, False),
        (b"x", {}, False),
        (b"\xff\xfe", {}, False),
        (b'[{"x": 1}]', {}, False),
        (b'{"x": 1' + b" " * (BODY_MAX_BYTES - 8) + b"}", {}, True),
        (b'{"x": 1' + b" " * (BODY_MAX_BYTES - 7) + b"}", {}, False),
        (b'{"x":' * 40_000, {}, False),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, False),
    ],
)
def test_a_body_is_looked_into_when_it_is_json_and_says_so(
    payload: bytes, properties: dict[str, str | None], is_seen: bool
) -> None:
    message = make_message(payload, properties=properties)
    assert accepts("is_defined($body.x)", message) is is_seen
    assert accepts("path = 'hot'", message)


def test_a_body_is_read_once_for_all_routes() -> None:
    message = make_message()
    assert message.body is message.body
    assert message.body == BODY


def test_a_route_accepts_from_its_source_only() -> None:
    route = parse_route("FROM /messages/modules/m/outputs/out WHERE path = 'hot' INTO $upstream")
    assert route.accepts(make_message())
    assert not route.accepts(make_message(output="other"))
    assert not route.accepts(make_message(properties={"path": "cold"}))
    assert parse_route("FROM /messages/modules/m/* INTO $upstream").accepts(make_message(b"\xff"))


def test_the_routes_of_a_manifest_come_in_the_order_of_their_priorities() -> None:
    up = "FROM /* INTO $upstream"
    section = {
        "plain": up,
        "late": {"route": up, "priority": 9, "timeToLiveSecs": 60},
        "first": {"route": "FROM /* WHERE a = 'x' INTO $upstream", "priority": 0},
        "inherits": {"route": up, "timeToLiveSecs": 0},
    }
    route = parse_route(up)
    assert parse_routes(section) == (
        NamedRoute("first", Route("/*", None, "a = 'x'"), 0),
        NamedRoute("late", route, 9, 60),
        NamedRoute("plain", route, PRIORITY_NONE, None),
        NamedRoute("inherits", route, PRIORITY_NONE, None),
    )
    assert parse_routes({}) == ()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "route 'r': expected a text"),
        (7, "route 'r': expected a text"),
        ({}, "route 'r': expected a text"),
        ({"route": 7}, "route 'r': expected a text"),
        ({"route": "FROM /* INTO $upstream", "ttl": 1}, "route 'r': expected a text"),
        ("FROM /* INTO nowhere", "route 'r': expected $upstream"),
        ("FROM /* WHERE a = INTO $upstream", "route 'r': the condition 'a ='"),
        ({"route": "FROM /* INTO $upstream", "priority": 10}, "route 'r': expected 'priority' of 0 to 9, found 10"),
        ({"route": "FROM /* INTO $upstream", "priority": True}, "found True"),
        ({"route": "FROM /* INTO $upstream", "priority": "1"}, "found '1'"),
        ({"route": "FROM /* INTO $upstream", "timeToLiveSecs": -1}, "expected 'timeToLiveSecs' of 0 to"),
        ({"route": "FROM /* INTO $upstream", "timeToLiveSecs": 1.5}, "found 1.5"),
    ],
)
def test_a_bad_route_of_a_manifest_is_refused_by_its_name(value: Any, said: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_routes({"good": "FROM /* INTO $upstream", "r": value})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "section", [None, [], "x", dict.fromkeys(map(str, range(ROUTES_MAX + 1)), "FROM /* INTO $upstream")]
)
def test_what_is_no_section_of_routes_is_refused(section: Any) -> None:
    with pytest.raises(ConfigInvalid, match="expected an object"):
        parse_routes(section)


words = st.sampled_from(["FROM", "/*", "WHERE", "INTO", "$upstream", "a", "=", "'x'", "AND", "$body.x", "1", "(", ")"])


@given(st.text(max_size=100) | st.lists(words, max_size=14).map(lambda each: "FROM /* " + " ".join(each)))
def test_any_text_is_a_route_that_judges_or_refused(text: str) -> None:
    try:
        route = parse_route(text)
    except ConfigInvalid:
        return
    assert parse_route(str(route)) == route
    assert isinstance(route.accepts(make_message()), bool)


@given(st.binary(max_size=200), st.sampled_from(["utf-8", "utf-16", "utf-32"]))
def test_no_body_makes_judging_fail(payload: bytes, encoding: str) -> None:
    message = make_message(payload, properties={"$.ce": encoding})
    assert accepts("is_defined($body.x) OR path = 'hot'", message)
