"""Slim: finds the fewest bytes for a version whose answers may become a little worse, as far as the operator allows.

how much each tensor's errors change the answers -> bits for each where they do most -> coarser until too much is lost

What this file leaves to others: grids (`delta/slim.py`), asking models about pictures (`examiner.py`), and the question
whether to go on (`cli/`): nothing here is ever applied by itself.

Rules:
- A tensor's sensitivity is how far answers move when it alone is on a coarse grid, per squared error of its numbers.
  All tensors then share one slope of bits against distance (reverse water-filling: Cover and Thomas, Elements of
  Information Theory, 10.3.3); the slope is the level.
- Levels are tried from fine to coarse. A level counts only if it and every finer one that was tried stays within
  `max_loss`, so that a coarse level that is right by luck is not taken.
- A level that a device would refuse is refused here, and the next finer one is asked.
- The same bytes on every run: no clock, no chance.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Protocol

import numpy as np

from edgeferry.delta.make import make_full, make_patch
from edgeferry.delta.slim import (
    Point,
    SlimModel,
    Weights,
    draw_curve,
    make_slim,
    open_slim_model,
    pick_point,
    read_weights,
)
from edgeferry.errors import ConfigInvalid

BITS_FIRST, BITS_RATIO, BITS_LAST = 12.0, 0.75, 0.1
"""Bits per number of the levels: the first, from one to the next, and where they end."""
HALVINGS = 3
PROBE_BITS, FINER_PROBE_BITS = (1.5, 4.0), (6.5, 9.0)
SATURATED_SHARE = 0.1
"""From this share of the farthest that answers ever move, moving farther says no more of a tensor."""
LEAST_SHARE = 0.1
SLOPE_RANGE, SLOPE_HALVINGS = (-60, 120), 32
LEAST_DIFFERENCE = 1e-9
Say = Callable[[str], None]
FindFault = Callable[[bytes], str]
"""Why a device would refuse a model file; empty when it would not."""


class Judge(Protocol):
    """Asks a model file about pictures and compares its answers with those of the operator's version."""

    def measure_difference(self, data: bytes) -> float:
        """How far the answers to some pictures lie apart: smooth, in any unit."""

    def measure_loss(self, data: bytes) -> float:
        """What is lost over all pictures, in points; below 0 where the file is better."""


@dataclass(frozen=True, slots=True)
class Level:
    """`size_bytes` of the patch (or full download), exact or about; what is lost, in points."""

    size_bytes: int
    loss: float
    bits_per_number: float
    exact: bool = False
    refused: bool = False
    """It loses little enough, and devices would not take it."""


@dataclass(frozen=True, slots=True)
class SlimSearch:
    """What was found: the file, and the levels that were tried, from the original's to the coarsest.

    `taken` is the index of the file's level: 0 where nothing is gained or everything loses too much.
    """

    data: bytes
    levels: tuple[Level, ...]
    taken: int


@dataclass(frozen=True, slots=True)
class _Curves:
    """Each tensor's grids, and bits that an error of 1 in it is worth at slope 1."""

    model: SlimModel
    curves: tuple[tuple[Point, ...], ...]
    sensitivities: tuple[float, ...]

    def pick(self, slope: float) -> list[tuple[Weights, Point]]:
        """A grid for each tensor."""
        found = []
        for weights, curve, sensitivity in zip(self.model.weights, self.curves, self.sensitivities, strict=True):
            point = pick_point(curve, slope * sensitivity)
            found += [(weights, point)] if point else []
        return found

    def count_bits(self, slope: float) -> float:
        """About what they take."""
        return sum(point.bits for _, point in self.pick(slope))

    def make(self, slope: float) -> bytes:
        """The file with these grids."""
        return make_slim(self.model, [(weights, point.grid) for weights, point in self.pick(slope)])


@dataclass(frozen=True, slots=True)
class _Try:
    slope: float
    bits: float
    loss: float


# --- enough pictures? -------------------------------------------------------------------------------------------------
def count_needed(max_loss: float) -> int:
    """Fewest outcomes (objects, or pictures of a classifier) that can tell a loss of `max_loss` points.

    Of n outcomes, a loss of share p changes about n * p of them, give or take sqrt(n * p): the standard error is
    sqrt(p / n). It must be at most the allowed loss P where half of that is lost: n >= 1 / (2 * P). Below 1 / P one
    outcome weighs more than P: then only levels that change none for the worse pass.
    """
    return math.ceil(50.0 / max_loss)


