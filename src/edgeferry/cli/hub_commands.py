"""`edgeferry hub ...`: run the embedded hub, look after its devices, read its messages.

What this file leaves to others: the hub itself (app/hub.py), what the commands do to its folder (app/hub_admin.py).

Rules:
- Every command takes `--json`. Keys are printed by `device connection-string` only.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from edgeferry.app import hub_admin
from edgeferry.app.hub import RunningHub, open_hub
from edgeferry.app.hub_settings import DEFAULT_HTTPS_PORT, DEFAULT_MQTT_PORT, DEFAULT_ROUTES, HubSettings
from edgeferry.app.logging import configure_logging
from edgeferry.cli.exit_codes import ends_with_exit_code
from edgeferry.errors import ConfigInvalid
from edgeferry.hub.door_guard import DoorLimits
from edgeferry.hub.policies import POLICIES
from edgeferry.storage.files import write_atomically
from edgeferry.storage.hub_store import HubStore, open_tables
from edgeferry.storage.hub_tables import HubTables
from edgeferry.wire.file_signatures import SERVICE_POLICY

Command = TypeVar("Command", bound=Callable[..., Any])
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, exists=True, path_type=Path)
_DOOR_OPTIONS = ("connections", "connections_per_address", "packets_per_s", "packets_burst")
_DOORS = DoorLimits()
_PORT = click.IntRange(0, 65535)


def _store_options(command: Command) -> Command:
    """Where the hub keeps its state: `data` and `database_url`."""
    command = click.option(
        "--database",
        "database_url",
        envvar="EDGEFERRY_HUB_DATABASE",
        metavar="URL",
        help="PostgreSQL database that holds the state instead, for several hubs that serve one fleet"
        " (or EDGEFERRY_HUB_DATABASE: a URL with a password belongs there).",
    )(command)
    return click.option(
        "--data",
        type=_FOLDER,
        required=True,
        envvar="EDGEFERRY_HUB_DATA",
        help="Folder that holds everything the hub keeps (or EDGEFERRY_HUB_DATA).",
    )(command)


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@click.group("hub")
def hub_group() -> None:
    """Runs the embedded hub and looks after its devices.

    It speaks Azure IoT Hub's protocols, as far as docs/formats/hub.md says.
    """


@hub_group.command("run")
@_store_options
@click.option("--listen", default="127.0.0.1", show_default=True, help="Address of all doors.")
@click.option("--mqtt-port", type=_PORT, default=DEFAULT_MQTT_PORT, show_default=True, help="0: any free one.")
@click.option("--https-port", type=_PORT, default=DEFAULT_HTTPS_PORT, show_default=True, help="0: any free one.")
@click.option(
    "--host-name", "host_names", multiple=True, help="Name or address for the certificate; the first is the hub's."
)
@click.option(
    "--files", type=click.Path(file_okay=False, exists=True, path_type=Path), help="Publish this folder at /files/."
)
@click.option("--http-files-port", type=_PORT, help="Serve /files/ without TLS too, on loopback.")
@click.option(
    "--route", "routes", multiple=True, help="As in a deployment manifest. Default: all messages into $upstream."
)
@click.option(
    "--time-to-live", "time_to_live_s", type=click.FloatRange(1), default=7200.0, show_default=True, help="Seconds."
)
@click.option(
    "--deployment",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Deployment manifest; its $edgeHub gives routes and time to live instead of the two options above.",
)
@click.option("--tls-chain", type=_FILE, help="The operator's certificate and chain (PEM) instead of the hub's own.")
@click.option("--tls-key", type=_FILE, help="Its key (PEM).")
@click.option("--tls-authority", type=_FILE, help="What devices trust then (PEM). Default: the chain.")
@click.option("--metrics-port", type=_PORT, help="Serve /metrics for Prometheus, on loopback.")
@click.option(
    "--workload-socket", type=click.Path(path_type=Path), help="Serve the IoT Edge workload API at this path."
)
@click.option("--workload-device", help="The device that the workload API stands for.")
@click.option(
    "--connections",
    type=click.IntRange(1),
    default=_DOORS.connections,
    show_default=True,
    help="Devices and modules at once; fewer where fewer files may be open.",
)
@click.option(
    "--connections-per-address",
    type=click.IntRange(0),
    default=_DOORS.connections_per_address,
    show_default=True,
    help="The same, from one address. 0: no limit.",
)
@click.option(
    "--packets-per-second",
    "packets_per_s",
    type=click.FloatRange(0),
    default=_DOORS.packets_per_s,
    show_default=True,
    help="Of one device or module; who sends more waits. 0: no limit.",
)
@click.option(
    "--packets-burst",
    type=click.FloatRange(1),
    default=_DOORS.packets_burst,
    show_default=True,
    help="Packets of one device or module that may come at once.",
)
@click.option(
    "--ready-file", type=click.Path(path_type=Path), help="Write addresses and process id here once listening."
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True)
@_json_option
@ends_with_exit_code
def run(ready_file: Path | None, log_level: str, as_json: bool, **options: Any) -> None:
    """Runs the hub in the foreground until it is told to end."""
    configure_logging(as_json=as_json, level=log_level)
    if (options["workload_socket"] is None) != (options["workload_device"] is None):
        raise ConfigInvalid("--workload-socket and --workload-device go together")
    if (options["tls_chain"] is None) != (options["tls_key"] is None):
        raise ConfigInvalid("--tls-chain and --tls-key go together")
    if options["deployment"] is not None and options["routes"]:
        raise ConfigInvalid("routes come from --route or from --deployment, not from both")
    options["routes"] = options["routes"] or DEFAULT_ROUTES
    options["doors"] = DoorLimits(**{name: options.pop(name) for name in _DOOR_OPTIONS})
    asyncio.run(_run_hub(HubSettings(**options), ready_file, as_json=as_json))


async def _run_hub(settings: HubSettings, ready_file: Path | None, *, as_json: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_hub(settings) as hub:
        facts = _get_facts(hub)
        if ready_file is not None:
            await asyncio.to_thread(write_atomically, ready_file, msgspec.json.encode(facts))
        _print(facts, as_json=as_json)
        await stop.wait()


def _get_facts(hub: RunningHub) -> dict[str, Any]:
    socket_path = hub.settings.workload_socket
    return {
        "pid": os.getpid(),
        "host_name": hub.settings.host_name,
        "mqtt_port": hub.mqtt_port,
        "https_port": hub.https_port,
        "http_files_port": hub.ports.http_files,
        "metrics_port": hub.ports.metrics,
        "service_url": hub.service_url,
        "ca_path": str(hub.ca_pem_path.absolute()),
        "workload_socket": str(socket_path.absolute()) if socket_path else None,
    }


@hub_group.group("device")
def device_group() -> None:
    """Devices and modules that may connect. Works beside a running hub and without one."""


@device_group.command("add")
@click.argument("device_id", metavar="ID")
@click.option("--module", "modules", multiple=True, help="Also register this module; may be given again.")
@_store_options
@_json_option
@ends_with_exit_code
def add(device_id: str, modules: tuple[str, ...], data: Path, database_url: str | None, as_json: bool) -> None:
    """Registers a device, or modules of one that exists."""
    with open_tables(data, database_url) as tables:
        added = hub_admin.add_device(tables, device_id, modules)
    _print({"added": [str(identity) for identity in added]}, as_json=as_json)


@device_group.command("list")
@_store_options
@_json_option
@ends_with_exit_code
def list_devices(data: Path, database_url: str | None, as_json: bool) -> None:
    """Lists devices and their modules."""
    with _open_tables(data, database_url) as tables:
        devices = hub_admin.list_devices(tables)
    if as_json:
        _print(devices, as_json=True)
        return
    for device in devices:
        state = "connected" if device["connected"] else "not connected"
        click.echo(f"{device['device']}  {device['status']}  {state}  {', '.join(device['modules']) or '-'}")


@device_group.command("show")
@click.argument("device_id", metavar="ID")
@_store_options
@_json_option
@ends_with_exit_code
def show(device_id: str, data: Path, database_url: str | None, as_json: bool) -> None:
    """Shows a device and its modules with their twins."""
    with _open_tables(data, database_url) as tables:
        found = hub_admin.show_device(tables, device_id)
    if as_json:
        _print(found, as_json=True)
    else:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())


@device_group.command("delete")
@click.argument("device_id", metavar="ID")
@click.option("--module", "modules", multiple=True, help="Delete only this module; may be given again.")
@_store_options
@_json_option
@ends_with_exit_code
def delete(device_id: str, modules: tuple[str, ...], data: Path, database_url: str | None, as_json: bool) -> None:
    """Deletes a device with its modules, or modules of it; who is connected is dropped."""
    with _open_tables(data, database_url) as tables:
        gone = hub_admin.delete_device(tables, device_id, modules)
    _print({"deleted": [str(identity) for identity in gone]}, as_json=as_json)


@device_group.command("connection-string")
@click.argument("device_id", metavar="[ID]", required=False)
@click.option("--module", "module_id", help="Of this module.")
@click.option("--service", is_flag=True, help="Of the policy service, for deploy and for service SDKs.")
@click.option("--policy", type=click.Choice(list(POLICIES)), help="Of this policy; iothubowner may do everything.")
@_store_options
@_json_option
@ends_with_exit_code
def connection_string(
    device_id: str | None,
    module_id: str | None,
    service: bool,
    policy: str | None,
    data: Path,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Prints a connection string. It holds a key: whoever has it may connect."""
    if (device_id is not None) + service + (policy is not None) != 1:
        raise ConfigInvalid("name a device, or say --service or --policy")
    with _open_tables(data, database_url) as tables:
        if device_id is None:
            text = hub_admin.get_service_connection_string(tables, policy or SERVICE_POLICY)
        else:
            text = hub_admin.get_connection_string(tables, device_id, module_id)
    click.echo(msgspec.json.encode({"connection_string": text}).decode() if as_json else text)


