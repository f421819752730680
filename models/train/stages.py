"""The chain of trainings: v1.0 -> v1.1 (head only) -> v1.2 (everything) -> v1.3-bad (labels rotated).

Rules:
- Each stage leaves a checkpoint in `models/.cache/`; a stage whose checkpoint exists is not trained again.
"""

from pathlib import Path

import torch

from models.train.dataset import CACHE, make_scene_set
from models.train.fit import Recipe, fit, rotate_labels, widen
from models.train.net import Detector

TRAIN_SCENES = 4000
RECIPES = {
    "1.0.0": Recipe(2400, 2e-3),
    "1.1.0": Recipe(1600, 3e-3, head_only=True),
    "1.2.0": Recipe(1600, 1.5e-3),
}


def train_detectors() -> dict[str, Detector]:
    """Returns the detector of every version, training those that have no checkpoint."""
    torch.set_num_threads(1)  # two threads gain nothing here, and others need the core
    torch.manual_seed(0)
    first = _train("1.0.0", Detector(5), 5)
    second = _train("1.1.0", widen(first, 6), 6)
    third = _train("1.2.0", second, 6)
    return {"1.0.0": first, "1.1.0": second, "1.2.0": third, "1.3.0-bad": rotate_labels(third)}


def _train(version: str, start: Detector, classes: int) -> Detector:
    path = CACHE / f"detector-{version}.pt"
    if not path.exists():
        print(f"detector {version}: {RECIPES[version]}", flush=True)
        scenes = make_scene_set(f"train-{classes}", TRAIN_SCENES, classes=classes)
        validate = make_scene_set("validate", 100).limited_to(classes)
        part = path.with_suffix(".part.pt")
        trained = fit(start, scenes, RECIPES[version], validate=validate, part=part)
        torch.save(trained.state_dict(), part)
        part.replace(path)
    return _read(path, classes)


def _read(path: Path, classes: int) -> Detector:
    net = Detector(classes)
    net.load_state_dict(torch.load(path))
    return net.eval()


if __name__ == "__main__":
    train_detectors()