def count_telling(outcomes: int, by_label: Mapping[str, int]) -> int:
    """Outcomes of which each weighs the same and that tell as much.

    In a mean over L labels each of n objects of a label weighs 1 / (L * n): the variance of a loss of share p is
    p times the sum of 1 / (L * L * n). Where no label counts by itself (`by_label` is empty) all weigh the same.
    """
    return int(len(by_label) ** 2 / sum(1 / count for count in by_label.values())) if by_label else outcomes


def require_enough(outcomes: int, pictures: int, *, max_loss: float, by_label: Mapping[str, int] | None = None) -> None:
    """Raises ConfigInvalid when the evaluation set cannot tell a loss of `max_loss` points from none.

    Where the metric is a mean over labels, the rarest label decides: its objects weigh most.
    """
    if not 0.0 < max_loss <= 50.0:
        raise ConfigInvalid(f"expected an allowed loss above 0 and up to 50 points, found {max_loss:g}")
    needed = count_needed(max_loss)
    if outcomes < needed:
        more = f"about {math.ceil(needed * pictures / outcomes)} pictures like these" if outcomes else "other pictures"
        raise ConfigInvalid(
            f"{pictures} pictures with {outcomes} objects or classes to tell cannot show a loss of {max_loss:g} points:"
            f" its standard error would be above that; {needed} are needed, {more}"
        )
    if by_label:
        _require_enough_of_each(by_label, needed, max_loss=max_loss)


def _require_enough_of_each(by_label: Mapping[str, int], needed: int, *, max_loss: float) -> None:
    label, count = min(by_label.items(), key=lambda item: (item[1], item[0]))
    if count * len(by_label) < needed:
        raise ConfigInvalid(
            f"{count} objects of {label!r:.80} cannot show a loss of {max_loss:g} points: the metric is a mean over"
            f" {len(by_label)} labels, so that one of them weighs {100 / (count * len(by_label)):.2f};"
            f" {math.ceil(needed / len(by_label))} of each label are needed"
        )


def get_standard_error(loss: float, outcomes: int) -> float:
    """Of a measured loss, in points; of one outcome, where less was lost than that."""
    return 100.0 * math.sqrt(max(abs(loss) / 100.0, 1.0 / outcomes) / outcomes)


def _find_no_fault(_data: bytes) -> str:
    return ""


# --- search -----------------------------------------------------------------------------------------------------------
def search_slim(
    base: bytes, target: bytes, judge: Judge, *, max_loss: float, say: Say, find_fault: FindFault = _find_no_fault
) -> SlimSearch:
    """The shortest version of `target` that loses at most `max_loss` points.

    Args:
        base: what devices hold; empty when there is nothing, or full downloads shall be short.
        target: the operator's file.
        judge: knows the target's own answers.
        max_loss: points.
        say: told what is done.
        find_fault: asked before a level is taken.

    Raises:
        ModelUnsupported, ModelUnreadable: the engine does not take the file.
    """
    original = Level(_get_size(base, target), 0.0, 0.0, exact=True)
    curves = _measure_sensitivities(open_slim_model(base, target), judge, say)
    tries = _try_levels(curves, judge, max_loss, say)
    within = list(takewhile(lambda each: each.loss <= max_loss, tries))  # they stand from fine to coarse
    at, data = _find_best(curves, within, find_fault, say)
    if at < 0:
        levels = list(_make_levels(tries, curves, 0))
        return SlimSearch(target, (original, *_mark_refused(levels, range(len(within)))), 0)
    size_bytes = _get_size(base, data)
    levels = list(_make_levels(tries, curves, size_bytes - round(tries[at].bits / 8)))
    levels = _mark_refused(levels, range(at + 1, len(within)))
    levels[at] = replace(levels[at], size_bytes=size_bytes, exact=True)
    gained = size_bytes < original.size_bytes
    return SlimSearch(data if gained else target, (original, *levels), at + 1 if gained else 0)


def _find_best(curves: _Curves, within: Sequence[_Try], find_fault: FindFault, say: Say) -> tuple[int, bytes]:
    """The coarsest that no device would refuse, and its file; -1 where there is none."""
    for at in reversed(range(len(within))):
        data = curves.make(within[at].slope)
        fault = find_fault(data)
        if not fault:
            return at, data
        say(f"the level of about {round(within[at].bits / 8):,} bytes is refused: {fault}")
    return -1, b""


def _mark_refused(levels: Sequence[Level], refused: range) -> list[Level]:
    return [replace(level, refused=at in refused) for at, level in enumerate(levels)]


def _get_size(base: bytes, target: bytes) -> int:
    return len((make_patch(base, target) if base else make_full(target)).data)


def _make_levels(tries: Sequence[_Try], curves: _Curves, beside_bytes: int) -> Iterator[Level]:
    elements = _count_elements(curves)
    for each in tries:
        yield Level(max(0, round(each.bits / 8) + beside_bytes), each.loss, each.bits / max(1, elements))


