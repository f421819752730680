"""What a stored tensor is for: the operator that reads it, and which of its axes counts output channels.

This file knows graphs of operators and nothing of file formats: `tensors_onnx.py` and `tensors_litert.py` fill a Graph
and say what their operators mean; `tensors.py` is the door.

Rules:
- The first reader in the order of the file counts. Operators that only convert or turn a tensor are looked through, so
  that a float32, a float16 and an int8 version of one model give the same roles.
- Graphs may lie in graphs; an inner one reads an outer one's tensors by name.
- A chain is followed over at most _HOPS_MAX operators: a graph of unknown origin may hold a circle.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from edgeferry.errors import ModelUnreadable

WIDTHS = {
    **{"f2": 2, "f4": 4, "f8": 8, "bf2": 2, "b1": 1},
    **{"i1": 1, "i2": 2, "i4": 4, "i8": 8, "u1": 1, "u2": 2, "u4": 4, "u8": 8},
}
"""Kind of element -> its bytes. As numpy's little-endian codes, and bf2 for bfloat16."""
Key = tuple[int, str | int]
"""What operators call a tensor: the graph that it belongs to, and its name or number there."""
_ANYWHERE = -1
_HOPS_MAX = 8
_USES_MAX = 1 << 19
_OPERATOR_MAX_CHARS = 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a model file: where its data lies and what it is for.

    Attributes:
        start: first byte of its data in the file.
        size_bytes: bytes of its data; the product of `shape` times the width of an element.
        kind: one of WIDTHS.
        shape: as the file says; flat where the data has another size (sparse tensors, damaged files).
        role: "Conv/1@7" for input 1 of the eighth Conv of the file; "" when no operator reads it.
        channel_axis: axis of `shape` that counts output channels; 0 where its operator has none.
        scales: of quantisation, float32 values; one, or one for each index of `scale_axis`; () when unknown.
        zeros: zero points: one, or as many as the scales; () when there are no scales.
    """

    start: int
    size_bytes: int
    kind: str
    shape: tuple[int, ...]
    name: str = ""
    role: str = ""
    channel_axis: int = 0
    scales: tuple[float, ...] = ()
    zeros: tuple[int, ...] = ()
    scale_axis: int = 0

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.size_bytes // WIDTHS[self.kind]

    @property
    def end(self) -> int:
        """First byte after its data."""
        return self.start + self.size_bytes


class Stored(NamedTuple):
    """A tensor as it stands in the file; `key` is what operators call it."""

    key: Key
    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int

    @property
    def is_whole(self) -> bool:
        """Whether the data has the size that shape and kind ask for."""
        return min(self.shape, default=1) >= 0 and math.prod(self.shape) * WIDTHS[self.kind] == self.size_bytes


class Node(NamedTuple):
    """An operator of the graph: its place among those that count as the same, and the attributes that matter here."""

    operator: str
    ordinal: int
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]
    numbers: Mapping[str, int]
    turn: tuple[int, ...] | None


class Use(NamedTuple):
    """A tensor read by `node` as input `place`; axis i of what it reads is axis `order[i]` of the stored tensor."""

    node: Node
    place: int
    order: tuple[int, ...]

    def map_axis(self, axis: int) -> int:
        """The stored tensor's axis for one of the operator's (negative: from the end); 0 when there is none."""
        return self.order[axis] if -len(self.order) <= axis < len(self.order) else 0


class Quantisation(NamedTuple):
    """Scales and zero points as read, before they are checked against a shape."""

    scales: tuple[float, ...] = ()
    zeros: tuple[int, ...] = ()
    axis: int = 0

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether there is one scale, or one for each index of the axis, and zero points to match."""
        count = len(self.scales)
        per_axis = 0 <= self.axis < len(shape) and count == shape[self.axis]
        return (count == 1 or (count > 1 and per_axis)) and len(self.zeros) in (0, 1, count)


@dataclass(slots=True)
class Graph:
    """Operators in the order of the file, and who reads what first.

    `same_as` maps an operator's name to the one that it counts as; `seen_through` names operators that are followed.
    """

    seen_through: frozenset[str]
    same_as: Mapping[str, str] = field(default_factory=dict)
    _first_uses: dict[Key, tuple[Node, int]] = field(default_factory=dict)
    _makers: dict[Key, Node] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _uses: int = 0

    def add(
        self,
        operator: str,
        inputs: tuple[Key, ...],
        outputs: tuple[Key, ...],
        *,
        numbers: Mapping[str, int],
        turn: tuple[int, ...] | None = None,
    ) -> None:
        """Adds an operator; `turn` is the order of axes when it transposes its first input, () to reverse it.

        Raises:
            ModelUnreadable: more inputs and outputs than any model has.
        """
        self._uses += 1 + len(inputs) + len(outputs)
        if self._uses > _USES_MAX:
            raise ModelUnreadable(f"expected at most {_USES_MAX} inputs and outputs of operators, found more")
        operator = operator[:_OPERATOR_MAX_CHARS]
        counted = self.same_as.get(operator, operator)
        node = Node(operator, self._counts[counted], inputs, outputs, numbers, turn)
        self._counts[counted] += 1
        for place, key in enumerate(inputs):
            self._first_uses.setdefault(key, (node, place))
            if isinstance(key[1], str) and key[0]:
                self._first_uses.setdefault((_ANYWHERE, key[1]), (node, place))
        self._makers.update(dict.fromkeys(outputs, node))

    def get_first_use(self, key: Key) -> tuple[Node, int] | None:
        """The first operator that reads a tensor, and as which input."""
        return self._first_uses.get(key) or self._first_uses.get((_ANYWHERE, key[1]))

    def get_maker(self, key: Key) -> Node | None:
        """The operator that writes a tensor."""
        return self._makers.get(key)

    def follow(self, key: Key, rank: int) -> list[Use]:
        """The operators that a stored tensor goes through; the last is the one that it is for."""
        uses: list[Use] = []
        order = tuple(range(rank))
        while (found := self.get_first_use(key)) and len(uses) < _HOPS_MAX:
            node, place = found
            uses.append(Use(node, place, order))
            if place != 0 or node.operator not in self.seen_through or not node.outputs:
                break
            order = _turn(order, node.turn)
            key = node.outputs[0]
        return uses


def _turn(order: tuple[int, ...], turn: tuple[int, ...] | None) -> tuple[int, ...]:
    if turn == ():
        return order[::-1]
    if turn is None or sorted(turn) != list(range(len(order))):
        return order
    return tuple(order[axis] for axis in turn)


def make_tensor(stored: Stored, *, role: str, channel_axis: int, quantisation: Quantisation) -> Tensor:
    """The value for a stored tensor; flat, with nothing said of axes, where data and shape disagree."""
    if not stored.is_whole:
        elements = stored.size_bytes // WIDTHS[stored.kind]
        size_bytes = elements * WIDTHS[stored.kind]
        return Tensor(stored.start, size_bytes, stored.kind, (elements,), stored.name, role)
    known = Tensor(stored.start, stored.size_bytes, stored.kind, stored.shape, stored.name, role, channel_axis)
    scales, zeros, axis = quantisation
    if not quantisation.fits(stored.shape):
        return known
    return replace(known, scales=scales, zeros=zeros or (0,), scale_axis=axis if len(scales) > 1 else 0)
