"""DeviceStatus: the device at one moment, as its agent says it, its API shows it and its twin reports it.

What this file leaves to others: making one (`agent/reporter.py`), the compact record in the twin made of it.

Rules:
- Plain frozen values; agent and serving, which never import each other, both speak of these.
"""

from __future__ import annotations

import msgspec

from edgeferry import __version__


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model. `progress` is 0..1 within the downloads of an update; `error` is `{code, message, advice}` or None."""

    model: str
    active: str = ""
    previous: str = ""
    target: str = ""
    state: str = ""
    progress: float = 0.0
    error: dict[str, str] | None = None


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

    `observed` is the twin's `$version` last read; `downloaded_bytes` count payload since the first start; `latest_file`
    is the classic file in use; `problem` is what is wrong with the desired properties, `{code, message, advice}`.
    """

    device: str
    role: str
    connected: bool = False
    observed: int = 0
    models: tuple[ModelStatus, ...] = ()
    downloaded_bytes: int = 0
    disk_free_bytes: int = 0
    agent_version: str = __version__
    latest_file: str = ""
    problem: dict[str, str] | None = None
    versions: tuple[VersionStatus, ...] = ()
    """What lies on the disk, where somebody has looked."""
