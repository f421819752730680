"""Which nets are trained for the corpus, from what, how long and how fast: data only, no torch.

Rules:
- Rates are those of usual fine-tunes; budgets are steps, never seconds.
- A run that names a parent starts from its weights; one that names none starts from its seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CLASSES = 24
BATCH = 32


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        net: "plain", "thin" or "gauge" (a classifier's architecture).
        optimizer: "statistics" moves batch norm's running statistics and trains nothing.
        rate: the highest learning rate; it falls to 1 % along half a cosine.
        parent: the run whose weights it starts from.
        trained: first words of the parts that are trained; empty for all. The others stay bit-identical.
        norm_moves: whether batch norm's running statistics follow the pictures in the trained parts.
        worn: whether the pictures come from the new site (`textures.py`).
    """

    net: Literal["plain", "thin", "gauge"]
    optimizer: Literal["adamw", "sgd", "momentum", "statistics"]
    steps: int
    rate: float
    parent: str = ""
    trained: tuple[str, ...] = ()
    norm_moves: bool = True
    worn: bool = True
    classes: int = CLASSES
    seed: int = 0


RUNS = {
    "plain-v1": Run("plain", "adamw", 800, 2e-3, worn=False),
    "plain-sgd-few": Run("plain", "sgd", 20, 1e-3, "plain-v1", norm_moves=False, seed=1),
    "plain-sgd-many": Run("plain", "momentum", 500, 2e-3, "plain-v1", seed=2),
    "plain-adamw-few": Run("plain", "adamw", 20, 1e-4, "plain-v1", seed=3),
    "plain-adamw-many": Run("plain", "adamw", 500, 1e-4, "plain-v1", seed=4),
    "plain-retrained": Run("plain", "adamw", 800, 2e-3, worn=False, seed=7),
    "plain-drift": Run("plain", "statistics", 20, 0.0, "plain-v1", seed=8),
    "thin-v1": Run("thin", "adamw", 500, 2e-3, worn=False),
    "thin-sgd-few": Run("thin", "momentum", 25, 1e-3, "thin-v1", norm_moves=False, seed=1),
    "thin-adamw-few": Run("thin", "adamw", 20, 3e-5, "thin-v1", norm_moves=False, seed=2),
    "thin-adamw-many": Run("thin", "adamw", 300, 1e-4, "thin-v1", seed=3),
    "thin-head": Run("thin", "adamw", 150, 1e-3, "thin-v1", trained=("head",), norm_moves=False, seed=4),
    "thin-drift": Run("thin", "statistics", 20, 0.0, "thin-v1", seed=5),
    "gauge-retrained": Run("gauge", "adamw", 300, 3e-3, worn=False, classes=4, seed=6),
}
