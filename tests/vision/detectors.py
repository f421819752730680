"""Known objects, written into the outputs of each family of detectors as that family publishes its layout.

What is written here is the inverse of decoding: from boxes in 0..1 of the input to raw numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, Parameter, Stage, Thresholds

Outputs = dict[str, np.ndarray]
Box = tuple[float, float, float, float]
WIDTH, HEIGHT, CLASSES = 96, 64, 5
STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Known:
    """An object: box (top, left, bottom, right) in 0..1 of the input, its class, and its score."""

    box: Box
    class_index: int
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        top, left, bottom, right = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def size(self) -> tuple[float, float]:
        top, left, bottom, right = self.box
        return right - left, bottom - top


@dataclass(frozen=True)
class Layout:
    """A family as it is published: its parameters, and how objects are written at the places of its candidates."""

    family: str
    write: Callable[[Sequence[Known], Sequence[int]], Outputs]
    places: int
    classes: int = CLASSES
    width: int = WIDTH
    height: int = HEIGHT
    parameters: tuple[tuple[str, Parameter], ...] = ()

    def make_stage(self, **thresholds: float) -> Stage:
        return Stage(
            file="m.onnx",
            task="detection",
            input=InputSpec(width=self.width, height=self.height, layout="nchw", dtype="float32", fit="letterbox"),
            answer=AnswerSpec(family=self.family, parameters=dict(self.parameters)),
            labels=LabelSpec(),
            thresholds=Thresholds(**thresholds),
        )


def _make_cells() -> list[tuple[int, int, int]]:
    """(column, row, stride) of every cell, row by row, finest first."""
    return [
        (column, row, stride)
        for stride in STRIDES
        for row in range(HEIGHT // stride)
        for column in range(WIDTH // stride)
    ]


CELLS = _make_cells()


def write_yolox(known: Sequence[Known], places: Sequence[int]) -> Outputs:
    rows = np.zeros((1, len(CELLS), 5 + CLASSES), np.float32)
    for one, place in zip(known, places, strict=True):
        column, row, stride = CELLS[place]
        x, y = one.centre[0] * WIDTH / stride - column, one.centre[1] * HEIGHT / stride - row
        wide, high = (math.log(side * pixels / stride) for side, pixels in zip(one.size, (WIDTH, HEIGHT), strict=True))
        rows[0, place, :5] = (x, y, wide, high, math.sqrt(one.score))
        rows[0, place, 5 + one.class_index] = math.sqrt(one.score)
    return {"output": rows}


def _write_objectness_rows(known: Sequence[Known], places: Sequence[int], n: int, scale: tuple[int, int]) -> Outputs:
    rows = np.zeros((1, n, 5 + CLASSES), np.float32)
    for one, place in zip(known, places, strict=True):
        rows[0, place, :4] = np.array([*one.centre, *one.size]) * (scale * 2)
        rows[0, place, 4] = rows[0, place, 5 + one.class_index] = math.sqrt(one.score)
    return {"output": rows}


def _write_columns(known: Sequence[Known], places: Sequence[int], scale: tuple[int, int]) -> np.ndarray:
    columns = np.zeros((1, 4 + CLASSES, len(CELLS)), np.float32)
    for one, place in zip(known, places, strict=True):
        columns[0, :4, place] = np.array([*one.centre, *one.size]) * (scale * 2)
        columns[0, 4 + one.class_index, place] = one.score
    return columns


def _write_suppressed(known: Sequence[Known], scale: tuple[int, int]) -> Outputs:
    rows = np.zeros((1, 300, 6), np.float32)
    for place, one in enumerate(known):
        top, left, bottom, right = one.box
        corners = np.array([left, top, right, bottom]) * (scale * 2)
        rows[0, place] = (*corners, one.score, one.class_index)
    return {"output0": rows}


def write_counted(known: Sequence[Known], _: Sequence[int], scale: tuple[int, int]) -> Outputs:
    """YOLOv5 with suppression in its graph; what follows the count is padding."""
    boxes, scores, classes = np.zeros((1, 100, 4)), np.full((1, 100), -1.0), np.full((1, 100), -1.0)
    for place, one in enumerate(known):
        top, left, bottom, right = one.box
        boxes[0, place] = np.array([left, top, right, bottom]) * (scale * 2)
        scores[0, place], classes[0, place] = one.score, one.class_index
    tensors = {"boxes": boxes, "scores": scores, "classes": classes, "count": np.array([len(known)])}
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def get_cell(one: Known) -> tuple[int, int]:
    """(column, row) of FastestDet's cell that an object's centre lies in."""
    x, y = one.centre[0] * WIDTH / 16, one.centre[1] * HEIGHT / 16
    return min(int(x), WIDTH // 16 - 1), min(int(y), HEIGHT // 16 - 1)


def write_fastestdet(known: Sequence[Known], places: Sequence[int]) -> Outputs:
    """The cell is the object's own: no other can reach it."""
    grid = np.zeros((1, 5 + CLASSES, HEIGHT // 16, WIDTH // 16), np.float32)
    grid[0, 5:] = 1 / CLASSES
    for one in known:
        column, row = get_cell(one)
        x, y = one.centre[0] * WIDTH / 16, one.centre[1] * HEIGHT / 16
        cell = grid[0, :, row, column]
        cell[1:5] = (
            math.atanh(x - column), math.atanh(y - row),
            *(math.log(side / (1 - side)) for side in one.size),
        )  # fmt: skip
        cell[0], cell[5:] = one.score, 0.0
        cell[5 + one.class_index] = one.score
    return {"758": grid}


ANCHORS = [(x, y, stride) for x, y, stride in CELLS if stride < 32 for _ in range(2 if stride == 8 else 6)]


def write_blazeface(known: Sequence[Known], places: Sequence[int]) -> Outputs:
    boxes = np.zeros((1, len(ANCHORS), 16), np.float32)
    scores = np.full((1, len(ANCHORS), 1), -100, np.float32)
    for one, place in zip(known, places, strict=True):
        column, row, stride = ANCHORS[place]
        centre = np.array(one.centre) * (WIDTH, HEIGHT) - (np.array([column, row]) + 0.5) * stride
        boxes[0, place] = [*centre, one.size[0] * WIDTH, one.size[1] * HEIGHT, *np.tile(centre, 6)]
        scores[0, place] = math.log(one.score / (1 - one.score))
    return {"regressors": boxes, "classificators": scores}


def write_ultraface(known: Sequence[Known], places: Sequence[int]) -> Outputs:
    scores, boxes = np.tile(np.array([1, 0], np.float32), (1, 100, 1)), np.zeros((1, 100, 4), np.float32)
    for one, place in zip(known, places, strict=True):
        top, left, bottom, right = one.box
        scores[0, place], boxes[0, place] = (1 - one.score, one.score), (left, top, right, bottom)
    return {"scores": scores, "boxes": boxes}


PIXELS, FRACTIONS = (WIDTH, HEIGHT), (1, 1)
N = len(CELLS)


def _make_rows_layout(family: str, n: int, scale: tuple[int, int], **parameters: Parameter) -> Layout:
    return Layout(
        family,
        lambda known, places: _write_objectness_rows(known, places, n, scale),
        n,
        parameters=tuple(parameters.items()),
    )


def _make_yolov8(layout: str, units: str) -> Layout:
    scale = PIXELS if units == "pixels" else FRACTIONS

    def write(known: Sequence[Known], places: Sequence[int]) -> Outputs:
        if layout == "suppressed":
            return _write_suppressed(known, scale)
        columns = _write_columns(known, places, scale)
        return {"output0": columns if layout == "columns" else columns.transpose(0, 2, 1)}

    return Layout("yolov8", write, N, parameters=(("layout", layout), ("units", units)))


LAYOUTS = {
    "yolox": Layout("yolox", write_yolox, N),
    "yolox decoded in its graph": _make_rows_layout("yolox", N, PIXELS, decoded=True),
    "yolov5 in pixels": _make_rows_layout("yolov5", 3 * N, PIXELS),
    "yolov5 in fractions": _make_rows_layout("yolov5", 3 * N, FRACTIONS, units="fractions"),
    **{
        f"yolov5 suppressed in {units}": Layout(
            "yolov5", partial(write_counted, scale=scale), N, parameters=(("layout", "suppressed"), ("units", units))
        )
        for units, scale in (("pixels", PIXELS), ("fractions", FRACTIONS))
    },
    **{
        f"yolov8 {layout} in {units}": _make_yolov8(layout, units)
        for layout in ("columns", "rows", "suppressed")
        for units in ("pixels", "fractions")
    },
    "fastestdet": Layout("fastestdet", write_fastestdet, N),
    "ultraface": Layout("ultraface", write_ultraface, 100, classes=1),
    "blazeface": Layout("blazeface", write_blazeface, len(ANCHORS), classes=1),
}
