"""Device settings: precedence, refusal of what is unknown, and silence about secrets."""

from __future__ import annotations

import pytest

from edgeferry.config import read_device_config
from edgeferry.errors import ConfigInvalid

EDGE = {
    "IOTEDGE_IOTHUBHOSTNAME": "hub",
    "IOTEDGE_DEVICEID": "d",
    "IOTEDGE_MODULEID": "m",
    "IOTEDGE_MODULEGENERATIONID": "g",
    "IOTEDGE_WORKLOADURI": "unix:///run/w.sock",
}


def test_defaults_stand_where_nothing_is_said() -> None:
    config = read_device_config(None, {})
    assert (config.role, config.host, config.port, config.accept_classic) == ("both", "127.0.0.1", 8080, None)


def test_the_command_line_wins_over_environment_and_file() -> None:
    file = b'port = 1\nconnection_string = "file"\nstorage = "/a"'
    config = read_device_config(file, {"EdgeHubConnectionString": "environment"}, port=3, storage=None)
    assert (config.port, config.connection_string, config.storage) == (3, "environment", "/a")


def test_a_module_started_by_iot_edge_finds_its_workload() -> None:
    config = read_device_config(None, {**EDGE, "IOTEDGE_GATEWAYHOSTNAME": "gw"})
    assert config.workload is not None
    assert (config.workload.module, config.workload.gateway, config.workload.api_version) == ("m", "gw", "2019-01-30")


def test_a_missing_iot_edge_variable_is_named() -> None:
    environment = {key: value for key, value in EDGE.items() if key != "IOTEDGE_MODULEID"}
    with pytest.raises(ConfigInvalid, match="IOTEDGE_MODULEID"):
        read_device_config(None, environment)


@pytest.mark.parametrize(
    ("file", "names"),
    [
        (b"por = 1", "por"),
        (b'port = "1"', "port"),
        (b"port = 70000", "port"),
        (b"port = ", "TOML"),
        (b"\xff", "TOML"),
        (b'role = "captain"', "role"),
        (b"rate_bps = -1", "rate_bps"),
    ],
)
def test_a_wrong_setting_is_named(file: bytes, names: str) -> None:
    with pytest.raises(ConfigInvalid, match=names):
        read_device_config(file, {})


def test_a_secret_never_stands_in_an_error() -> None:
    with pytest.raises(ConfigInvalid) as caught:
        read_device_config(b"token = 7", {"EdgeHubConnectionString": "SharedAccessKey=topsecret"})
    assert "topsecret" not in str(caught.value)
