"""ONNX Runtime: the only file that imports it.

Rules:
- One session serves all threads: `InferenceSession.run` is thread-safe.
- One thread per inference: with more, ORT's spinning workers cost twice the CPU and half the throughput on a busy
  two-core machine (docs: measured); where more are asked for, spinning is off.
- All optimisations: the layout step that only "all" has makes convolutions 1.8 times as fast.
- The file's path is given, not its bytes, so that the whole file is never held a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from edgeferry.errors import ModelUnreadable, ModelUnsupported
from edgeferry.runtime.session import EngineSettings, Session, Tensor, TensorInfo

_ERRORS: tuple[type[Exception], ...] = (  # ORT's own errors share no base below Exception
    _state.EPFail, _state.EngineError, _state.Fail, _state.InvalidArgument, _state.InvalidGraph,
    _state.InvalidProtobuf, _state.ModelLoaded, _state.NoModel, _state.NoSuchFile, _state.NotImplemented,
    _state.RuntimeException, RuntimeError, ValueError, TypeError, OverflowError,
)  # fmt: skip

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
} | {f"tensor({name})": name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")}

_ERRORS_ONLY = 3


class OnnxSession:
    """See `Session`."""

    def __init__(self, path: Path, settings: EngineSettings) -> None:
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=_make_options(settings), providers=["CPUExecutionProvider"]
            )
        except _ERRORS as error:
            raise ModelUnreadable(f"ONNX Runtime cannot load {path.name}: {error!s:.400}") from error
        self.inputs = tuple(_describe(node) for node in self._session.get_inputs())
        self.outputs = tuple(_describe(node) for node in self._session.get_outputs())
        self._output_names = [info.name for info in self.outputs]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session.run`."""
        try:
            values = self._session.run(self._output_names, inputs)
        except _ERRORS as error:
            raise ModelUnsupported(f"ONNX Runtime failed to run the model: {error!s:.400}") from error
        tensors = dict(zip(self._output_names, values, strict=True))
        return {name: value for name, value in tensors.items() if isinstance(value, np.ndarray)}

    def run_raw(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session.run_raw`: ONNX outputs carry no quantisation."""
        return self.run(inputs)

    def warm_up(self, inputs: Mapping[str, Tensor]) -> None:
        """Two runs: the first makes the arena, the second runs on the memory plan made of it."""
        self.run(inputs)
        self.run(inputs)


def open_onnx(path: Path, settings: EngineSettings) -> Session:
    """Loads an .onnx file; raises ModelUnreadable."""
    return OnnxSession(path, settings)


def _make_options(settings: EngineSettings) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    if settings.threads > 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _describe(node: Any) -> TensorInfo:
    shape = tuple(side if isinstance(side, int) else None for side in node.shape)
    return TensorInfo(node.name, shape, _DTYPES.get(node.type, node.type))
