"""v2_ranking: the classification extension of the v2 protocol: the best of an output as `score:index:label`.

Source: the extension's page: for each row of a batch the N highest values; a label follows where one is known.

Rules:
- The first side of an output of two or more is the batch; all behind it is one row of classes.
- Scores are written with six digits, as its clients are used to.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from edgeferry.errors import RequestInvalid
from edgeferry.wire.v2_tensors import BYTES, JSON_OUTPUTS_MAX, Data, Number, TensorEntry, pack_bytes, unpack


def rank_classes(entry: TensorEntry, data: Data, count: int, labels: Sequence[str]) -> tuple[TensorEntry, bytes]:
    """The `count` best of each row, as a BYTES tensor of shape [batch, count].

    Raises:
        RequestInvalid: the output holds no numbers, or too many of them.
    """
    total = math.prod(entry.shape)
    if entry.datatype == BYTES or not 0 < total <= JSON_OUTPUTS_MAX:
        raise RequestInvalid(
            f"expected numbers to classify in output {entry.name!r:.80}, found {entry.datatype}{list(entry.shape)}"
        )
    values = unpack(entry.datatype, data)
    rows = entry.shape[0] if len(entry.shape) > 1 else 1
    size = total // rows
    best = [text for at in range(0, total, size) for text in _rank_row(values[at : at + size], count, labels)]
    packed = pack_bytes(best)
    sides = (rows, len(best) // rows) if len(entry.shape) > 1 else (len(best),)
    return TensorEntry(entry.name, BYTES, sides, len(packed)), packed


def _rank_row(row: Sequence[Number], count: int, labels: Sequence[str]) -> list[bytes]:
    found = heapq.nlargest(min(count, len(row)), range(len(row)), key=lambda index: (row[index], -index))
    return [_write(row[index], index, labels) for index in found]


def _write(score: Number, index: int, labels: Sequence[str]) -> bytes:
    label = labels[index] if index < len(labels) else ""
    return f"{score:f}:{index}{':' + label if label else ''}".encode()