def _count_elements(curves: _Curves) -> int:
    return sum(
        weights.tensor.elements for weights, curve in zip(curves.model.weights, curves.curves, strict=True) if curve
    )


# --- sensitivities ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Probe:
    """A grid for one tensor alone: its squared error, and how far answers moved."""

    error: float
    difference: float


def _measure_sensitivities(model: SlimModel, judge: Judge, say: Say) -> _Curves:
    curves = tuple(draw_curve(model, weights) for weights in model.weights)
    probes: list[list[_Probe]] = []
    for number, (weights, curve) in enumerate(zip(model.weights, curves, strict=True)):
        if number * 10 // len(curves) != (number - 1) * 10 // len(curves):
            say(f"measuring how much each tensor matters: {number} of {len(curves)}")
        probes.append([_probe(model, weights, point, judge) for point in _find_probes(weights, curve, PROBE_BITS)])
    most = max((each.difference for found in probes for each in found), default=0.0) * SATURATED_SHARE
    for weights, curve, found in zip(model.weights, curves, probes, strict=True):
        for point in _find_probes(weights, curve, FINER_PROBE_BITS):
            if all(each.difference > most for each in found):
                found.append(_probe(model, weights, point, judge))
    measured = [_get_sensitivity(found, most) for found in probes]
    return _Curves(model, curves, tuple(_raise_least(model, measured)))


def _find_probes(weights: Weights, curve: Sequence[Point], bits: Sequence[float]) -> Iterator[Point]:
    usable = [point for point in curve if point.error > 0]
    for wanted in bits if usable else ():
        yield min(usable, key=lambda each: abs(math.log(each.bits / weights.tensor.elements / wanted)))


def _probe(model: SlimModel, weights: Weights, point: Point, judge: Judge) -> _Probe:
    return _Probe(point.error, judge.measure_difference(make_slim(model, [(weights, point.grid)])))


def _get_sensitivity(probes: Sequence[_Probe], most: float) -> float:
    """Distance per squared error: the geometric mean of the probes that leave most answers, else of the finest."""
    usable = [each for each in probes if each.difference <= most] or list(probes[-1:])
    logs = [math.log(max(each.difference, LEAST_DIFFERENCE) / each.error) for each in usable]
    return math.exp(sum(logs) / len(logs)) if logs else 0.0


def _raise_least(model: SlimModel, measured: Sequence[float]) -> Iterator[float]:
    """No tensor is taken for far less sensitive than is usual for its size: few pictures do not show what it is for."""
    squares = [max(float(np.square(read_weights(model, each)).sum()), 1e-300) for each in model.weights]
    relative = [found * square for found, square in zip(measured, squares, strict=True)]
    least = LEAST_SHARE * statistics.median(relative) if relative else 0.0
    return (max(found, least) / square for found, square in zip(relative, squares, strict=True))


# --- levels -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Levels:
    """Levels that were tried, by their bits: those that ask for nearly the same come to the same grids."""

    curves: _Curves
    judge: Judge
    say: Say
    tries: dict[float, _Try] = field(default_factory=dict)

    def try_at(self, bits_per_number: float) -> _Try:
        """Asks the judge, unless it was asked before."""
        slope = _find_slope(self.curves, bits_per_number * _count_elements(self.curves))
        bits = self.curves.count_bits(slope)
        if bits not in self.tries:
            loss = self.judge.measure_loss(self.curves.make(slope))
            self.say(f"about {round(bits / 8):,} bytes lose {loss:.2f} points")
            self.tries[bits] = _Try(slope, bits, loss)
        return self.tries[bits]


def _try_levels(curves: _Curves, judge: Judge, max_loss: float, say: Say) -> list[_Try]:
    """From fine to coarse until too much is lost, then between the last that does not and the first that does."""
    levels = _Levels(curves, judge, say)
    good, bits = 0.0, BITS_FIRST if _count_elements(curves) else 0.0
    while bits >= BITS_LAST and levels.try_at(bits).loss <= max_loss:
        good, bits = bits, bits * BITS_RATIO
    bad = bits if bits >= BITS_LAST else 0.0
    for _ in range(HALVINGS if good and bad else 0):
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if levels.try_at(middle).loss <= max_loss else (good, middle)
    return sorted(levels.tries.values(), key=lambda each: -each.bits)


def _find_slope(curves: _Curves, bits: float) -> float:
    """The slope at which all tensors together take about `bits`, not more."""
    low, high = map(float, SLOPE_RANGE)
    for _ in range(SLOPE_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if curves.count_bits(2.0**middle) > bits else (middle, high)
    return float(2.0**low)
