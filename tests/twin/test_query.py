"""Queries over twins and target conditions: read, selected, projected; what we do not do is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.errors import RequestInvalid
from edgeferry.twin.document import Json, Section, TwinDocument
from edgeferry.twin.expression import parse_expression
from edgeferry.twin.query import Column, Query, parse_query, parse_target_condition
from edgeferry.wire.service_api import ConnectionFacts, Identity, IdentityRecord, make_twin_body


def make_document(module_id: str | None = None) -> Json:
    """A twin body as the service REST shows it, made by the code that makes it there."""
    twin = TwinDocument(
        tags={"environment": "test", "location": {"plant": 43, "Region": "US"}, "my-tag": "x"},
        desired=Section({"lamp": {"colour": "red", "level": 3}, "on": True}, 4, {"$lastUpdated": "t"}),
        reported=Section({"lamp": {"level": 2}, "two words": 1, "hops": ["a", {"b": 1}]}, 7),
    )
    record = IdentityRecord(Identity("d1", module_id), "g", "k1", "k2", "e")
    return make_twin_body(record, twin, ConnectionFacts(is_connected=True))


DEVICE, MODULE = make_document(), make_document("loader")


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("SELECT * FROM devices", Query("devices")),
        ("select*from Devices.Modules", Query("devices.modules")),
        ("SELECT\n*\nFROM devices /* all */", Query("devices")),
        (
            "SELECT deviceId FROM devices WHERE a = 1",
            Query("devices", (Column(("deviceId",), "deviceId"),), condition=parse_expression("a = 1")),
        ),
        (
            "SELECT tags.location.plant AS plant, DeviceId, properties.Reported.lamp FROM devices",
            Query(
                "devices",
                (
                    Column(("tags", "location", "plant"), "plant"),
                    Column(("deviceId",), "deviceId"),
                    Column(("properties", "reported", "lamp"), "lamp"),
                ),
            ),
        ),
        ("SELECT COUNT() AS total FROM devices", Query("devices", (Column((), "total"),), is_count=True)),
        ("SELECT count() FROM devices", Query("devices", (Column((), "count"),), is_count=True)),
    ],
)
def test_a_query_is_read(text: str, query: Query) -> None:
    assert parse_query(text) == query


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected SELECT, found the end at character 1"),
        ("DELETE FROM devices", "expected SELECT, found 'DELETE'"),
        ("SELECT FROM devices", "expected a path, found 'FROM' at character 8"),
        ("SELECT *, a FROM devices", "expected ',' or FROM, found ','"),
        ("SELECT * WHERE a = 1", "expected ',' or FROM, found 'WHERE' at character 10"),
        ("SELECT * FROM", "expected the source devices or devices.modules, found the end"),
        ("SELECT * FROM devices.jobs", "devices.modules (jobs are not kept), found 'devices.jobs' at character 15"),
        ("SELECT * FROM twins", "expected the source devices or devices.modules, found 'twins'"),
        ("SELECT * FROM 'devices'", "expected the source devices or devices.modules"),
        ("SELECT * FROM devices d", "expected an operator, WHERE or the end, found 'd' at character 23"),
        ("SELECT * FROM devices WHERE", "found the end at character 28"),
        ("SELECT * FROM devices WHERE a = 1; DROP", "found '; DROP' at character 34"),
        ("SELECT * FROM devices GROUP BY tags.a", "(GROUP is not supported), found 'GROUP' at character 23"),
        ("SELECT * FROM devices WHERE a = 1 ORDER BY a", "(ORDER is not supported), found 'ORDER' at character 35"),
        ("SELECT TOP 5 * FROM devices", "(TOP is not supported), found 'TOP' at character 8"),
        ("SELECT AVG(tags.a) FROM devices", "(AVG is not supported)"),
        ("SELECT tags.a, COUNT() FROM devices", "expected a path, found 'COUNT' at character 16"),
        ("SELECT COUNT(*) FROM devices", "expected ')', found '*' at character 14"),
        ("SELECT a AS b.c FROM devices", "expected a name after AS, found 'b.c'"),
        ("SELECT a AS 'b' FROM devices", "expected a name after AS"),
        ("SELECT a.x, b.x FROM devices", "expected columns of different names"),
        ("SELECT 1 FROM devices", "expected a path, found '1'"),
        ("SELECT * FROM devices WHERE a = '" + "x" * 8192 + "'", "expected at most 8192 characters"),
    ],
)
def test_what_is_no_query_of_ours_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        parse_query(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("condition", "is_selected"),
    [
        ("deviceId = 'd1'", True),
        ("DEVICEID = 'd1'", True),
        ("deviceId = 'D1'", False),
        ("deviceId IN ['d0', 'd1']", True),
        ("status = 'enabled' AND connectionState = 'Connected'", True),
        ("connectionstate != 'Connected'", False),
        ("tags.environment = 'test'", True),
        ("TAGS.environment = 'test'", True),
        ("tags.Environment = 'test'", False),
        ("tags.location.plant >= 43 AND tags.location.Region NIN ['DE']", True),
        ("tags.my-tag = 'x'", True),
        ("properties.desired.lamp.level > properties.reported.lamp.level", True),
        ("Properties.Desired.lamp.level = 3", True),
        ("properties.desired.Lamp.level = 3", False),
        ("properties.desired.$version = 4", True),
        ("properties.desired.$metadata.$lastUpdated = 't'", True),
        ("properties.reported['two words'] = 1", True),
        ("properties.reported.hops[1].b = 1", True),
        ("properties.desired.on", True),
        ("is_defined(properties.reported.on)", False),
        ("NOT is_defined(properties.reported.on)", True),
        ("NOT properties.reported.on = true", False),
        ("reported.lamp.level = 2", False),
        ("desired.lamp.level = 3", False),
        ("capabilities.iotEdge = true", False),
        ("configurations.[[base]].status = 'Applied'", False),
        ("is_defined(moduleId)", False),
        ("x509Thumbprint.primaryThumbprint = null", True),
    ],
)
def test_a_condition_selects_devices(condition: str, is_selected: bool) -> None:
    assert parse_query(f"SELECT * FROM devices WHERE {condition}").selects(DEVICE) is is_selected


def test_what_the_hub_adds_to_a_twin_is_found() -> None:
    document = DEVICE | {
        "capabilities": {"iotEdge": True},
        "configurations": {"base-1": {"status": "Applied"}},
    }
    condition = "Capabilities.IotEdge = true AND configurations.[[base-1]].status = 'Applied'"
    assert parse_query(f"SELECT * FROM devices WHERE {condition}").selects(document)


def test_modules_are_selected_by_their_own_twin() -> None:
    query = parse_query("SELECT deviceId, moduleId FROM devices.modules WHERE moduleid = 'loader'")
    assert query.selects(MODULE)
    assert not query.selects(make_document("other"))
    assert query.project(MODULE) == {"deviceId": "d1", "moduleId": "loader"}


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ("*", DEVICE),
        ("DeviceId, STATUS", {"deviceId": "d1", "status": "enabled"}),
        ("tags.location.plant", {"plant": 43}),
        ("tags.location AS where1", {"where1": {"plant": 43, "Region": "US"}}),
        ("properties.reported['two words']", {"two words": 1}),
        ("properties.reported.hops[1] AS second", {"second": {"b": 1}}),
        ("deviceId, tags.gone, moduleId", {"deviceId": "d1"}),
        ("tags.gone", {}),
    ],
)
def test_a_row_holds_the_columns_that_are_there(columns: str, row: dict[str, Any]) -> None:
    assert parse_query(f"SELECT {columns} FROM devices").project(DEVICE) == row


def test_a_count_answers_with_one_row() -> None:
    assert parse_query("SELECT COUNT() AS total FROM devices").make_count(3) == {"total": 3}


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("*", Query("devices")),
        (" * ", Query("devices")),
        ("tags.environment='test'", Query("devices", condition=parse_expression("tags.environment = 'test'"))),
        ("deviceId IN ['a']", Query("devices", condition=parse_expression("deviceId IN ['a']"))),
        ("from devices.modules", Query("devices.modules")),
        (
            "FROM devices.modules WHERE moduleId='m'",
            Query("devices.modules", condition=parse_expression("moduleId = 'm'")),
        ),
        ("FROM devices WHERE a=1", Query("devices", condition=parse_expression("a = 1"))),
    ],
)
def test_a_target_condition_is_read(text: str, query: Query) -> None:
    assert parse_target_condition(text) == query


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "* AND a = 1",
        "tags.a = 1 WHERE b = 2",
        "FROM devices.jobs",
        "FROM devices WHERE",
        "SELECT * FROM devices",
    ],
)
def test_what_is_no_target_condition_is_refused(text: str) -> None:
    with pytest.raises(RequestInvalid):
        parse_target_condition(text)


words = st.sampled_from(
    [
        "SELECT",
        "*",
        "FROM",
        "devices",
        "devices.modules",
        "WHERE",
        "COUNT",
        "(",
        ")",
        "AS",
        "a.b",
        ",",
        "=",
        "1",
        "'x'",
        "TOP",
    ]
)


@given(st.text(max_size=100) | st.lists(words, max_size=12).map(" ".join))
def test_any_text_is_a_query_or_refused(text: str) -> None:
    for parse in (parse_query, parse_target_condition):
        try:
            query = parse(text)
        except RequestInvalid:
            continue
        assert isinstance(query.selects(DEVICE), bool)
        assert isinstance(query.project(DEVICE), dict)
