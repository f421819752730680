"""`edgeferry device init|run|status|rollback|gc|pin`: words for the device's side.

What this file leaves to others: running a device (`app/device.py`), preparing a folder (`app/device_folder.py`), the
meaning of settings (`config.py`).

Rules:
- Command line before environment before `device.toml` before default.
- A running device is asked through agent.sock; where none runs, the folder is read.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from edgeferry.agent.control import Answer, ask_agent
from edgeferry.app.device import get_repository, open_device
from edgeferry.app.device_folder import (
    find_config_file,
    init_device_folder,
    read_folder_status,
    run_folder_command,
)
from edgeferry.app.logging import configure_logging
from edgeferry.cli.device_view import make_lines
from edgeferry.cli.exit_codes import NOTHING_TO_DO, ends_with_exit_code
from edgeferry.config import DeviceConfig, read_device_config
from edgeferry.errors import Conflict, EdgeferryError, LinkDown, ModelNotFound, RequestInvalid, StorageFailed
from edgeferry.storage.files import read_bounded

_CONFIG_MAX_BYTES = 1 << 20
_WATCH_EVERY_S = 1.0
F = TypeVar("F", bound=Callable[..., Any])


@click.group("device")
def device_group() -> None:
    """Runs on a device: takes versions, serves them, reports."""


def _common(command: F) -> F:
    """Options that say which device folder is meant."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    roles = click.Choice(["both", "loader", "inferencer"])
    command = click.option("--role", type=roles, default=None, help="What this module does [default: both].")(command)
    return click.option("--storage", type=click.Path(file_okay=False), default=None, help="The storage root.")(command)


