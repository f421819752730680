"""The four ways by which a module that runs Microsoft's device SDK comes to a hub: what its script is started with.

Rules:
- By every way but the first the hub is the gateway of another, CLOUD: names in tokens are its, the peer is ours.
- A way takes the module's connection string and its generation id, and yields words and environment variables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from edgeferry.app.hub import RunningHub
from edgeferry.wire.iothub_auth import parse_connection_string

CLOUD = "cloud.example"


@dataclass(frozen=True)
class Start:
    """How a peer is started: its first words, and its environment."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def start_with_connection_string(hub: RunningHub, connection_string: str, generation: str) -> Start:
    """`HostName=<hub>;DeviceId=...;ModuleId=...;SharedAccessKey=...`"""
    del generation
    return Start(("string", connection_string, str(hub.ca_pem_path)))


def start_with_gateway(hub: RunningHub, connection_string: str, generation: str) -> Start:
    """The same with HostName of another and GatewayHostName of the hub."""
    del generation
    return Start(("string", _make_gateway_string(hub, connection_string), str(hub.ca_pem_path)))


def start_with_edge_string(hub: RunningHub, connection_string: str, generation: str) -> Start:
    """EdgeHubConnectionString and EdgeModuleCACertificateFile, as a module is debugged outside of a container."""
    del generation
    known = {"EdgeHubConnectionString": _make_gateway_string(hub, connection_string)}
    return Start(("edge",), known | {"EdgeModuleCACertificateFile": str(hub.ca_pem_path)})


def start_with_workload_api(hub: RunningHub, connection_string: str, generation: str) -> Start:
    """IOTEDGE_* as IoT Edge sets them: no key, the workload API signs."""
    known = parse_connection_string(connection_string)
    environment = {
        "IOTEDGE_IOTHUBHOSTNAME": CLOUD,
        "IOTEDGE_DEVICEID": str(known.device_id),
        "IOTEDGE_MODULEID": str(known.module_id),
        "IOTEDGE_GATEWAYHOSTNAME": hub.settings.host_name,
        "IOTEDGE_MODULEGENERATIONID": generation,
        "IOTEDGE_WORKLOADURI": f"unix://{hub.settings.workload_socket}",
        "IOTEDGE_APIVERSION": "2019-01-30",
        "IOTEDGE_AUTHSCHEME": "sasToken",
    }
    return Start(("edge",), environment)


WAYS: Mapping[str, Callable[[RunningHub, str, str], Start]] = MappingProxyType(
    {
        "connection_string": start_with_connection_string,
        "gateway": start_with_gateway,
        "edge_string": start_with_edge_string,
        "workload": start_with_workload_api,
    }
)


def _make_gateway_string(hub: RunningHub, connection_string: str) -> str:
    ours, gateway = f"HostName={hub.settings.host_name};", f";GatewayHostName={hub.settings.host_name}"
    assert connection_string.startswith(ours)
    return connection_string.replace(ours, f"HostName={CLOUD};") + gateway
