"""Draws whole scenes: a background, objects with exact boxes, and what a camera does to a picture.

Leaves the objects themselves to `objects.py` and storage to `dataset.py`.

Rules:
- One seed gives one picture, on any machine with the pinned numpy and Pillow.
- Boxes are (top, left, bottom, right) in 0..1 of the picture.
- Drawn at twice the wanted size and reduced, so that edges are smooth.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from models.spec import DETECTOR_LABELS as LABELS
from models.spec import INPUT_PX
from models.train import objects
from models.train.objects import Colour, jitter

OVERSAMPLING = 2
BACKGROUNDS = ["sea", "deck", "hall", "plant"]
WALLS: dict[str, Colour] = {"deck": (120, 125, 130), "hall": (150, 140, 110), "plant": (95, 110, 100)}


@dataclass(frozen=True)
class Placement:
    """One object to draw: class index, foot point and size, all in 0..1 of the picture's side."""

    label: int
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 [size, size, 3] RGB, with boxes float32 [n, 4] (as above) and labels int64 [n]."""

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def make_scene(seed: int, *, classes: int = 6, size_px: int = INPUT_PX) -> Scene:
    """Draws the random scene of a seed. With five classes, leaks still appear now and then but have no truth.

    That is on purpose: a v1.0 camera sees leaks too, must stay silent about them, and its frozen features are what
    v1.1 learns leaks from.
    """
    rng = np.random.default_rng(seed)
    background = BACKGROUNDS[int(rng.integers(0, 4))]
    shown = len(LABELS) if rng.random() < (1.0 if classes == len(LABELS) else 0.5) else classes
    placements = _place_randomly(rng, shown)
    return compose(rng, background, placements, classes=classes, size_px=size_px)


def compose(
    rng: Generator, background: str, placements: list[Placement], *, classes: int = 6, size_px: int = INPUT_PX
) -> Scene:
    """Draws the named background, then the placements in order, then the camera's effects."""
    side = size_px * OVERSAMPLING
    canvas = draw_background(rng, background, side)
    pen = ImageDraw.Draw(canvas)
    boxes = [draw_object(pen, rng, placement, side) for placement in placements]
    pixels = _photograph(rng, canvas.reduce(OVERSAMPLING))
    labels = np.array([placement.label for placement in placements], np.int64)
    truth = (np.array(boxes, np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]] / side).clip(0, 1)
    keep = labels < classes
    return Scene(pixels, truth[keep], labels[keep])


def draw_background(rng: Generator, background: str, side: int) -> Image.Image:
    """Draws one of `BACKGROUNDS` on a canvas of `side` pixels."""
    return _draw_sea(rng, side) if background == "sea" else _draw_wall(rng, side, WALLS[background])


def draw_object(pen: ImageDraw.ImageDraw, rng: Generator, placement: Placement, side: int) -> objects.Box:
    """Draws one placement on a canvas of `side` pixels and returns its box in canvas pixels."""
    x, y, size = placement.x * side, placement.y * side, placement.size * side
    match LABELS[placement.label]:
        case "worker":
            return objects.draw_person(pen, rng, x, y, size, helmet=True)
        case "no_helmet":
            return objects.draw_person(pen, rng, x, y, size, helmet=False)
        case "fire":
            return objects.draw_fire(pen, rng, x, y, size)
        case "vessel":
            return objects.draw_vessel(pen, rng, x, y, size)
        case "gauge":
            return objects.draw_gauge(pen, rng, x, y - size / 2, size)
        case _:
            return objects.draw_leak(pen, rng, x, y, size)


def _place_randomly(rng: Generator, classes: int) -> list[Placement]:
    """Places one to five objects that hardly overlap."""
    placements: list[Placement] = []
    taken: list[objects.Box] = []
    for _ in range(int(rng.integers(1, 6))):
        label = int(rng.integers(0, classes))
        for _ in range(8):
            size, width, height = _draw_extent(rng, label)
            x, y = rng.uniform(width / 2, 1 - width / 2), rng.uniform(height, 1)
            box = (x - width / 2, y - height, x + width / 2, y)
            if all(_overlap(box, other) < 0.12 for other in taken):
                placements.append(Placement(label, x, y, size))
                taken.append(box)
                break
    return placements


def _draw_extent(rng: Generator, label: int) -> tuple[float, float, float]:
    """Draws a size from a log-uniform law; returns (size, approximate width, approximate height)."""
    size = float(np.exp(rng.uniform(np.log(0.14), np.log(0.55))))
    match LABELS[label]:
        case "worker" | "no_helmet":
            size = max(size, 0.2)
            return size, size * 0.45, size
        case "fire":
            return size, size * 0.7, size
        case "vessel":
            return size * 1.1, size * 1.1, size * 0.7
        case "gauge":
            return size * 0.75, size * 0.75, size * 0.75
        case _:
            return size, size, size * 0.9


