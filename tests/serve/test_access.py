"""Who may call: tokens, networks, and what may be opened off loopback at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from edgeferry.app.serving import open_api
from edgeferry.errors import ConfigInvalid
from edgeferry.serve.access import Access, is_loopback, make_access
from edgeferry.serve.api import ApiSettings, make_app
from edgeferry.serve.slots import Slots

if TYPE_CHECKING:
    from tests.serve.conftest import ApiClient, MakeVersion, OpenClient

TOKEN = "a-token-of-this-device-é"
GUARDED = ApiSettings(access=make_access(TOKEN))
ROUTES = ["/score", "/v1/models/detector/predict", "/metrics", "/openapi.json", "/nothing", "//healthz", "/healthz/"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"api_key": TOKEN[:-1]},
        {"Ocp-Apim-Subscription-Key": ""},
    ],
    ids=["none", "wrong", "basic", "empty", "longer", "shorter", "blank"],
)
async def test_without_the_token_every_route_is_401(
    slots: Slots, open_client: OpenClient, path: str, headers: dict[str, str]
) -> None:
    async with open_client(slots, GUARDED) as client:
        for answered in (await client.get(path, headers=headers), await client.post(path, headers=headers)):
            assert (answered.status, answered.code) == (401, "unauthorised")
            assert answered.headers["WWW-Authenticate"] == "Bearer"
            assert TOKEN.encode() not in answered.body


async def _ask_in_every_way(client: ApiClient, token: str) -> list[int]:
    headers = [{"Authorization": f"Bearer {token}"}, {"authorization": f"bearer  {token}"}]
    headers += [{"Ocp-Apim-Subscription-Key": token}, {"api_key": token}]
    answers = [await client.post("/score", headers=header) for header in headers]
    answers.append(await client.post("/score", params={"api_key": token}))
    return [answered.status for answered in answers]


async def test_the_token_opens_in_every_form_that_clients_use(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    async with open_client(slots, ApiSettings(access=make_access("plain-token"))) as client:
        assert await _ask_in_every_way(client, "plain-token") == [200] * 5
        assert await _ask_in_every_way(client, "other-token") == [401] * 5


async def test_health_is_open_and_says_nothing_else(slots: Slots, open_client: OpenClient) -> None:
    async with open_client(slots, GUARDED) as client:
        assert ((await client.get("/healthz")).status, (await client.get("/healthz")).body) == (200, b"ok\n")
        assert ((await client.get("/readyz")).status, (await client.get("/readyz")).body) == (503, b"not ready\n")
        assert (await client.get("/readyz")).headers["Retry-After"] == "5"


async def test_a_large_body_without_the_token_is_refused_unread(slots: Slots, open_client: OpenClient) -> None:
    async with open_client(slots, GUARDED) as client:
        answered = await client.post("/score", bytes(3_000_000))
        assert (answered.status, answered.code) == (401, "unauthorised")


async def test_a_caller_from_another_network_is_forbidden(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    async with open_client(slots, ApiSettings(access=make_access(allow_networks=["10.0.0.0/8"]))) as client:
        answered = await client.post("/score", headers={"X-Forwarded-For": "10.1.2.3", "Forwarded": "for=10.1.2.3"})
        assert (answered.status, answered.code) == (403, "forbidden")
        assert (await client.get("/healthz")).status == 200
    async with open_client(slots, ApiSettings(access=make_access(allow_networks=["::1/128", "127.0.0.0/8"]))) as client:
        assert (await client.post("/score")).status == 200


async def test_with_token_and_networks_both_must_hold(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    async with open_client(slots, ApiSettings(access=make_access("t", ["127.0.0.0/8"]))) as client:
        assert (await client.post("/score")).status == 401
        assert (await client.post("/score?api_key=t")).status == 200
    async with open_client(slots, ApiSettings(access=make_access("t", ["10.0.0.0/8"]))) as client:
        assert (await client.post("/score?api_key=t")).status == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "", "example.org", "localhost.example.org"])
async def test_off_loopback_nothing_starts_unguarded(slots: Slots, host: str) -> None:
    with pytest.raises(ConfigInvalid, match="EDGEFERRY_TOKEN or --allow-networks"):
        async with open_api(make_app(slots), host, 0):
            pass


@pytest.mark.parametrize(
    "access", [make_access("token"), make_access("", ["192.168.0.0/16"]), make_access(" t ", [" 10.0.0.0/8 ", ""])]
)
def test_a_token_or_networks_guard_any_address(access: Access) -> None:
    access.require_guarded("0.0.0.0")


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_token_guards_nothing(blank: str) -> None:
    with pytest.raises(ConfigInvalid):
        make_access(blank, ["", " "]).require_guarded("0.0.0.0")


@pytest.mark.parametrize("network", ["10.0.0.1/8", "everyone", "10.0.0.0/33", "10.0.0.0-10.0.0.9"])
def test_a_network_that_is_none_is_refused(network: str) -> None:
    with pytest.raises(ConfigInvalid, match="allow_networks"):
        make_access("", [network])


async def test_networks_are_logged_at_each_start_and_the_token_never(slots: Slots) -> None:
    access = make_access("very-secret", ["127.0.0.0/8"])
    with capture_logs() as logs:
        async with open_api(make_app(slots, None, ApiSettings(access=access)), "127.0.0.1", 0):
            pass
    assert {"event": "api_open_to_networks", "networks": ["127.0.0.0/8"], "log_level": "warning"} in logs
    assert "very-secret" not in str(logs)
    assert "very-secret" not in repr(access)


def test_ipv4_callers_on_an_ipv6_socket_are_matched_by_their_ipv4_address() -> None:
    access = make_access("", ["10.0.0.0/8"])
    assert access._is_allowed("::ffff:10.1.1.1")
    assert not access._is_allowed("::ffff:11.1.1.1")
    assert not access._is_allowed("")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


async def test_a_taken_port_is_a_setting_to_correct(slots: Slots) -> None:
    async with open_api(make_app(slots), "127.0.0.1", 0) as address:
        with pytest.raises(ConfigInvalid, match="cannot listen"):
            async with open_api(make_app(slots), "127.0.0.1", address.port):
                pass
    with pytest.raises(ConfigInvalid, match="cannot listen"):
        async with open_api(make_app(slots), "127.0.0.1", 70_000):
            pass
