"""Session: what the worker needs of an engine, as a Protocol; one implementation per engine.

What this file leaves to others: ONNX Runtime (`onnx.py`), LiteRT (`litert.py`), choosing between them (`open.py`).

Rules:
- `run` may be called from several threads at once, as many as the session was opened for; each call runs on one engine
  thread (its own, unless `threads` says more).
- Inputs are taken as they are: right name, shape and dtype. Outputs come by tensor name; integer outputs that carry a
  quantisation come dequantised, as float32, but from `run_raw` as the model has them.
- Whatever an engine raises becomes ModelUnreadable (while opening) or ModelUnsupported (while running).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

Tensor = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output; a dimension that the model leaves open is None; `dtype` is numpy's name (texts: object)."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`threads` per inference; `concurrency`: how many inferences may run at once."""

    threads: int = 1
    concurrency: int = 1


class Session(Protocol):
    """A loaded model."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """Inputs in the model's order."""

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Outputs in the model's order."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One inference. Raises ModelUnsupported when the engine refuses the inputs or fails on them."""

    def run_raw(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `run`, with outputs in the model's own dtypes."""

    def warm_up(self, inputs: Mapping[str, Tensor]) -> None:
        """Runs everything once that a first request would otherwise wait for. Raises ModelUnsupported."""


class Engine(Protocol):
    """What an engine's file offers: a function that opens a model file."""

    def __call__(self, path: Path, settings: EngineSettings) -> Session:
        """Loads a model; raises ModelUnreadable, or ToolMissing when the engine is not installed."""
