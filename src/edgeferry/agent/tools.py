"""What a step works with, and what it says at its end.

Rules:
- A step never writes the journal's records and never picks a state: it returns an Outcome, the lane does the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeferry.agent.fetch import Fetcher
from edgeferry.agent.gate import Gate
from edgeferry.agent.machine import Event
from edgeferry.agent.ports import Activator, ManifestSource
from edgeferry.agent.record import Target, UpdateRecord
from edgeferry.errors import EdgeferryError
from edgeferry.model.bundle import BundleLimits
from edgeferry.storage.journal import Journal
from edgeferry.storage.repository import Repository
from edgeferry.twin.shadow import ShadowPolicy


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How this device takes updates. Times in seconds, sizes in bytes, rates in bits per second (0: no cap)."""

    device: str = "device"
    shared_root: Path = Path()
    """The storage root that other modules share: paths in their messages are relative to it."""
    role: Literal["both", "loader", "inferencer"] = "both"
    accept_classic: bool = True
    require_md5: bool = False
    bundle_max_bytes: int = 2 << 30
    bundle_limits: BundleLimits = field(default_factory=BundleLimits)
    rate_bps: int = 0
    probation_requests: int = 20
    probation_s: float = 60.0
    probation_deaths: int = 2
    """Deaths of the serving worker within probation that roll the version back."""
    active_deaths: int = 5
    unclean_boots: int = 3
    """Deaths of this whole process within probation and one boot of the machine that roll the version back."""
    poll_s: float = 0.2
    retry_base_s: float = 2.0
    retry_max_s: float = 900.0
    access_retry_s: float = 3600.0
    """A right that was refused is asked for again this late, then twice as late, up to a day; so is what is healed and
    damaged again. A new SAS in the twin wakes it at once."""
    report_every_s: float = 60.0
    shadow: ShadowPolicy | None = None
    """What this device's own settings say of it; the twin goes before them."""
    scrub_every_s: float = 86_400.0
    """How often all stored content is read again; 0: never."""
    connect_base_s: float = 1.0
    connect_max_s: float = 300.0


@dataclass(slots=True)
class Wishes:
    """What the twin says, at this moment, of how an update goes."""

    shadow: ShadowPolicy | None = None


@dataclass(frozen=True, slots=True)
class Tools:
    """The device's parts, as steps use them. `served` maps model -> identity of what the slot was last pointed at."""

    settings: AgentSettings
    repository: Repository
    journal: Journal
    gate: Gate
    fetcher: Fetcher
    manifests: ManifestSource
    activator: Activator
    now: Callable[[], float]
    boot: str
    progress: Callable[[str, int], None]
    posted: Callable[[], None]
    """A message lies in the outbox."""
    served: dict[str, str] = field(default_factory=dict)
    wishes: Wishes = field(default_factory=Wishes)
    announced: set[str] = field(default_factory=set)
    """Ids of the messages that this process has put into the outbox."""

    @property
    def serves(self) -> bool:
        """Whether this device answers pictures; a loader only stores and announces."""
        return self.settings.role != "loader"

    def is_served(self, record: UpdateRecord) -> bool:
        """Whether the record's version is what this device runs now."""
        return self.served.get(record.model) == record.identity


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step says: the event, the record with what it learned, and the error where there was one."""

    event: Event
    record: UpdateRecord
    error: EdgeferryError | None = None


Step = Callable[[Tools, UpdateRecord, Target], Awaitable[Outcome]]
"""What one state does."""
