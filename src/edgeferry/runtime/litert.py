"""LiteRT: the only file that imports ai_edge_litert.

Rules:
- An interpreter serves one call at a time, so there is a pool of them, one per concurrent inference. Calls from several
  threads are safe because an interpreter is taken out of the pool for the call.
- Interpreters map the same file, but XNNPACK packs the weights anew in each: of a large model there are at most
  LARGE_MAX, however many cores there are, or memory would go by cores x model.
- One thread per inference, XNNPACK on (the default resolver).
- Sides that the model leaves open take those of what comes in, and keep them until others come.
- Tensors go by their tensor names; a name that is empty or doubled becomes `name#index`.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from edgeferry.errors import ModelUnreadable, ModelUnsupported
from edgeferry.runtime.session import EngineSettings, Session, Tensor, TensorInfo

_ERRORS = (RuntimeError, ValueError, TypeError, OverflowError, AttributeError, LookupError, OSError)

SMALL_TOTAL_BYTES = 128 << 20
LARGE_MAX = 3

Detail = dict[str, Any]


class LitertSession:
    """See `Session`."""

    def __init__(self, path: Path, settings: EngineSettings) -> None:
        self._pool: queue.LifoQueue[Interpreter] = queue.LifoQueue()
        try:
            count = count_interpreters(path.stat().st_size, settings.concurrency)
            interpreters = [_open_interpreter(path, settings.threads) for _ in range(count)]
            self._input_details = _name_details(interpreters[0].get_input_details())
            self._output_details = _name_details(interpreters[0].get_output_details())
        except _ERRORS as error:
            raise ModelUnreadable(f"LiteRT cannot load {path.name}: {error!s:.400}") from error
        self._dequantisers = {name: _make_dequantiser(detail) for name, detail in self._output_details.items()}
        self.inputs = tuple(_describe(name, detail) for name, detail in self._input_details.items())
        self.outputs = tuple(_describe(name, detail) for name, detail in self._output_details.items())
        self._interpreters = tuple(interpreters)
        self._open = frozenset(info.name for info in self.inputs if None in info.shape)
        self._shapes: dict[Interpreter, dict[str, tuple[int, ...]]] = {each: {} for each in interpreters}
        for interpreter in interpreters:
            self._pool.put(interpreter)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session.run`."""
        return {name: self._dequantisers[name](stored) for name, stored in self.run_raw(inputs).items()}

    def run_raw(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session.run_raw`."""
        interpreter = self._pool.get()
        try:
            return self._run_on(interpreter, inputs)
        except _ERRORS as error:
            raise ModelUnsupported(f"LiteRT failed to run the model: {error!s:.400}") from error
        finally:
            self._pool.put(interpreter)

    def warm_up(self, inputs: Mapping[str, Tensor]) -> None:
        """Runs every interpreter of the pool once. Only before serving: it does not take them out of the pool."""
        try:
            for interpreter in self._interpreters:
                self._run_on(interpreter, inputs)
        except _ERRORS as error:
            raise ModelUnsupported(f"LiteRT failed to run the model: {error!s:.400}") from error

    def _run_on(self, interpreter: Interpreter, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._open:
            self._resize(interpreter, inputs)
        for name, value in inputs.items():
            interpreter.set_tensor(self._input_details[name]["index"], value)
        interpreter.invoke()
        return {name: interpreter.get_tensor(detail["index"]) for name, detail in self._output_details.items()}

    def _resize(self, interpreter: Interpreter, inputs: Mapping[str, Tensor]) -> None:
        shapes = {name: value.shape for name, value in inputs.items() if name in self._open}
        if shapes == self._shapes[interpreter]:
            return
        self._shapes[interpreter] = {}  # were it to fail half-way, the next call does all of it
        for name, shape in shapes.items():
            interpreter.resize_tensor_input(self._input_details[name]["index"], shape, strict=True)
        interpreter.allocate_tensors()
        self._shapes[interpreter] = shapes


def open_litert(path: Path, settings: EngineSettings) -> Session:
    """Loads a .tflite file; raises ModelUnreadable."""
    return LitertSession(path, settings)


def count_interpreters(model_bytes: int, concurrency: int) -> int:
    """How many interpreters of a model of that size are held for so many concurrent inferences."""
    return min(concurrency, max(LARGE_MAX, SMALL_TOTAL_BYTES // max(model_bytes, 1)))


def _open_interpreter(path: Path, threads: int) -> Interpreter:
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def _name_details(details: list[Detail] | None) -> dict[str, Detail]:
    details = details or []  # the stubs say it may be None
    names = [detail["name"] for detail in details]
    unique = [name if name and names.count(name) == 1 else f"{name}#{i}" for i, name in enumerate(names)]
    return dict(zip(unique, details, strict=True))


def _describe(name: str, detail: Detail) -> TensorInfo:
    signature = detail["shape_signature"]
    shape = tuple(int(side) if int(side) >= 0 else None for side in signature)
    return TensorInfo(name, shape, np.dtype(detail["dtype"]).name)


def _make_dequantiser(detail: Detail) -> Callable[[Tensor], Tensor]:
    """(stored - zero) * scale, per tensor or along the quantised axis; nothing for what is not quantised."""
    parameters = detail["quantization_parameters"]
    scales, zeros = parameters["scales"], parameters["zero_points"]
    if np.dtype(detail["dtype"]).kind not in "iu" or not len(scales):
        return lambda stored: stored
    shape = [1] * len(detail["shape"])
    if len(scales) > 1:
        shape[parameters["quantized_dimension"]] = len(scales)
    scale, zero = scales.astype(np.float32).reshape(shape), zeros.astype(np.float32).reshape(shape)
    return lambda stored: (stored.astype(np.float32) - zero) * scale
