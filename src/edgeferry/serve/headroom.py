"""Whether memory allows a second worker beside the one that serves. Pure.

What this file leaves to others: reading the memory (`runtime/memory.py`), what follows (`slot.py`).

Rules:
- A new worker takes what the living one took at its most, which was when it loaded; a larger file takes more.
- A margin stays free: for pictures under way, and for all that was not foreseen.
"""

from __future__ import annotations

from edgeferry.runtime.memory import MemoryReading

MARGIN_BYTES = 32 << 20
MARGIN_SHARE = 0.1
GROWTH = 3
"""So many times its size a model file takes while an engine loads it: the file, its weights, and these packed."""


def fits_beside(reading: MemoryReading, *, new_bytes: int, old_bytes: int) -> bool:
    """Whether a worker for a model of `new_bytes` fits beside the living one, whose model has `old_bytes`."""
    needed = reading.worker_bytes + GROWTH * max(0, new_bytes - old_bytes)
    return reading.free_bytes >= needed + max(MARGIN_BYTES, int(MARGIN_SHARE * needed))