def _settings(command: F) -> F:
    """Options that `init` remembers and `run` takes for this run."""
    options = [
        click.option("--connection-string", default=None, help="Of the device or module; better in the environment."),
        click.option("--ca-file", type=click.Path(dir_okay=False), default=None, help="PEM of the hub's authority."),
        click.option("--mqtt-port", type=int, default=None, help="Port of the hub [default: 8883]."),
        click.option("--root", default=None, help="The root to pin: a root.json, or sha256:<hex>."),
        click.option("--accept-classic/--no-accept-classic", default=None, help="Follow FileName of the twin."),
        click.option("--host", default=None, help="Address of the API [default: 127.0.0.1]."),
        click.option("--port", type=int, default=None, help="Port of the API [default: 8080]."),
        click.option("--allow-networks", default=None, help="CIDR,... that may call the API off loopback."),
        click.option("--rate-bps", type=int, default=None, help="Cap of downloads, bits per second [default: none]."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@device_group.command("init")
@_common
@_settings
@ends_with_exit_code
def init(storage: str | None, role: str | None, as_json: bool, **settings: Any) -> None:
    """Prepares the storage folder: pins the root of trust and remembers settings."""
    told = _make_told(settings)
    config = read_device_config(None, {}, storage=storage, role=role, **told)
    path = init_device_folder(config, {"role": role, **told} if role else told)
    if as_json:
        click.echo(msgspec.json.encode({"folder": str(path), "pinned": bool(config.root)}).decode())
        return
    pinned = "a root of trust is pinned" if config.root else "no root is pinned: classic updates only"
    click.echo(f"{path} is ready; {pinned}")


@device_group.command("run")
@_common
@_settings
@click.option("--token", default=None, help="Of the API; better in EDGEFERRY_TOKEN.")
@click.option("--config", "config_file", type=click.Path(dir_okay=False, exists=True), default=None, help="TOML file.")
@click.option("--log-level", default="info", help="debug, info, warning or error.")
@ends_with_exit_code
def run(
    storage: str | None, role: str | None, as_json: bool, config_file: str | None, log_level: str, **settings: Any
) -> None:
    """Follows the twin and serves, until it is told to stop."""
    configure_logging(as_json=as_json, level=log_level)
    config = _read_config(storage, role, config_file=config_file, **_make_told(settings))
    asyncio.run(_run(config))


async def _run(config: DeviceConfig) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_device(config) as device:
        click.echo(f"{device.agent.settings.device} serves on {device.url}")
        await stop.wait()


@device_group.command("status")
@_common
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@ends_with_exit_code
def status(storage: str | None, role: str | None, as_json: bool, watch: bool) -> None:
    """Shows what runs here, what is under way, what it cost, and what went wrong last."""
    config = _read_config(storage, role)
    shown = ""
    while True:
        found = _fetch_status(config)
        text = msgspec.json.encode(found).decode() if as_json else "\n".join(make_lines(found, time.time()))
        if watch and sys.stdout.isatty() and not as_json:
            click.clear()
            click.echo(text)
        elif text != shown:  # where nothing can be redrawn, only what is new is said
            click.echo(text)
        if not watch:
            return
        shown = text
        time.sleep(_WATCH_EVERY_S)


def _fetch_status(config: DeviceConfig) -> dict[str, Any]:
    """Of the running agent, else of the folder."""
    try:
        answer = asyncio.run(ask_agent(get_repository(config).socket_path, "status")).answer
        return {**answer, "running": True}
    except LinkDown:
        return {**msgspec.to_builtins(read_folder_status(config)), "running": False}


@device_group.command("rollback")
@click.argument("model", required=False)
@_common
@ends_with_exit_code
def rollback(model: str | None, storage: str | None, role: str | None, as_json: bool) -> None:
    """Goes back to the version before; nothing is fetched. The version left stays away until `try` rises."""
    config = _read_config(storage, role)
    payload = {"model": model} if model else None
    answer = asyncio.run(ask_agent(get_repository(config).socket_path, "rollback", payload))
    _require_done(answer)
    click.echo(msgspec.json.encode(answer.answer).decode() if as_json else f"{answer.answer['model']} rolls back")


@device_group.command("gc")
@_common
@ends_with_exit_code
def gc(storage: str | None, role: str | None, as_json: bool) -> None:
    """Frees the disk of every version that is neither active, previous, pinned nor under way."""
    answer = _command(_read_config(storage, role), "gc", None)
    if as_json:
        click.echo(msgspec.json.encode(answer).decode())
        return
    click.echo(f"{answer['freed_bytes']:,} bytes freed; gone: {', '.join(answer['versions']) or 'no version'}")


@device_group.command("pin")
@click.argument("version", metavar="MODEL@VERSION")
@click.option("--remove", is_flag=True, help="Let go of it again.")
@_common
@ends_with_exit_code
def pin(version: str, remove: bool, storage: str | None, role: str | None, as_json: bool) -> None:
    """Keeps a stored version whatever comes: it is never removed to make room."""
    model, _, name = version.partition("@")
    payload = {"model": model, "version": name, "remove": remove}
    answer = _command(_read_config(storage, role), "pin", payload)
    click.echo(msgspec.json.encode(answer).decode() if as_json else f"{version} is {'not ' if remove else ''}pinned")


def _command(config: DeviceConfig, command: str, payload: object) -> dict[str, Any]:
    """What a running agent answers, or what the folder does where none runs."""
    try:
        answer = asyncio.run(ask_agent(get_repository(config).socket_path, command, payload, timeout_s=120.0))
    except LinkDown:
        answer = asyncio.run(run_folder_command(config, command, payload))
    _require_done(answer)
    return answer.answer


def _require_done(answer: Answer) -> None:
    if answer.status < 300:
        return
    message = str(answer.answer.get("error", {}).get("message", "the agent refused"))
    if answer.status == 409:
        click.echo(f"nothing to do: {message}", err=True)
        raise SystemExit(NOTHING_TO_DO)
    kinds: dict[int, type[EdgeferryError]] = {400: RequestInvalid, 404: ModelNotFound, 507: StorageFailed}
    raise kinds.get(answer.status, Conflict)(message)


def _make_told(settings: dict[str, Any]) -> dict[str, Any]:
    """What the command line said, in the words of `config.py`."""
    told = {key: value for key, value in settings.items() if value is not None}
    if "allow_networks" in told:
        told["allow_networks"] = [part.strip() for part in str(told["allow_networks"]).split(",") if part.strip()]
    return told


def _read_config(storage: str | None, role: str | None, *, config_file: str | None = None, **told: Any) -> DeviceConfig:
    path = Path(config_file) if config_file else find_config_file(storage, role)
    data = read_bounded(path, _CONFIG_MAX_BYTES) if path is not None else None
    return read_device_config(data, os.environ, storage=storage, role=role, **told)
