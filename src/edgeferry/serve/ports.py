"""What consoles, CLI and v2 see of the agent: a frozen DeviceStatus out, commands in; `app/device.py` wires it.

Rules:
- Plain values only; serve never imports the agent.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model on this device. `progress` is 0..1 within a download; `error` is `{code, message, advice}` or None."""

    model: str
    active: str = ""
    previous: str = ""
    target: str = ""
    state: str = ""
    progress: float = 0.0
    error: dict[str, str] | None = None


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The device at one moment. `observed` is the twin's `$version` last read; bytes count payload since the start."""

    device: str
    role: str
    connected: bool
    observed: int
    models: tuple[ModelStatus, ...] = ()
    downloaded_bytes: int = 0
    disk_free_bytes: int = 0
    agent_version: str = ""


class DevicePort(Protocol):
    """The agent, as the API and the CLI may use it."""

    def get_status(self) -> DeviceStatus:
        """The state now; no I/O."""
