"""What the demo models are: classes, input, the grid of the detector, what their files say. numpy only.

Shared by training, export and checks. `models/README.md` explains the metadata keys to readers of the files.

Rules:
- One square prior per cell, so that the same network fits TFLite_Detection_PostProcess (all scales 1).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DETECTOR_LABELS = ["worker", "no_helmet", "fire", "vessel", "gauge", "leak"]
GAUGE_LABELS = ["low", "normal", "high", "no_gauge"]
CLASSES = {"1.0.0": 5, "1.1.0": 6, "1.2.0": 6, "1.3.0-bad": 6}

INPUT_PX = 256
GAUGE_PX = 96
GRID = 32  # stride 8
CELLS = GRID * GRID
PRIOR = 0.25  # side of every prior, as a share of the picture

SCORE_FLOOR = 0.05
NMS_IOU = 0.5


@dataclass(frozen=True)
class Card:
    """What a model file says about itself."""

    name: str
    version: str
    task: str
    family: str
    side_px: int
    labels: list[str]


def make_detector_card(version: str) -> Card:
    """Returns the card of a detector version."""
    labels = DETECTOR_LABELS[: CLASSES[version]]
    return Card("detector", version, "detection", "ef_detector", INPUT_PX, labels)


def make_gauge_card() -> Card:
    """Returns the card of the gauge-state classifier."""
    return Card("gauge", "1.0.0", "classification", "classifier", GAUGE_PX, GAUGE_LABELS)


def make_properties(card: Card) -> dict[str, str]:
    """Returns the ONNX metadata_props that let an inspector fill its spec."""
    return {
        "edgeferry.name": card.name,
        "edgeferry.version": card.version,
        "edgeferry.task": card.task,
        "edgeferry.family": card.family,
        "edgeferry.labels": "\n".join(card.labels),
        "edgeferry.input.width": str(card.side_px),
        "edgeferry.input.height": str(card.side_px),
        "edgeferry.input.layout": "nchw",
        "edgeferry.input.colour": "rgb",
        "edgeferry.input.dtype": "float32",
        "edgeferry.input.mean": "0 0 0",
        "edgeferry.input.std": "255 255 255",
        "edgeferry.input.fit": "stretch",
        "edgeferry.threshold": "0.5",
        "edgeferry.licence": "Apache-2.0",
    }


def make_priors() -> NDArray[np.float32]:
    """Returns float32 [CELLS, 4]: centre y, centre x, height, width of each cell's prior, in 0..1, row by row."""
    centres = (np.arange(GRID) + 0.5) / GRID
    y, x = np.meshgrid(centres, centres, indexing="ij")
    side = np.full(CELLS, PRIOR)
    return np.stack([y.ravel(), x.ravel(), side, side], 1).astype(np.float32)
