"""Deploying: which device shall run which version, said through the twin.

The hub is spoken to by `hub_service.py`; the shape of desired properties is `twin/contract.py`'s; who signs URLs and
with what is decided in `app/operator.py`.

Rules:
- A deployment changes one model and leaves every other in the twin alone.
- Renewing a SAS changes the SAS and nothing else: no download restarts.
- Deploying what a device is asked for already is nothing to do; `again` raises `try`, which gives a version that ended
  badly another go.
- One device that fails does not keep the others from being told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from edgeferry.errors import ConfigInvalid, EdgeferryError
from edgeferry.model.digest import Digest
from edgeferry.publish.hub_service import HubService, MakePatch
from edgeferry.twin.contract import (
    SECTION,
    ClassicDesired,
    ModelDesired,
    make_classic_patch,
    make_desired_patch,
    make_sas_patch,
)
from edgeferry.wire.service_api import Identity, require_identity

SignUrl = Callable[[str], str]
"""From a repository's or an object's URL to the query that opens it ("" where none is needed)."""


@dataclass(frozen=True, slots=True)
class Order:
    """A version that devices shall run, from the repository at `repo`. `sas` None leaves the twin's SAS alone."""

    model: str
    version: str
    manifest: Digest
    repo: str
    sas: str | None = field(default=None, repr=False)
    again: bool = False


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one device: `changed`, nothing to do, or an error as `{code, message, advice}`."""

    device: str
    changed: bool = False
    error: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All devices, and the first error among them."""

    devices: tuple[DeviceReport, ...]
    error: EdgeferryError | None = None


async def deploy(hub: HubService, devices: Sequence[str], *, make_patch: MakePatch) -> Outcome:
    """Applies `make_patch` to the twin of each device (`D` or `D/module`), one after the other.

    Raises:
        NameInvalid: a device or module id is none; nothing was changed then.
    """
    identities = [parse_device(device) for device in devices]
    reports: list[DeviceReport] = []
    first: EdgeferryError | None = None
    for identity in identities:
        try:
            changed = await hub.change_desired(identity, make_patch)
            reports.append(DeviceReport(device=str(identity), changed=changed))
        except EdgeferryError as error:
            first = first or error
            reports.append(DeviceReport(device=str(identity), error=error.to_dict()))
    return Outcome(tuple(reports), first)


def parse_device(text: str) -> Identity:
    """`D` or `D/module`; raises NameInvalid."""
    device, slash, module = text.partition("/")
    return require_identity(device, module if slash else None)


def make_deploy_patch(order: Order, desired: Mapping[str, Any]) -> dict[str, Any]:
    """The twin patch for our section, on top of the desired properties as they are."""
    old = _get_mapping(_get_mapping(_get_mapping(desired, SECTION), "models"), order.model)
    same = (old.get("version"), old.get("manifest")) == (order.version, str(order.manifest))
    old_try = old["try"] if same and isinstance(old.get("try"), int) else 0
    priority = old["priority"] if isinstance(old.get("priority"), int) else 0
    wanted = ModelDesired(
        model=order.model,
        version=order.version,
        manifest=order.manifest,
        try_=max(1, old_try + order.again),
        priority=priority,
    )
    return make_desired_patch(repo=order.repo, sas=order.sas, models=(wanted,))


def make_classic_order(repo: str, name: str, *, md5: str, sas: str) -> ClassicDesired:
    """The three classic fields for the ZIP `name` of the repository at `repo`."""
    return ClassicDesired(name, set_query(f"{repo}/classic/{name}", sas), md5)


def make_classic_deploy_patch(classic: ClassicDesired, desired: Mapping[str, Any]) -> dict[str, Any]:
    """The twin patch for the classic fields; what the twin held before does not matter."""
    del desired
    return make_classic_patch(classic)


def make_renewal_patch(sign: SignUrl, desired: Mapping[str, Any]) -> dict[str, Any]:
    """The twin patch that renews the SAS of our section and of the classic URL, whichever the twin has.

    Raises:
        ConfigInvalid: the twin has neither, or its places need no SAS.
    """
    repo, url = _get_mapping(desired, SECTION).get("repo"), desired.get("DownloadUrl")
    patch: dict[str, Any] = {}
    if isinstance(repo, str) and (sas := sign(repo)):
        patch |= make_sas_patch(sas)
    if isinstance(url, str) and (sas := sign(set_query(url, ""))):
        patch["DownloadUrl"] = set_query(url, sas)
    if not patch:
        raise ConfigInvalid("there is nothing to renew: this twin names no place that is opened by a SAS we can make")
    return patch


def set_query(url: str, query: str) -> str:
    """The URL with another query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))


def _get_mapping(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    return value if isinstance(value, Mapping) else {}