@hub_group.command("messages")
@click.option("--follow", is_flag=True, help="Wait for more, until interrupted.")
@click.option("--after", type=click.IntRange(0), default=0, help="Only messages with a higher id.")
@_store_options
@_json_option
@ends_with_exit_code
def messages(follow: bool, after: int, data: Path, database_url: str | None, as_json: bool) -> None:
    """Prints the messages that routes sent $upstream, one a line."""
    with _open_tables(data, database_url) as tables:
        for message in hub_admin.read_messages(tables, after=after, follow=follow):
            if as_json:
                _print(message, as_json=True)
                continue
            sender = "/".join(filter(None, (message["device"], message["module"], message["output"])))
            body = message.get("body", message.get("body_base64"))
            click.echo(f"{message['id']}  {message['received_at']}  {sender}  {msgspec.json.encode(body).decode()}")


@hub_group.command("backup")
@click.argument("target", metavar="TARGET")
@_store_options
@_json_option
@ends_with_exit_code
def backup(target: str, data: Path, database_url: str | None, as_json: bool) -> None:
    """Copies the hub's state, keys and certificates into the new folder TARGET, also while the hub runs.

    TARGET may also be the URL of an empty PostgreSQL database: that is how a hub moves there.
    """
    is_url = "://" in target
    hub_admin.write_backup(HubStore(data, database_url), target if is_url else Path(target))
    _print({"backup": "the database" if is_url else str(Path(target).absolute())}, as_json=as_json)


@contextmanager
def _open_tables(data: Path, database_url: str | None) -> Iterator[HubTables]:
    """The tables of a hub that exists; raises ConfigInvalid when there is none."""
    if not HubStore(data, database_url).exists:
        raise ConfigInvalid(f"there is no hub in {data}: start one with 'edgeferry hub run' or add a device")
    with open_tables(data, database_url) as tables:
        yield tables


def _print(facts: Any, *, as_json: bool) -> None:
    """One JSON line, or a line for each fact."""
    if as_json:
        click.echo(msgspec.json.encode(facts).decode())
        return
    for name, value in facts.items():
        click.echo(f"{name}: {', '.join(value) if isinstance(value, list) else '-' if value is None else value}")
