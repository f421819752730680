"""Makes the committed pictures with their truth: scenes for the demo, golden pictures for publishing.

Rules:
- None of them is ever trained on: scenes are composed by hand, golden pictures have seeds of their own.
- Golden pictures are chosen by what is drawn in them, never by what a model answers.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.spec import DETECTOR_LABELS as LABELS
from models.spec import GAUGE_LABELS
from models.train.gauge_pictures import SEEDS as GAUGE_SEEDS
from models.train.gauge_pictures import make_gauge_picture
from models.train.scene import Placement, Scene, compose, make_scene

SCENE_PX, GOLDEN_PX, GAUGE_GOLDEN_PX = 512, 256, 160
SCENE_SEED, GOLDEN_SEED = 600_000, 700_000
GOLDEN_WITHOUT_LEAK, GOLDEN_WITH_LEAK = 5, 3
SCENE_QUALITY = 92
GOLDEN_QUALITY = 60  # golden pictures cross the thin link once


def _at(label: str, x: float, y: float, size: float) -> Placement:
    return Placement(LABELS.index(label), x, y, size)


SCENES: dict[str, tuple[str, list[Placement]]] = {
    "pump-room": ("plant", [_at("gauge", 0.3, 0.38, 0.2), _at("worker", 0.74, 0.88, 0.5), _at("leak", 0.3, 0.9, 0.36)]),
    "sea-watch": ("sea", [_at("vessel", 0.36, 0.9, 0.5), _at("vessel", 0.8, 0.66, 0.26)]),
    "flare-deck": (
        "deck",
        [_at("fire", 0.18, 0.84, 0.42), _at("worker", 0.5, 0.88, 0.42), _at("no_helmet", 0.8, 0.9, 0.42)],
    ),
    "manifold": ("hall", [_at("gauge", 0.22, 0.34, 0.2), _at("gauge", 0.56, 0.36, 0.2), _at("leak", 0.62, 0.9, 0.42)]),
    "crane-deck": (
        "deck",
        [_at("no_helmet", 0.2, 0.88, 0.46), _at("leak", 0.52, 0.93, 0.3), _at("fire", 0.84, 0.8, 0.3)],
    ),
    "boat-landing": (
        "sea",
        [_at("vessel", 0.66, 0.7, 0.44), _at("worker", 0.16, 0.95, 0.42), _at("leak", 0.5, 0.96, 0.28)],
    ),
}


def write_pictures(root: Path) -> None:
    """Writes scenes/, golden/v1.0, golden/v1.1 and gauge/golden under `root`."""
    for i, (name, (background, placements)) in enumerate(SCENES.items()):
        rng = np.random.default_rng(SCENE_SEED + i)
        scene = compose(rng, background, placements, size_px=SCENE_PX)
        _write_scene(root / "scenes" / name, scene, quality=SCENE_QUALITY)
    plain = list(_choose(GOLDEN_WITHOUT_LEAK, with_leak=False))
    leaking = list(_choose(GOLDEN_WITH_LEAK, with_leak=True))
    for folder, chosen in (("v1.0", plain), ("v1.1", plain + leaking)):
        for seed, scene in chosen:
            _write_scene(root / "golden" / folder / f"golden-{seed}", scene)
    for seed, pixels, state in _choose_gauges():
        truth = {"label": GAUGE_LABELS[state]}
        _write(root / "gauge" / "golden" / f"{GAUGE_LABELS[state]}-{seed}", pixels, truth)


def _choose(count: int, *, with_leak: bool) -> Iterator[tuple[int, Scene]]:
    """Yields the first seeds whose scenes are clear and bring the class that was shown least so far."""
    shown = np.zeros(len(LABELS), int)
    wanted = set(range(len(LABELS))) if with_leak else set(range(len(LABELS) - 1))
    seed = GOLDEN_SEED
    while count:
        scene = make_scene(seed, size_px=GOLDEN_PX)
        drawn = set(scene.labels.tolist())
        rare = set(np.flatnonzero(shown == shown[sorted(wanted)].min()).tolist())
        if _is_clear(scene) and drawn <= wanted and (not with_leak or LABELS.index("leak") in drawn) and drawn & rare:
            shown += np.bincount(scene.labels, minlength=len(LABELS))
            count -= 1
            yield seed, scene
        seed += 1


def _is_clear(scene: Scene) -> bool:
    """Says whether a person sees at once what is there: two to four objects, people tall, nothing tiny."""
    heights = scene.boxes[:, 2] - scene.boxes[:, 0]
    people = np.isin(scene.labels, [LABELS.index("worker"), LABELS.index("no_helmet")])
    return 2 <= len(heights) <= 4 and bool((heights > 0.15).all()) and bool((heights[people] > 0.3).all())


def _choose_gauges() -> Iterator[tuple[int, NDArray[np.uint8], int]]:
    """Yields two pictures of every state."""
    left, seed = dict.fromkeys(range(len(GAUGE_LABELS)), 2), GAUGE_SEEDS["golden"]
    while any(left.values()):
        pixels, state = make_gauge_picture(seed, size_px=GAUGE_GOLDEN_PX)
        if left[state]:
            left[state] -= 1
            yield seed, pixels, state
        seed += 1


def _write_scene(path: Path, scene: Scene, *, quality: int = GOLDEN_QUALITY) -> None:
    pairs = zip(scene.labels, scene.boxes, strict=True)
    objects = [{"label": LABELS[label], "box": [round(float(v), 4) for v in box]} for label, box in pairs]
    _write(path, scene.pixels, {"objects": objects}, quality=quality)


def _write(
    path: Path, pixels: NDArray[np.uint8], truth: Mapping[str, object], *, quality: int = GOLDEN_QUALITY
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path.with_name(path.name + ".jpg"), quality=quality)
    path.with_name(path.name + ".json").write_text(json.dumps(truth) + "\n")
