"""The repository extension of the v2 protocol: what is stored and served, and making stored versions resident.

What this file leaves to others: routes (`v2.py`), residents themselves (`residents.py`), storing (the agent).

Rules:
- `active` is the deployment's: nothing here moves it, and the active version cannot be unloaded.
- Models come by deployment or from the command line: files or another configuration in a request are refused.
- A version is named as `name@version`, as `parameters.version`, or inside `parameters.config` as Triton's clients do
  (`version_policy.specific.versions`, with one); without one, load means the highest stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

import msgspec

from edgeferry.errors import Conflict, ModelNotFound, RequestInvalid
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.ports import StorePort
from edgeferry.serve.residents import order_version
from edgeferry.serve.slots import Slots

State = Literal["READY", "LOADING", "UNAVAILABLE"]


class IndexEntry(msgspec.Struct, frozen=True):
    """One version. `reason` says why it does not answer; empty when it does."""

    name: str
    version: str
    state: State
    reason: str = ""


class IndexRequest(msgspec.Struct, frozen=True):
    """`ready`: only versions that answer."""

    ready: bool = False


class RepositoryRequest(msgspec.Struct, frozen=True):
    """What to load or unload; see the module for `parameters`."""

    parameters: dict[str, str | int | float | bool | None] = {}


class _Specific(msgspec.Struct, frozen=True):
    versions: tuple[str | int, ...] = ()


class _Policy(msgspec.Struct, frozen=True):
    specific: _Specific = _Specific()


class _Config(msgspec.Struct, frozen=True):
    version: str = ""
    version_policy: _Policy = _Policy()


class Repository:
    """The versions of this device, as v2 clients see and move them. `store` is None where nothing is stored."""

    def __init__(self, slots: Slots, store: StorePort | None) -> None:
        self._slots = slots
        self._store = store

    async def list_index(self, request: IndexRequest) -> list[IndexEntry]:
        """Every version that is stored or served, by name and version."""
        entries = {(one.model, one.version): IndexEntry(one.model, one.version, "UNAVAILABLE", "unloaded")
                   for one in await self._list_stored(None)}  # fmt: skip
        residents = self._slots.residents
        for key, reason in residents.failures.items():
            entries[key] = IndexEntry(*key, "UNAVAILABLE", reason)
        for served in self._slots.list_served():
            name, version = served.version.model, served.version.version
            state: State = "READY" if served.ready else "UNAVAILABLE"
            entries[name, version] = IndexEntry(name, version, state, "" if served.ready else "its worker restarts")
        if residents.loading is not None:
            entries[residents.loading] = IndexEntry(*residents.loading, "LOADING")
        listed = [entries[key] for key in sorted(entries, key=lambda key: (key[0], order_version(key[1])))]
        return [one for one in listed if one.state == "READY" or not request.ready]

    async def load(self, wanted: str, request: RepositoryRequest) -> None:
        """Makes a stored version resident; nothing happens when it is active or resident.

        Raises:
            ModelNotFound: no such version is stored here.
            RequestInvalid: the request brings files, or names several versions.
            Conflict, WorkerStartFailed: as Slots.load_resident.
        """
        name, version = _read_name(wanted, request)
        found = _pick(name, version, await self._list_stored(name))
        active = self._slots.get_models().get(name)
        if active is None or active.version.version != found.version:
            await self._slots.load_resident(found)

    async def unload(self, wanted: str, request: RepositoryRequest) -> None:
        """Lets go of a resident version, of all of a model where none is named; not resident is fine.

        Raises:
            ModelNotFound: no such version is known here.
            Conflict: it is the active version.
        """
        name, version = _read_name(wanted, request)
        active = self._slots.get_models().get(name)
        residents = self._slots.residents
        keys = [slot.serving.version.version for slot in residents.list_slots() if slot.model == name and slot.serving]
        if active is not None and (version == active.version.version or not (version or keys)):
            raise Conflict(f"{active.version} is the active version: deploy another one, or roll back, instead")
        if version not in keys and (name, version) not in residents.failures:
            _pick(name, version, await self._list_stored(name))
        for key in [version] if version else keys:
            await residents.unload(name, key)

    async def _list_stored(self, model: str | None) -> list[StoredVersion]:
        """What lies on the disk (of one model), else what is served from it."""
        if self._store is None:
            served = [one.version for one in self._slots.list_served()]
            return [one for one in served if model in (None, one.model)]
        return await asyncio.to_thread(_read_stored, self._store, model)


def _read_stored(store: StorePort, model: str | None) -> list[StoredVersion]:
    known = store.list_models()
    return [one for name in known if model in (None, name) for one in store.list_versions(name)]


def _pick(name: str, version: str, stored: Sequence[StoredVersion]) -> StoredVersion:
    matching = [one for one in stored if version in ("", one.version)]
    if not matching:
        known = ", ".join(sorted({str(one) for one in stored})) or "none of this model"
        raise ModelNotFound(f"no version {name}@{version or '(any)'} is stored here; stored: {known}"[:400])
    return max(matching, key=lambda one: order_version(one.version))


def _read_name(wanted: str, request: RepositoryRequest) -> tuple[str, str]:
    name, _, version = wanted.partition("@")
    parameters = request.parameters
    if any(key.startswith("file:") for key in parameters):
        raise RequestInvalid("expected a version that is stored here, found files: deploy the model instead")
    named = {version, str(parameters.get("version") or ""), _read_config(parameters.get("config"))} - {""}
    if len(named) > 1:
        raise RequestInvalid(f"expected one version of {name!r:.80}, found {', '.join(sorted(named))!r:.200}")
    return name, named.pop() if named else ""


def _read_config(config: object) -> str:
    """The version that a configuration in Triton's words names."""
    if not config:
        return ""
    try:
        read = msgspec.json.decode(str(config), type=_Config)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RequestInvalid(f"expected JSON as parameters.config: {error!s:.200}") from error
    versions = {read.version, *map(str, read.version_policy.specific.versions)} - {""}
    if len(versions) > 1:
        raise RequestInvalid(f"expected one version in parameters.config, found {len(versions)}")
    return versions.pop() if versions else ""
