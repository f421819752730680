"""Routes of a deployment manifest: grammar and what a route takes."""

from __future__ import annotations

import pytest

from edgeferry.errors import ConfigInvalid
from edgeferry.twin.routes import Route, parse_route

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
