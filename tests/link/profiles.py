"""The links that devices hang on, as data.

What this file leaves to others: carrying packets (`pipe.py`, `pump.py`).

Rules:
- Rates count whole IP packets, as an operator bills them. Both directions are alike, and each takes half of `rtt_s`.
- `queue_s` is how long a packet may wait before the modem drops the next one. Modems hoard: it is seconds, not packets.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """A link: bits per second, seconds, and the share of packets that are lost on the way."""

    name: str
    bps: int
    rtt_s: float
    loss: float = 0.0
    queue_s: float = 1.0
    mtu: int = 1500


NB_IOT = Profile("nb-iot", 60_000, 1.6, queue_s=4.0)
LTE_M = Profile("lte-m", 300_000, 0.1)
CERTUS_100 = Profile("certus-100", 88_000, 0.7, queue_s=2.0)
VSAT_512 = Profile("vsat-512", 512_000, 0.6, loss=0.01)
PROFILES = (NB_IOT, LTE_M, CERTUS_100, VSAT_512)
