"""How a hub runs, and the connection strings that follow from it. Plain values; the hub is put together in hub.py."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgeferry.hub.door_guard import DoorLimits
from edgeferry.hub.routes import DEFAULT_TIME_TO_LIVE_S
from edgeferry.wire.file_signatures import SERVICE_POLICY
from edgeferry.wire.iothub_auth import ConnectionString
from edgeferry.wire.service_api import IdentityRecord

DEFAULT_MQTT_PORT, DEFAULT_HTTPS_PORT = 8883, 8443
DEFAULT_ROUTES = ("FROM /messages/* INTO $upstream",)


@dataclass(frozen=True, slots=True)
class HubSettings:
    """How a hub runs.

    Attributes:
        data: the folder that holds everything it keeps.
        listen: address of all doors; MQTT and HTTPS ports, 0 for any free one.
        host_names: names and addresses for the certificate beside localhost; the first is the hub's name.
        files: folder published below `/files/`; `http_files_port` serves it in the clear too, on loopback only.
        workload_socket, workload_device: the workload API, for one device.
        routes: as in a deployment manifest; time to live of queued messages in seconds.
        mqtt_tls: False for plain TCP in benches.
        database_url: a PostgreSQL database that holds its state instead, for several hubs that serve one fleet.
        deployment: a deployment manifest, whose `$edgeHub` gives routes and time to live instead of the two above.
        doors: how much the MQTT doors let in.
        tls_chain, tls_key: the operator's certificate instead of our own; `tls_authority` is what devices trust then
            (default: the chain).
        metrics_port: serves `/metrics` on loopback.
    """

    data: Path
    listen: str = "127.0.0.1"
    mqtt_port: int = DEFAULT_MQTT_PORT
    https_port: int = DEFAULT_HTTPS_PORT
    host_names: tuple[str, ...] = ()
    files: Path | None = None
    http_files_port: int | None = None
    workload_socket: Path | None = None
    workload_device: str | None = None
    routes: tuple[str, ...] = DEFAULT_ROUTES
    time_to_live_s: float = DEFAULT_TIME_TO_LIVE_S
    mqtt_tls: bool = True
    database_url: str | None = field(default=None, repr=False)
    deployment: Path | None = None
    tls_chain: Path | None = None
    tls_key: Path | None = None
    tls_authority: Path | None = None
    metrics_port: int | None = None
    doors: DoorLimits = field(default_factory=DoorLimits)
    clock: Callable[[], float] = field(default=time.time, repr=False)

    @property
    def host_name(self) -> str:
        """The name that connection strings carry."""
        return self.host_names[0] if self.host_names else "localhost"

    @property
    def certificate_names(self) -> list[str]:
        """Every name and address that clients may use."""
        usual = ("localhost", "127.0.0.1", "::1", socket.gethostname())
        bound = () if self.listen in ("0.0.0.0", "::") else (self.listen,)  # noqa: S104 - compared, not bound
        return list(dict.fromkeys((*self.host_names, *usual, *bound)))


def make_connection_string(host_name: str, record: IdentityRecord) -> str:
    """The connection string of a device or a module."""
    device_id, module_id = record.identity
    return str(ConnectionString(host_name, record.primary_key, device_id, module_id))


def make_service_connection_string(host_name: str, https_port: int, key: str, policy: str = SERVICE_POLICY) -> str:
    """The connection string of a policy; its host carries the port."""
    host = host_name if https_port == 443 else f"{host_name}:{https_port}"
    return str(ConnectionString(host, key, shared_access_key_name=policy))
