"""A process that reads seeded hostile streams of MQTT and prints what came of them, as JSON; ends at the first defect.

Usage: python stream_fuzz.py FIRST COUNT [planted]. A process of its own, so that its peak of memory is that of the
streams. `planted` puts in a defect: a reader that trusts the escapes in topics. It shows that a defect is found.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgeferry.wire.mqtt_packets import Publish
from hostile_mqtt import Outcome, Reader, cut, make_stream, read_as_device, read_as_hub, require_same_in_any_cut

WARM_UP = 1_000  # streams until caches and the allocator have what they need
CUTS_EVERY = 4  # every so many streams, all cuts are compared; costs as much as reading
STREAM_MAX_S = 0.25  # CPU time for a stream of at most a few KB; one takes 0.1 ms


def read_peak_kb() -> int:
    """The most memory this process ever held (VmHWM: unlike getrusage it starts anew with the program)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def read_trusting(chunks: Sequence[bytes]) -> Outcome:
    """The planted defect: takes every `%` of a topic to be an escape."""
    outcome = read_as_hub(chunks)
    for packet in outcome.packets:
        if isinstance(packet, Publish):
            bytes.fromhex("".join(part[:2] for part in packet.topic.split("%")[1:]))
    return outcome


def try_stream(seed: int, read: Reader) -> tuple[str, float]:
    """Reads one stream; returns how it ended and the CPU seconds that took."""
    dice = random.Random(seed)
    stream = make_stream(dice)
    chunks = cut(stream, dice)
    begun = time.process_time()
    outcome = read(chunks)
    spent = time.process_time() - begun
    assert spent < STREAM_MAX_S, f"{spent:.2f} s for {len(stream)} bytes"
    if seed % CUTS_EVERY == 0:
        require_same_in_any_cut(stream, chunks)
        read_as_device(chunks)
    return type(outcome.error).__name__ if outcome.error else "over" if outcome.is_over else "alive", spent


def run(first: int, count: int, read: Reader) -> dict[str, object]:
    """Reads `count` streams; a defect is told with the seed and bytes of its stream."""
    ends, slowest_s, warm_kb = Counter[str](), 0.0, 0
    for seed in range(first, first + count):
        if seed == first + WARM_UP:
            warm_kb = read_peak_kb()
        try:
            end, spent = try_stream(seed, read)
        except Exception as defect:
            defect.add_note(f"seed {seed}: {make_stream(random.Random(seed)).hex()}")
            raise
        ends[end] += 1
        slowest_s = max(slowest_s, spent)
    growth_kb = read_peak_kb() - warm_kb
    return {"ends": dict(ends), "slowest_s": slowest_s, "growth_kb": growth_kb, "cpu_s": time.process_time()}


if __name__ == "__main__":
    reader = read_trusting if "planted" in sys.argv else read_as_hub
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), reader)))
