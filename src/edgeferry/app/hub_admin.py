"""What the `hub` commands do to a hub's folder, whether the hub runs or not.

Rules:
- The database is opened directly; a running hub notices (hub/upkeep.py).
- Only `get_connection_string` and `get_service_connection_string` hand out a key.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgeferry.app.hub import HOST_NAME_SETTING, HTTPS_PORT_SETTING, ensure_device
from edgeferry.app.hub_settings import DEFAULT_HTTPS_PORT, make_connection_string, make_service_connection_string
from edgeferry.errors import Conflict, StorageFailed
from edgeferry.hub.configurations import apply_to_device
from edgeferry.hub.identity_records import make_record
from edgeferry.hub.policies import ensure_policy_key
from edgeferry.storage.files import make_folder, read_bounded, write_atomically
from edgeferry.storage.hub_events import IdentityChanged
from edgeferry.storage.hub_queues import UpstreamMessage
from edgeferry.storage.hub_store import HubStore, copy_store
from edgeferry.storage.hub_tables import HubTables, IdentityView
from edgeferry.twin.document import format_time, make_twin
from edgeferry.wire.service_api import Identity, require_identity

FOLLOW_EVERY_S = 0.3
PAGE_ROWS = 500
_TLS_FILES = ("ca.pem", "ca.key", "server.pem", "server.key")


def add_device(tables: HubTables, device_id: str, module_ids: Sequence[str]) -> list[Identity]:
    """Registers a device and modules, whichever are missing; returns what is new.

    Raises:
        NameInvalid: an id is not allowed.
        Conflict: all of them exist.
    """
    now = time.time()
    wanted = [require_identity(device_id), *(require_identity(device_id, name) for name in module_ids)]
    with tables.transaction():
        missing = [identity for identity in wanted if tables.find_identity(identity) is None]
        if not missing:
            raise Conflict(f"{device_id} and its modules named here exist already", service_code="DeviceAlreadyExists")
        ensure_device(tables, device_id, now)
        for identity in missing:
            if identity.module_id:
                tables.add_identity(make_record(identity, now), make_twin(now))
        apply_to_device(tables, device_id, now)
    return missing


def delete_device(tables: HubTables, device_id: str, module_ids: Sequence[str]) -> list[Identity]:
    """Deletes the modules named, or with none named the device and all of it; raises NotFound."""
    gone = [require_identity(device_id, name) for name in module_ids] or [require_identity(device_id)]
    with tables.transaction():
        for identity in gone:
            tables.delete_identity(identity)
            tables.tell(IdentityChanged(identity))
    return gone


def list_devices(tables: HubTables) -> list[dict[str, Any]]:
    """Every device with its modules, without keys."""
    modules: dict[str, list[str]] = {}
    for view in _read_all(tables, modules=True):
        modules.setdefault(view.record.identity.device_id, []).append(str(view.record.identity.module_id))
    return [
        _show(view) | {"modules": modules.get(view.record.identity.device_id, [])}
        for view in _read_all(tables, modules=False)
    ]


def show_device(tables: HubTables, device_id: str) -> dict[str, Any]:
    """One device and its modules with their twins, without keys; raises NotFound."""
    device = tables.require_view(require_identity(device_id))
    modules = {str(one.record.identity.module_id): _show_with_twin(one) for one in tables.read_modules(device_id)}
    return _show_with_twin(device) | {"modules": modules}


def _read_all(tables: HubTables, *, modules: bool) -> Iterator[IdentityView]:
    """Devices, or modules of all devices, page by page."""
    after: Identity | None = None
    while page := tables.read_views(modules=modules, after=after, limit=PAGE_ROWS):
        yield from page
        after = page[-1].record.identity


def get_connection_string(tables: HubTables, device_id: str, module_id: str | None) -> str:
    """The connection string of a device or module; raises NotFound."""
    record = tables.require_identity(require_identity(device_id, module_id))
    return make_connection_string(tables.find_setting(HOST_NAME_SETTING) or "localhost", record)


def get_service_connection_string(tables: HubTables, policy: str) -> str:
    """The connection string of a policy, with the address that the hub last listened on."""
    with tables.transaction():
        key = ensure_policy_key(tables, policy)
        port = int(tables.find_setting(HTTPS_PORT_SETTING) or DEFAULT_HTTPS_PORT)
        host_name = tables.find_setting(HOST_NAME_SETTING) or "localhost"
    return make_service_connection_string(host_name, port, key, policy)


def read_messages(tables: HubTables, *, after: int = 0, follow: bool = False) -> Iterator[dict[str, Any]]:
    """Messages of `$upstream`, oldest first; with `follow` it never ends."""
    while True:
        page = tables.queues.read_upstream(after=after, limit=PAGE_ROWS)
        for message in page:
            after = message.id
            yield show_message(message)
        if not page and not follow:
            return
        if not page:
            time.sleep(FOLLOW_EVERY_S)


def show_message(message: UpstreamMessage) -> dict[str, Any]:
    """A message as people and scripts read it: a body that is JSON as JSON, text as text, else base64."""
    fields: dict[str, Any] = {"id": message.id, "device": message.identity.device_id}
    fields |= {"module": message.identity.module_id, "output": message.output}
    fields |= {"properties": message.properties, "received_at": format_time(message.received_at)}
    try:
        return fields | {"body": msgspec.json.decode(message.payload)}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass
    try:
        return fields | {"body": message.payload.decode("utf-8")}
    except UnicodeDecodeError:
        return fields | {"body_base64": base64.b64encode(message.payload).decode("ascii")}


def write_backup(store: HubStore, target: Path | str) -> None:
    """Copies a hub's state, while it runs or not: to a new folder, keys and certificates too, on which a hub can be
    started; or to the URL of an empty PostgreSQL database.

    Raises:
        StorageFailed: the target is not empty, or there is no hub here.
    """
    if not store.exists:
        raise StorageFailed(f"there is no hub in {store.folder}")
    if isinstance(target, str):
        copy_store(store, HubStore(store.folder, target))
        return
    if target.exists() and any(target.iterdir()):
        raise StorageFailed(f"expected a new or empty folder, found files in {target}")
    make_folder(target, mode=0o700)
    copy_store(store, HubStore(target))
    if (store.folder / "tls").is_dir():
        make_folder(target / "tls", mode=0o700)
        for name in filter(lambda name: (store.folder / "tls" / name).is_file(), _TLS_FILES):
            write_atomically(target / "tls" / name, read_bounded(store.folder / "tls" / name, 64 * 1024), mode=0o600)


def _show(view: IdentityView) -> dict[str, Any]:
    record = view.record
    return {
        "device": record.identity.device_id,
        "module": record.identity.module_id,
        "status": "enabled" if record.is_enabled else "disabled",
        "connected": view.facts.is_connected,
        "generation_id": record.generation_id,
        "created_at": format_time(record.created_at),
    }


def _show_with_twin(view: IdentityView) -> dict[str, Any]:
    twin = view.twin
    sections = {"desired": twin.desired.to_dict(), "reported": twin.reported.to_dict(), "tags": twin.tags}
    return _show(view) | {"twin": sections | {"etag": twin.etag}}
