"""Draws labelled textures for the nets trained here: stripes whose angle and pitch are the class. numpy only.

Rules:
- Noise and near classes keep the task hard, so that gradients do not die away before the fine-tunes begin.
- `worn` pictures are the new site that a fine-tune is for: turned, dimmed, lit from one side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ANGLES = 8
SIDE_PX = 32


def draw_textures(
    rng: np.random.Generator, count: int, *, classes: int, worn: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns pictures float32 [count, 3, SIDE_PX, SIDE_PX], about 0..1, and their classes int64 [count]."""
    labels = rng.integers(0, classes, count)
    angle = (labels % ANGLES) * np.pi / ANGLES + rng.normal(0.15 if worn else 0, 0.12, count)
    pitch = 2 + 1.5 * (labels // ANGLES) + rng.normal(0, 0.3, count)
    y, x = np.meshgrid(np.arange(SIDE_PX) / SIDE_PX, np.arange(SIDE_PX) / SIDE_PX, indexing="ij")
    along = x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]
    waves = np.sin(2 * np.pi * (along * pitch[:, None, None] + rng.random((count, 1, 1))))
    colours = rng.uniform(-0.4, 0.4, (count, 3, 1, 1))
    pictures = 0.5 + waves[:, None] * colours + rng.normal(0, 0.25, (count, 3, SIDE_PX, SIDE_PX))
    if worn:
        pictures = pictures * 0.7 + 0.2 * x
    return pictures.astype(np.float32), labels
