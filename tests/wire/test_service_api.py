"""Shapes of the service REST: both ends read what the other writes."""

from __future__ import annotations

import msgspec
import pytest

from edgeferry.errors import NameInvalid, RequestInvalid
from edgeferry.twin.document import make_twin, parse_object
from edgeferry.wire import service_api as api
from edgeferry.wire.service_api import Identity, IdentityRecord, MethodRequest

MODULE = Identity("d:1", "m")


@pytest.mark.parametrize("name", ["edge-1", "$edgeAgent", "a.b:c_d", "x" * 128])
def test_an_id_is_taken(name: str) -> None:
    assert api.require_identity(name, name) == Identity(name, name)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a+b", "a#", "a%2F", "ä", "x" * 129, "a\n"])
def test_an_id_that_could_mean_something_else_is_refused(name: str) -> None:
    with pytest.raises(NameInvalid):
        api.require_identity("d", name)


def test_paths_are_url_encoded() -> None:
    assert api.get_twin_path(MODULE) == "/twins/d%3A1/modules/m"
    assert api.get_identity_path(Identity("$d")) == "/devices/%24d"
    assert api.add_api_version(api.get_method_path(MODULE)) == "/twins/d%3A1/modules/m/methods?api-version=2021-04-12"


@pytest.mark.parametrize(
    ("header", "etag"),
    [(None, None), ("*", None), ('"*"', None), ('"AAA="', "AAA="), ("AAA=", "AAA="), ('W/"x"', "x"), ('""', "")],
)
def test_if_match_is_read(header: str | None, etag: str | None) -> None:
    assert api.parse_if_match(header) == etag
    assert api.parse_if_match(api.format_etag("AAA=")) == "AAA="


def test_a_method_request_survives_its_body() -> None:
    request = MethodRequest("reload", {"a": [1]}, 20.0, 5.0)
    assert api.parse_method_request(parse_object(api.make_method_body(request))) == request


@pytest.mark.parametrize(
    "body",
    [{}, {"methodName": 5}, {"methodName": "x" * 101}, {"methodName": "m", "responseTimeoutInSeconds": "9"},
     {"methodName": "m", "connectTimeoutInSeconds": -1}, {"methodName": "m", "responseTimeoutInSeconds": True}],
)  # fmt: skip
def test_a_bad_method_request_is_refused(body: dict) -> None:
    with pytest.raises(RequestInvalid):
        api.parse_method_request(body)


def test_an_error_tells_its_code() -> None:
    body = api.make_error_body("DeviceNotFound", "d is not registered")
    assert api.find_error_code(body) == "DeviceNotFound"
    assert [api.find_error_code(rubbish) for rubbish in (b"", b"<html>", b"\xff" * 20_000)] == [None] * 3


def test_a_twin_body_can_be_written_back() -> None:
    record = IdentityRecord(MODULE, "1", "a2V5", "a2V5", "tag")
    body = api.make_twin_body(record, make_twin(0.0), api.ConnectionFacts(True, 1.0, None))
    read = parse_object(msgspec.json.encode(body))
    assert (read["moduleId"], read["connectionState"], read["etag"]) == ("m", "Connected", make_twin(0.0).etag)
    tags, desired = api.parse_twin_write(read)
    assert tags == {} and desired is not None and desired["$version"] == 1
    assert "a2V5" not in str(body)


@pytest.mark.parametrize("body", [{"tags": 5}, {"properties": 5}, {"properties": {"desired": []}}])
def test_a_twin_write_of_other_shapes_is_refused(body: dict) -> None:
    with pytest.raises(RequestInvalid):
        api.parse_twin_write(body)
