"""Crop: a turned square of a picture as pixels of their own, and the way back from points in it.

Rules:
- Bilinear, four neighbours for each pixel, sampled at pixel centres; what lies beyond the edge is the edge's pixel.
- The picture is not filtered first, as MediaPipe's own image-to-tensor step does not: a crop is near its own size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeferry.vision.image import Picture, Pixels

Points = NDArray[np.float64]
"""[n, 2], (x, y)."""


@dataclass(frozen=True, slots=True)
class Square:
    """A square in a picture: its centre and `side` in pixels of the upright original, `turn` clockwise in radians."""

    x: float
    y: float
    side: float
    turn: float

    def to_picture(self, points: NDArray[np.floating[Any]]) -> Points:
        """Points in 0..1 of the square -> pixels of the upright original."""
        across, down = (points[:, 0] - 0.5) * self.side, (points[:, 1] - 0.5) * self.side
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return np.stack([self.x + across * cos - down * sin, self.y + across * sin + down * cos], axis=1)


def cut(picture: Picture, square: Square, width: int, height: int) -> Pixels:
    """The square as pixels [height, width, 3]."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    points = square.to_picture(np.stack([x.ravel(), y.ravel()], axis=1))
    rows, columns = picture.pixels.shape[:2]
    points *= (columns / picture.width, rows / picture.height)  # a JPEG may have been decoded smaller
    return _sample(picture.pixels, points - 0.5).reshape(height, width, 3)


def _sample(pixels: Pixels, points: Points) -> Pixels:
    """Colours [n, 3] at `points`, in which (0, 0) is the centre of the first pixel."""
    last = np.array(pixels.shape[1::-1]) - 1
    points = points.clip(0, last)
    near = points.astype(np.intp)
    far = np.minimum(near + 1, last)
    right, below = np.hsplit((points - near).astype(np.float32), 2)
    above = pixels[near[:, 1], near[:, 0]] * (1 - right) + pixels[near[:, 1], far[:, 0]] * right
    under = pixels[far[:, 1], near[:, 0]] * (1 - right) + pixels[far[:, 1], far[:, 0]] * right
    sampled: Pixels = np.rint(above * (1 - below) + under * below).astype(np.uint8)
    return sampled
