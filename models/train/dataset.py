"""Renders scenes in child processes and keeps them in `models/.cache/`, so that training never waits for drawing.

Rules:
- The seeds of a set are a plain range; ranges of training, calibration and test never meet (`SEEDS`).
- A cached file is only ever the rendering of its name: (kind, first seed, count).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.train.scene import Scene, make_scene

Drawn = TypeVar("Drawn")
CACHE = Path(__file__).resolve().parents[1] / ".cache"
SEEDS = {"test": 1, "train-5": 100_000, "train-6": 300_000, "validate": 800_000, "calibrate": 900_000}


@dataclass(frozen=True)
class SceneSet:
    """Pictures uint8 [n, side, side, 3] with the boxes and labels of each."""

    pixels: NDArray[np.uint8]
    boxes: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]

    def limited_to(self, classes: int) -> "SceneSet":
        """Returns the same pictures with the truth of only the first `classes` classes."""
        keep = [labels < classes for labels in self.labels]
        boxes = [b[k] for b, k in zip(self.boxes, keep, strict=True)]
        return SceneSet(self.pixels, boxes, [x[k] for x, k in zip(self.labels, keep, strict=True)])


def make_scene_set(kind: str, count: int, *, classes: int = 6) -> SceneSet:
    """Returns `count` scenes of a kind named in `SEEDS`, rendering them first if the cache lacks them."""
    first = SEEDS[kind]
    path = CACHE / f"scenes-{classes}-{first}-{count}.npz"
    if not path.exists():
        scenes = render(partial(make_scene, classes=classes), range(first, first + count))
        _write_scenes(path, scenes)
    return _read_scenes(path)


def render(draw: Callable[[int], Drawn], seeds: range) -> list[Drawn]:
    """Draws every seed in two child processes and returns the drawings in order."""
    with get_context("fork").Pool(2) as pool:
        return pool.map(draw, seeds, chunksize=64)


def _write_scenes(path: Path, scenes: list[Scene]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = np.array([len(scene.labels) for scene in scenes])
    boxes, labels = np.concatenate([s.boxes for s in scenes]), np.concatenate([s.labels for s in scenes])
    part = path.with_suffix(".part.npz")
    np.savez(part, pixels=np.stack([s.pixels for s in scenes]), boxes=boxes, labels=labels, counts=counts)
    part.replace(path)


def _read_scenes(path: Path) -> SceneSet:
    with np.load(path) as stored:
        cuts = np.cumsum(stored["counts"])[:-1]
        return SceneSet(stored["pixels"], np.split(stored["boxes"], cuts), np.split(stored["labels"], cuts))
