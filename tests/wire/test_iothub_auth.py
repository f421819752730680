"""Connection strings, user names and shared access signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import ConfigInvalid, HubRefused
from edgeferry.wire import iothub_auth as auth

KEY = base64.b64encode(b"k" * 32).decode()
OTHER = base64.b64encode(b"o" * 32).decode()
RESOURCE = "localhost/devices/edge-1/modules/detector"
MODULE = f"HostName=localhost;DeviceId=edge-1;ModuleId=detector;SharedAccessKey={KEY}"


def check(token: str, resource: str = RESOURCE, keys: tuple[str, ...] = (KEY,), now: float = 1000.0) -> None:
    auth.verify_sas_token(auth.parse_sas_token(token), resource=resource, keys=keys, now=now)


def test_a_token_made_here_is_accepted_here_with_either_key() -> None:
    check(auth.make_sas_token(RESOURCE, KEY, 1001))
    check(auth.make_sas_token(RESOURCE, KEY, 1001, "device"), keys=(OTHER, KEY))


def test_a_token_over_the_raw_resource_in_another_order_is_accepted() -> None:
    digest = hmac.new(base64.b64decode(KEY), b"localhost:8443\n2000", hashlib.sha256).digest()
    signature = quote(base64.b64encode(digest).decode(), safe="")
    check(f"SharedAccessSignature sig={signature}&skn=service&se=2000&sr=localhost:8443", "localhost:8443")
    check(f"SharedAccessSignature sig={signature}&se=2000&skn=service&sr=localhost%3a8443", "LOCALHOST:8443")


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (auth.make_sas_token(RESOURCE, KEY, 1000), "expired"),
        (auth.make_sas_token(RESOURCE, OTHER, 2000), "signed"),
        (auth.make_sas_token("localhost/devices/edge-1", KEY, 2000), "another resource"),
        (auth.make_sas_token(RESOURCE, KEY, 2000).replace("se=2000", "se=3000"), "signed"),
        (auth.format_sas_token(RESOURCE, "käse", 2000), "signed"),
    ],
)
def test_a_token_that_is_not_right_is_refused(token: str, why: str) -> None:
    with pytest.raises(HubRefused, match=why):
        check(token)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Bearer x",
        "SharedAccessSignature ",
        "SharedAccessSignature sr=a&sig=b",
        "SharedAccessSignature sr=a&sig=b&se=x",
        "SharedAccessSignature sr=a&sig=b&se=-1",
        "SharedAccessSignature sr=a&sr=b&sig=b&se=1",
        "SharedAccessSignature sr=a&sig=b&se=" + "9" * 40,
        "SharedAccessSignature sr=" + "a" * 5000 + "&sig=b&se=1",
    ],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(HubRefused):
        auth.parse_sas_token(text)


@given(st.text(max_size=60), st.integers(1, 10**11))
@settings(deadline=None, max_examples=60)
def test_every_resource_survives_the_token(resource: str, expires_at: int) -> None:
    check(auth.make_sas_token(resource, KEY, expires_at), resource=resource, now=expires_at - 1)


def test_a_connection_string_round_trips_and_hides_its_key() -> None:
    parsed = auth.parse_connection_string(MODULE + ";GatewayHostName=edge-host;Later=1")
    assert (parsed.host_name, parsed.device_id, parsed.module_id) == ("localhost", "edge-1", "detector")
    assert parsed.peer_host == "edge-host" and parsed.resource == RESOURCE
    assert KEY not in repr(parsed)
    assert auth.parse_connection_string(str(parsed)) == parsed


def test_a_service_connection_string_names_its_policy() -> None:
    parsed = auth.parse_connection_string(f"HostName=localhost:8443;SharedAccessKeyName=service;SharedAccessKey={KEY}")
    assert parsed.shared_access_key_name == "service" and parsed.resource == "localhost:8443"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "HostName=h;DeviceId=d",
        f"HostName=h;SharedAccessKey={KEY}",
        f"HostName=h;ModuleId=m;SharedAccessKey={KEY}",
        f"HostName=h;ModuleId=m;SharedAccessKeyName=s;SharedAccessKey={KEY}",
        f"HostName=h;HostName=i;DeviceId=d;SharedAccessKey={KEY}",
        "HostName=h;DeviceId=d;SharedAccessKey=no-base64!",
        "HostName=h;DeviceId=d;x509=true",
        "x" * 5000,
    ],
)
def test_a_bad_connection_string_is_refused_without_showing_the_key(text: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        auth.parse_connection_string(text)
    assert KEY not in str(caught.value) and "no-base64" not in str(caught.value)


def test_a_user_name_round_trips() -> None:
    name = auth.make_user_name("localhost", "edge-1", "detector", client_type="edgeferry/1 (x)")
    parsed = auth.parse_user_name(name)
    assert (parsed.host_name, parsed.device_id, parsed.module_id) == ("localhost", "edge-1", "detector")
    assert parsed.resource == RESOURCE and auth.make_client_id("edge-1", "detector") == "edge-1/detector"
    sdk = auth.parse_user_name("h/d/?api-version=2019-10-01&DeviceClientType=py-azure-iot-device%2F2")
    assert (sdk.module_id, sdk.api_version) == (None, "2019-10-01")


@pytest.mark.parametrize("text", ["", "h", "h/d", "h//m/?api-version=1", "h/d/m/x/?api-version=1", "h/d/?x=1"])
def test_a_bad_user_name_is_refused(text: str) -> None:
    with pytest.raises(HubRefused):
        auth.parse_user_name(text)