def _overlap(a: objects.Box, b: objects.Box) -> float:
    """Returns the intersection as a share of the smaller box."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _draw_sea(rng: Generator, side: int) -> Image.Image:
    """Sky above sea with waves, sometimes with turbines far away (scenery, never a target)."""
    horizon = rng.uniform(0.25, 0.6)
    sky, sea = np.array(jitter(rng, (150, 185, 215), 40)), np.array(jitter(rng, (30, 75, 105), 30))
    t = np.linspace(0, 1, 64)[:, None]
    depth = (1 - (t - horizon) / (1 - horizon)) * 0.5
    rows = np.where(t < horizon, sky + (235 - sky) * t / horizon * 0.6, sea + (np.array([70, 110, 125]) - sea) * depth)
    pixels = np.repeat(rows[:, None, :], 64, 1).clip(0, 255).astype(np.uint8)
    canvas = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    pen, unit = ImageDraw.Draw(canvas), side / 512
    for _ in range(30):
        x, y, length = rng.uniform(0, side), rng.uniform(horizon, 1) * side, rng.uniform(8, 60) * unit
        end = [x, y, x + length, y + rng.uniform(-2, 2) * unit]
        pen.line(end, fill=jitter(rng, (120, 150, 165)), width=max(1, int(unit)))
    if rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 4))):
            _draw_turbine(pen, rng, rng.uniform(0, side), horizon * side, rng.uniform(0.1, 0.3) * side)
    return canvas


def _draw_turbine(pen: ImageDraw.ImageDraw, rng: Generator, x: float, y: float, height: float) -> None:
    colour, turn = jitter(rng, (215, 220, 222), 15), rng.uniform(0, 2 * np.pi)
    pen.line([x, y, x, y - height], fill=colour, width=max(2, int(height / 30)))
    for blade in range(3):
        angle = turn + blade * 2 * np.pi / 3
        tip = [x + np.cos(angle) * height * 0.5, y - height + np.sin(angle) * height * 0.5]
        pen.line([x, y - height, *tip], fill=colour, width=max(2, int(height / 45)))


def _draw_wall(rng: Generator, side: int, wall: Colour) -> Image.Image:
    """A stained wall above a floor, with pipes, boxes and drums."""
    base = np.array(jitter(rng, wall, 35), float)
    stains = (rng.normal(0, 14, (8, 8, 1)) + base).clip(0, 255).astype(np.uint8)
    canvas = Image.fromarray(stains).resize((side, side), Image.Resampling.BICUBIC)
    pen, unit, edge = ImageDraw.Draw(canvas), side / 512, rng.uniform(0.4, 0.7) * side
    pen.rectangle([0, edge, side, side], fill=jitter(rng, _shade(base, 0.75), 10))
    if rng.random() < 0.5:
        plank = int(rng.integers(16, 48) * unit)
        for x in range(0, side, plank):
            foot = side / 2 + (x - side / 2) * 2
            pen.line([x, edge, foot, side], fill=jitter(rng, _shade(base, 0.6), 8), width=max(1, int(unit)))
    for _ in range(int(rng.integers(0, 4))):
        _draw_pipe(pen, rng, side, edge)
    for _ in range(int(rng.integers(0, 4))):
        left, foot = rng.uniform(0, side), rng.uniform(edge * 0.8, side)
        width, height = rng.uniform(20, 120) * unit, rng.uniform(20, 120) * unit
        pen.rectangle(
            [left, foot - height, left + width, foot], fill=_any_colour(rng, 50, 210), outline=_any_colour(rng, 20, 90)
        )
    return canvas


def _draw_pipe(pen: ImageDraw.ImageDraw, rng: Generator, side: int, edge: float) -> None:
    colour, width = jitter(rng, _any_colour(rng, 70, 200), 10), int(rng.integers(6, 26) * side / 512)
    shine = jitter(rng, _shade(np.array(colour, float) + 40, 1.0), 5)
    if rng.random() < 0.5:
        y = rng.uniform(0, edge)
        pen.line([0, y, side, y], fill=colour, width=width)
        pen.line([0, y - width / 4, side, y - width / 4], fill=shine, width=max(1, width // 5))
    else:
        x = rng.uniform(0, side)
        pen.line([x, 0, x, edge], fill=colour, width=width)
        pen.line([x - width / 4, 0, x - width / 4, edge], fill=shine, width=max(1, width // 5))


def _shade(colour: NDArray[np.float64], factor: float) -> Colour:
    red, green, blue = (int(v) for v in (colour * factor).clip(0, 255))
    return red, green, blue


def _any_colour(rng: Generator, low: int, high: int) -> Colour:
    red, green, blue = (int(v) for v in rng.integers(low, high, 3))
    return red, green, blue


def _photograph(rng: Generator, image: Image.Image) -> NDArray[np.uint8]:
    """Blur, contrast, brightness, haze and sensor noise."""
    if rng.random() < 0.35:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    pixels = np.asarray(image).astype(np.float32)
    pixels = (pixels - 128) * rng.uniform(0.7, 1.15) + 128 + rng.uniform(-28, 28)
    if rng.random() < 0.2:
        pixels = pixels * 0.65 + np.array([190, 195, 200]) * 0.35
    if rng.random() < 0.7:
        pixels = pixels + rng.normal(0, rng.uniform(0, 9), pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)
