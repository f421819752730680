"""Masks: a value for each pixel of the input -> a mask of the whole upright picture; what all segmentation shares.

Rules:
- Padding of a letterbox is cut off. What a crop left out is 0: the model has not seen it.
- A mask keeps the model's own resolution. Where a crop left much out it grows by up to GROWTH_MAX each way, and beyond
  that gets coarser: pictures may be a thousand times longer than wide. So it does beyond SIDE_MAX_PX a side.
- A mask of more than RUNS_MAX runs is noise: refused, since no answer could hold it.
- Class indices are 0..255: the PNG holds one byte per pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import Box, MaskClass, SegmentationAnswer
from edgeferry.vision.answers.objects import Outputs, Tensor, make_refusal
from edgeferry.vision.image import encode_png
from edgeferry.vision.preprocess import Placement

GROWTH_MAX = 4
SIDE_MAX_PX = 2048
RUNS_MAX = 1 << 20
CLASSES_MAX = 256

Plane = NDArray[np.float32]
"""[h, w]: one number for each pixel of the input."""
ClassMap = NDArray[np.uint8]
"""[h, w]: a class index for each pixel."""


def find_output(stage: Stage, outputs: Outputs, *, role: str, wanted: str) -> Tensor:
    """The output that `answer.outputs` names for `role`, else the only one; raises ModelUnsupported."""
    name = stage.answer.outputs.get(role, "")
    found = outputs.get(name) if name else next(iter(outputs.values())) if len(outputs) == 1 else None
    if found is None or found.size == 0:
        raise make_refusal(wanted, outputs)
    return found


def find_plane(stage: Stage, outputs: Outputs, *, role: str) -> Plane:
    """One channel [h, w] of numbers out of [1, h, w, 1], [1, 1, h, w] or [1, h, w]; raises ModelUnsupported."""
    wanted = f"{role} [1, h, w, 1] or [1, 1, h, w]"
    found = find_output(stage, outputs, role=role, wanted=wanted)
    shape = found.shape
    if len(shape) == 4 and shape[0] == 1 and 1 in (shape[1], shape[3]):
        sides = shape[1:3] if shape[3] == 1 else shape[2:]
    elif len(shape) == 3 and shape[0] == 1:
        sides = shape[1:]
    else:
        raise make_refusal(wanted, outputs)
    return found.reshape(sides).astype(np.float32, copy=False)


def cover_picture(plane: Tensor, placement: Placement) -> Tensor:
    """[h, w] over the input -> over the whole picture."""
    height, width = plane.shape
    rows, rows_inside = _list_sources(placement.top, placement.height, height)
    columns, columns_inside = _list_sources(placement.left, placement.width, width)
    covered = plane[np.ix_(rows, columns)]
    covered[~rows_inside, :] = 0
    covered[:, ~columns_inside] = 0
    return covered


def _list_sources(start: float, extent: float, side: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """For each line of the picture's mask the nearest line of the input's, and whether it lies inside."""
    first, last = round(start * side), round((start + extent) * side)
    count = min(max(last - first, 1), GROWTH_MAX * side, SIDE_MAX_PX)
    sources = np.floor(first + (np.arange(count) + 0.5) * max(last - first, 1) / count).astype(np.intp)
    return sources.clip(0, side - 1), (sources >= 0) & (sources < side)


def make_segmentation(
    classes: ClassMap, name: Callable[[int], str], *, shades: NDArray[np.uint8] | None = None
) -> SegmentationAnswer:
    """The answer for a class map of the whole picture; the PNG holds `shades`, 255 x probability, where given."""
    height, width = classes.shape
    found = sorted(_list_classes(classes, name), key=lambda one: (-one.share, one.class_index))
    return SegmentationAnswer(
        width=width,
        height=height,
        classes=tuple(found),
        runs=_list_runs(classes),
        png=encode_png(classes if shades is None else shades),
        probability=shades is not None,
    )


def _list_classes(classes: ClassMap, name: Callable[[int], str]) -> Iterator[MaskClass]:
    counts = np.bincount(classes.reshape(-1), minlength=1)
    for index in np.flatnonzero(counts).tolist():
        share = int(counts[index]) / classes.size
        yield MaskClass(class_index=index, label=name(index), share=share, box=_get_box(classes == index))


def _get_box(inside: NDArray[np.bool_]) -> Box:
    """The box that the pixels inside span, outer edges, 0..1."""
    top, bottom = _get_ends(np.flatnonzero(inside.any(axis=1)), inside.shape[0])
    left, right = _get_ends(np.flatnonzero(inside.any(axis=0)), inside.shape[1])
    return top, left, bottom, right


def _get_ends(lines: NDArray[np.intp], side: int) -> tuple[float, float]:
    return int(lines[0]) / side, (int(lines[-1]) + 1) / side


def _list_runs(classes: ClassMap) -> tuple[tuple[int, int], ...]:
    row = classes.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(row[1:] != row[:-1]) + 1])
    if len(starts) > RUNS_MAX:
        raise ModelUnsupported(f"expected a mask of at most {RUNS_MAX} runs, found {len(starts)}: it is noise")
    lengths = np.diff(starts, append=row.size)
    return tuple(zip(row[starts].tolist(), lengths.tolist(), strict=True))


def make_class_map(values: Tensor) -> ClassMap:
    """Whole numbers [h, w] as class indices; raises ModelUnsupported for others, and beyond 0..255."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high < CLASSES_MAX):  # also where they are no numbers
        raise ModelUnsupported(f"expected class indices of a mask in 0..{CLASSES_MAX - 1}, found {low}..{high}")
    classes = values.astype(np.uint8)
    if (classes != values).any():
        raise ModelUnsupported("expected class indices of a mask, found numbers that are not whole: scores?")
    return classes
