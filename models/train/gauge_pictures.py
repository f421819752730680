"""Draws the pictures of the gauge-state classifier. numpy and Pillow only.

Rules:
- Readings near the border between two states are never drawn: the truth of a picture is never in doubt.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.spec import DETECTOR_LABELS, GAUGE_LABELS, GAUGE_PX
from models.train import objects
from models.train.dataset import render
from models.train.scene import BACKGROUNDS, Placement, draw_background, draw_object

READINGS = {"low": (0.0, 0.28), "normal": (0.36, 0.60), "high": (0.70, 1.0)}
SEEDS = {"test": 1, "train": 50_000, "golden": 700_000, "calibrate": 900_000}


@dataclass(frozen=True)
class GaugeSet:
    """Pictures uint8 [n, side, side, 3] and their states int64 [n]."""

    pixels: NDArray[np.uint8]
    states: NDArray[np.int64]


def make_gauge_picture(seed: int, *, size_px: int = GAUGE_PX) -> tuple[NDArray[np.uint8], int]:
    """Draws one picture and returns it with the index of its state."""
    rng = np.random.default_rng(seed)
    side = size_px * 2
    canvas = draw_background(rng, BACKGROUNDS[int(rng.integers(0, 4))], side)
    pen, state = ImageDraw.Draw(canvas), int(rng.integers(0, len(GAUGE_LABELS)))
    size = rng.uniform(0.36, 0.78) * side
    x, y = rng.uniform(size / 2, side - size / 2, 2)
    if GAUGE_LABELS[state] in READINGS:
        objects.draw_gauge(pen, rng, x, y, size, value=rng.uniform(*READINGS[GAUGE_LABELS[state]]))
    elif rng.random() < 0.6:
        label = DETECTOR_LABELS.index(["fire", "leak", "vessel"][int(rng.integers(0, 3))])
        draw_object(pen, rng, Placement(label, 0.5, 0.83, 0.47), side)
    pixels = np.asarray(canvas.resize((size_px, size_px), Image.Resampling.BOX)).astype(np.float32)
    pixels = pixels * rng.uniform(0.7, 1.15) + rng.uniform(-25, 25)
    pixels += rng.normal(0, rng.uniform(0, 8), pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8), state


def make_gauge_set(kind: str, count: int) -> GaugeSet:
    """Draws `count` pictures of a kind named in `SEEDS`."""
    first = SEEDS[kind]
    drawn = render(partial(make_gauge_picture, size_px=GAUGE_PX), range(first, first + count))
    return GaugeSet(np.stack([pixels for pixels, _ in drawn]), np.array([state for _, state in drawn]))
