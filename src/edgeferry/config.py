"""Settings of a device, from a TOML file's bytes and the environment's variables. Read by `app/` and `cli/` only.

What this file leaves to others: reading the file, reading `os.environ`, acting on any of it.

Rules:
- Order of precedence: command line, environment, file, default. Unknown keys are refused by name.
- A connection string is a secret: it never enters an error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from edgeferry.errors import ConfigInvalid

Role = Literal["both", "loader", "inferencer"]
CONNECTION_VARIABLES = ("EDGEFERRY_CONNECTION_STRING", "EdgeHubConnectionString", "IOTHUB_DEVICE_CONNECTION_STRING")


class WorkloadConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What IoT Edge tells a module through IOTEDGE_* variables."""

    hub: str
    device: str
    module: str
    generation: str
    workload_url: str
    gateway: str = ""
    api_version: str = "2019-01-30"


class DeviceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that `device run` can be told. Times in seconds, sizes in bytes, rates in bits per second (0: no limit)."""

    storage: str = "/iotedge/storage"
    role: Role = "both"
    connection_string: str = ""
    workload: WorkloadConfig | None = None
    ca_file: str = ""
    mqtt_port: int = 8883
    root: str = ""
    """The pinned root: path of a root.json, or `sha256:<hex>`. Empty: nothing pinned, only classic updates."""
    accept_classic: bool | None = None
    """None: only while no root is pinned."""
    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""
    allow_networks: tuple[str, ...] = ()
    default_model: str = ""
    queue: int | None = None
    """Requests that may wait for a core; None: 32, and in overload none. Any more are told to come again."""
    picture_hosts: tuple[str, ...] = ()
    """`host` or `host:port` from where pictures are fetched that a request names by URL; empty: none are."""
    rate_bps: int = 0
    link: dict[str, Any] = {}
    """What the operator says about the link: the keys of `edgeferry.link` in the twin, which goes before it."""
    shadow: dict[str, Any] | None = None
    """Whether and how new versions are tried in the shadow first: the keys of `edgeferry.policy.shadow` in the twin."""
    bundle_max_bytes: int = 2 << 30
    quota_bytes: int = 0
    low_water_bytes: int | None = None
    """None: a tenth of the disk, at most 64 MiB."""
    scrub_every_s: float = 86_400.0
    probation_requests: int = 20
    probation_s: float = 60.0
    report_every_s: float = 60.0


def read_device_config(data: bytes | None, environment: Mapping[str, str], **overrides: object) -> DeviceConfig:
    """Device settings from file bytes (None: no file), environment and command line (`overrides`; None: not said).

    Raises:
        ConfigInvalid: broken TOML, an unknown key or a wrong type.
    """
    merged: dict[str, object] = {**_read_toml(data), **_read_environment(environment)}
    merged.update({key: value for key, value in overrides.items() if value is not None})
    try:
        config = msgspec.convert(merged, DeviceConfig, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(f"device settings: {error}") from error
    return _check(config)


def _read_toml(data: bytes | None) -> dict[str, object]:
    if data is None:
        return {}
    try:
        return dict(tomllib.loads(data.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"expected a TOML settings file: {error}") from error


def _read_environment(environment: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    connection = next((environment[name] for name in CONNECTION_VARIABLES if environment.get(name)), None)
    if connection:
        found["connection_string"] = connection
    elif environment.get("IOTEDGE_WORKLOADURI"):
        found["workload"] = _read_workload(environment)
    if environment.get("EdgeModuleCACertificateFile"):
        found["ca_file"] = environment["EdgeModuleCACertificateFile"]
    if environment.get("EDGEFERRY_TOKEN"):
        found["token"] = environment["EDGEFERRY_TOKEN"]
    return found


def _read_workload(environment: Mapping[str, str]) -> dict[str, object]:
    names = {
        "hub": "IOTEDGE_IOTHUBHOSTNAME",
        "device": "IOTEDGE_DEVICEID",
        "module": "IOTEDGE_MODULEID",
        "generation": "IOTEDGE_MODULEGENERATIONID",
        "workload_url": "IOTEDGE_WORKLOADURI",
    }
    missing = [variable for variable in names.values() if not environment.get(variable)]
    if missing:
        raise ConfigInvalid(
            f"expected the variables that IoT Edge sets for a module, found none named {', '.join(missing)}"
        )
    return {
        **{field: environment[variable] for field, variable in names.items()},
        "gateway": environment.get("IOTEDGE_GATEWAYHOSTNAME", ""),
        "api_version": environment.get("IOTEDGE_APIVERSION", "2019-01-30"),
    }


def _check(config: DeviceConfig) -> DeviceConfig:
    if config.queue is not None and config.queue < 0:
        raise ConfigInvalid(f"expected a queue of 0 or more, found {config.queue}")
    if not (0 <= config.port <= 65535 and 0 < config.mqtt_port <= 65535):
        raise ConfigInvalid(f"expected ports in 0..65535, found port {config.port} and mqtt_port {config.mqtt_port}")
    if config.rate_bps < 0 or config.bundle_max_bytes <= 0:
        raise ConfigInvalid("expected rate_bps of 0 or more and bundle_max_bytes above 0")
    if config.quota_bytes < 0 or (config.low_water_bytes or 0) < 0 or config.scrub_every_s < 0:
        raise ConfigInvalid("expected quota_bytes, low_water_bytes and scrub_every_s of 0 or more")
    return config
