"""The order in which tensors and copies are decoded: each after what it refers to. The operator's side.

Rules:
- As in the target, but where something refers to a later range of it: that comes before.
- Deterministic; nothing is left out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from edgeferry.delta.fit import Fit
from edgeferry.delta.records import AnyRecord, Copy, Range

Item = Copy | Fit


def put_in_order(items: Sequence[Item]) -> list[Item]:
    """The items, each after those that fill a range of the target that it reads."""
    items = sorted(items, key=lambda item: _get_record(item).start)
    starts = [_get_record(item).start for item in items]
    ends = [_get_record(item).end for item in items]
    done: list[Item] = []
    state = [0] * len(items)  # 0 not seen, 1 waits for others, 2 done
    for first in range(len(items)):
        waiting = [first] if not state[first] else []
        while waiting:
            at = waiting[-1]
            needed = [
                other
                for low, high in list_ranges_read(_get_record(items[at]))
                for other in range(bisect_right(ends, low), bisect_left(starts, high))
                if not state[other]
            ]
            if state[at] == 0 and needed:
                state[at] = 1
                waiting += needed
                continue
            waiting.pop()
            if state[at] < 2:
                state[at] = 2
                done.append(items[at])
    return done


def list_ranges_read(record: AnyRecord) -> Iterator[Range]:
    """The ranges of the target that a record reads."""
    if isinstance(record, Copy):
        if not record.in_base:
            yield record.source, record.source + record.size_bytes
        return
    origin = record.origin
    if origin and not origin.in_base:
        yield origin.start, origin.start + origin.size_bytes
    for place in (record.scales, origin.scales if origin else None):
        if place and not place.in_base:
            yield place.start, place.start + 4 * place.length


def _get_record(item: Item) -> AnyRecord:
    return item.record if isinstance(item, Fit) else item
