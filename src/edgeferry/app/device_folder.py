"""A device's folder while no device runs on it: made ready by `device init`, read by `device status`, tidied by `gc`.

Rules:
- `device.toml` (0600) remembers what `init` was told; it may hold a connection string.
- The pinned root is copied here: what it was copied from may go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeferry.agent.control import Answer
from edgeferry.agent.room import run_gc, run_pin
from edgeferry.app.device import CONFIG_FILE, INFERENCER_FOLDER, ROOT_FILE, get_repository
from edgeferry.config import DeviceConfig
from edgeferry.errors import ConfigInvalid
from edgeferry.model.digest import Digest
from edgeferry.storage.files import FOLDER_NAME, get_free_bytes, open_folder_lock, read_bounded, write_atomically
from edgeferry.storage.journal import open_journal
from edgeferry.storage.tidying import list_status
from edgeferry.twin.status import DeviceStatus, ModelStatus

_ROOT_MAX_BYTES = 1 << 20
_DEFAULT_STORAGE = DeviceConfig().storage


def find_config_file(storage: str | None, role: str | None) -> Path | None:
    """`device.toml` of the device folder below the storage root, or None where `init` never ran."""
    root = Path(storage or _DEFAULT_STORAGE)
    own, inferencer = root / FOLDER_NAME, root / INFERENCER_FOLDER / FOLDER_NAME
    folders = {None: [own, inferencer], "inferencer": [inferencer]}.get(role, [own])
    return next((folder / CONFIG_FILE for folder in folders if (folder / CONFIG_FILE).is_file()), None)


def init_device_folder(config: DeviceConfig, told: Mapping[str, Any]) -> Path:
    """Makes the folder of `config`, pins its root, remembers `told`; returns the folder.

    Raises:
        ConfigInvalid: the root is neither a root.json nor a digest.
        StorageError leaves: the disk does not do as asked.
    """
    repository = get_repository(config)
    repository.prepare()
    kept = dict(told)
    if config.root and not config.root.startswith("sha256:"):
        write_atomically(repository.root / ROOT_FILE, _read_root_json(Path(config.root)))
        del kept["root"]
    elif config.root:
        Digest.from_str(config.root)
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in kept.items()]
    write_atomically(repository.root / CONFIG_FILE, "".join(lines).encode(), mode=0o600)
    return repository.root


def _read_root_json(path: Path) -> bytes:
    data = read_bounded(path, _ROOT_MAX_BYTES)
    try:
        is_root = json.loads(data)["signed"]["_type"] == "root"
    except (ValueError, TypeError, KeyError, RecursionError):
        is_root = False
    if not is_root:
        raise ConfigInvalid(f"expected the root.json of a published repository at {path}, found something else")
    return data


def read_folder_status(config: DeviceConfig) -> DeviceStatus:
    """What the folder alone tells: refs and space. A folder that is not there holds nothing."""
    repository = get_repository(config)
    models = [
        ModelStatus(
            model=model,
            active=active.version if (active := repository.read_ref(model, "active")) else "",
            previous=previous.version if (previous := repository.read_ref(model, "previous")) else "",
        )
        for model in repository.list_models()
    ]
    free = get_free_bytes(repository.root) if repository.root.is_dir() else 0
    return DeviceStatus(
        device="device",
        role=config.role,
        models=tuple(models),
        disk_free_bytes=free,
        versions=list_status(repository),
    )


async def run_folder_command(config: DeviceConfig, command: str, payload: object) -> Answer:
    """`gc` or `pin` on a folder on which no agent runs, as that agent would.

    Raises:
        StorageBusy: one runs after all. NoSpace, StorageFailed: the disk does not do as asked.
    """
    repository = get_repository(config)
    repository.prepare()
    with open_folder_lock(repository.root):
        if command == "pin":
            return Answer(*await run_pin(repository, payload))
        async with open_journal(repository.journal_path) as journal:
            return Answer(*await run_gc(repository, journal))
