"""DeviceStatus: the device at one moment, as its agent says it, its API shows it and its twin reports it.

What this file leaves to others: making one (`agent/reporter.py`), the compact record in the twin made of it.

Rules:
- Plain frozen values; agent and serving, which never import each other, both speak of these.
"""

from __future__ import annotations

import msgspec

from edgeferry import __version__


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model.

    `progress` is 0..1 within the downloads of an update, `done_bytes` of `total_bytes`; `retry_at` and `finishes_at`
    are Unix seconds, 0 where there is none or it cannot be told; `error` is `{code, message, advice}` or None; `shadow`
    is how far the target agreed with the version before it: `{n, agree, iou, shift}` (docs/shadow.md).
    """

    model: str
    active: str = ""
    previous: str = ""
    target: str = ""
    state: str = ""
    progress: float = 0.0
    done_bytes: int = 0
    total_bytes: int = 0
    bps: float = 0.0
    retry_at: float = 0.0
    finishes_at: float = 0.0
    error: dict[str, str] | None = None
    shadow: dict[str, float] | None = None


class LedgerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on the wire, both ways: of today, of this month, of all that the journal knows; budgets, 0 for none."""

    day_bytes: int = 0
    month_bytes: int = 0
    total_bytes: int = 0
    day_budget_bytes: int = 0
    month_budget_bytes: int = 0
    cost: float = 0.0
    currency: str = ""


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The link now. `reason` says why nothing may be sent, `opens_at` when that ends; Unix seconds, 0 for no end."""

    link_class: str = ""
    may_send: bool = True
    reason: str = ""
    opens_at: float = 0.0
    closes_at: float = 0.0
    rate_bps: int = 0


class VersionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One version that lies on the disk. `size_bytes` is all it takes, what it shares with others included."""

    model: str
    version: str
    identity: str
    size_bytes: int = 0
    whole: bool = True
    active: bool = False
    previous: bool = False
    pinned: bool = False


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The device at one moment.

    `observed` is the twin's `$version` last read; `latest_file` is the classic file in use; `problem` is what is wrong
    with the desired properties, `{code, message, advice}`.
    """

    device: str
    role: str
    connected: bool = False
    observed: int = 0
    models: tuple[ModelStatus, ...] = ()
    ledger: LedgerStatus = LedgerStatus()
    link: LinkStatus = LinkStatus()
    disk_free_bytes: int = 0
    agent_version: str = __version__
    latest_file: str = ""
    problem: dict[str, str] | None = None
    versions: tuple[VersionStatus, ...] = ()
    """What lies on the disk, where somebody has looked."""
