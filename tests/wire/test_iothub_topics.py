"""IoT Hub topics, both ways and for both ends; vectors as the SDKs send them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import ProtocolViolated
from edgeferry.wire import iothub_topics as topics
from edgeferry.wire.iothub_topics import (
    DesiredPatch,
    InputMessage,
    MethodAnswer,
    MethodCall,
    ReportedPatch,
    Telemetry,
    TwinGet,
    TwinResponse,
)

EVENTS = "devices/d/modules/m/messages/events/"
INPUTS = "devices/d/modules/m/inputs/"


def up(topic: str) -> topics.Uplink:
    return topics.parse_uplink(topic, device_id="d", module_id="m")


def down(topic: str) -> topics.Downlink:
    return topics.parse_downlink(topic, device_id="d", module_id="m")


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("$iothub/twin/GET/?$rid=1", TwinGet("1")),
        ("$iothub/twin/PATCH/properties/reported/?$rid=a-b", ReportedPatch("a-b")),
        ("$iothub/methods/res/200/?$rid=7", MethodAnswer("7", 200)),
        ("$iothub/methods/res/-1/?$rid=7", MethodAnswer("7", -1)),
        (EVENTS, Telemetry(None, {})),
        (EVENTS[:-1], Telemetry(None, {})),
        (EVENTS + "%24.on=DLModelOutput", Telemetry("DLModelOutput", {"$.on": "DLModelOutput"})),
        (EVENTS + "$.on=out&k&e=&p=a+b%20c/", Telemetry("out", {"$.on": "out", "k": None, "e": "", "p": "a+b c"})),
    ],
)
def test_an_uplink_topic_is_read(topic: str, message: topics.Uplink) -> None:
    assert up(topic) == message
    assert up(topics.make_uplink_topic(message, device_id="d", module_id="m")) == message


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("$iothub/twin/res/200/?$rid=1", TwinResponse("1", 200)),
        ("$iothub/twin/res/204/?$rid=1&$version=5", TwinResponse("1", 204, 5)),
        ("$iothub/twin/PATCH/properties/desired/?$version=9", DesiredPatch(9)),
        ("$iothub/methods/POST/reload%20now/?$rid=3", MethodCall("reload now", "3")),
        (INPUTS + "model/", InputMessage("model", {})),
        (INPUTS + "model", InputMessage("model", {})),
        (INPUTS + "a%2Fb/%24.cdid=d&x=1", InputMessage("a/b", {"$.cdid": "d", "x": "1"})),
    ],
)
def test_a_downlink_topic_is_read(topic: str, message: topics.Downlink) -> None:
    assert down(topic) == message
    assert down(topics.make_downlink_topic(message, device_id="d", module_id="m")) == message


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "x/y",
        "$iothub/twin/GET/",
        "$iothub/twin/GET/?$rid=",
        "$iothub/twin/GET/$rid=1",
        "$iothub/twin/GET/?$rid=" + "r" * 300,
        "$iothub/methods/res/abc/?$rid=1",
        "$iothub/methods/res/٣/?$rid=1",
        "$iothub/methods/POST/x/?$rid=1",
        "devices/other/modules/m/messages/events/",
        "devices/d/messages/events/",
        EVENTS + "a=1&a=2",
        EVENTS + "a=1/b=2",
        EVENTS + "=x",
        INPUTS + "model/",
    ],
)
def test_a_device_that_publishes_elsewhere_is_refused(topic: str) -> None:
    with pytest.raises(ProtocolViolated):
        up(topic)


def test_a_device_identity_has_its_own_events_topic() -> None:
    topic = topics.make_uplink_topic(Telemetry(None, {"a": "b"}), device_id="d", module_id=None)
    assert topic == "devices/d/messages/events/a=b"
    assert topics.parse_uplink(topic, device_id="d", module_id=None) == Telemetry(None, {"a": "b"})


@pytest.mark.parametrize(
    ("topic_filter", "known"),
    [
        (topics.TWIN_RESPONSE_FILTER, True),
        (topics.DESIRED_PATCH_FILTER, True),
        (topics.METHOD_FILTER, True),
        (topics.get_input_filter("d", "m"), True),
        (INPUTS + "model/#", True),
        ("devices/d/modules/other/inputs/#", False),
        ("devices/e/modules/m/inputs/#", False),
        ("#", False),
        ("$iothub/#", False),
        ("+/+", False),
    ],
)
def test_an_identity_subscribes_only_to_its_own(topic_filter: str, known: bool) -> None:
    assert topics.is_known_filter(topic_filter, device_id="d", module_id="m") is known


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.none() | st.text(max_size=8), max_size=5))
@settings(deadline=None, max_examples=100)
def test_every_property_bag_survives_the_topic(bag: dict[str, str | None]) -> None:
    assert topics.decode_bag(topics.encode_bag(bag)) == bag
    assert topics.decode_bag(topics.encode_bag(bag) + "/") == bag


@given(st.text(max_size=80))
@settings(deadline=None, max_examples=200)
def test_any_text_is_read_or_refused(text: str) -> None:
    for prefix in ("", EVENTS, "$iothub/twin/GET/", "$iothub/methods/res/"):
        try:
            up(prefix + text)
        except ProtocolViolated:
            continue
