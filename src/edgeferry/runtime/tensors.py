"""tensors: a loaded model in the v2 protocol's words: its inputs and outputs, and runs on raw tensors.

What this file leaves to others: JSON and binary bodies (`wire/v2_tensors.py`), the engines (`open.py`).

Rules:
- Names, datatypes and shapes are held against the model before its engine sees anything: a wrong one is RequestInvalid
  and names both. What the engine still refuses is the caller's fault too: only their values and open sides are left.
- Outputs stay in the model's own dtypes. Text tensors are BYTES and must be UTF-8.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeferry.errors import ModelUnsupported, RequestInvalid
from edgeferry.runtime.session import Session, Tensor, TensorInfo
from edgeferry.wire.v2_tensors import BYTES, ITEM_BYTES, TensorEntry, iterate_bytes, pack_bytes
from edgeferry.wire.worker_frames import BODY_MAX_BYTES, AskTensors, ModelTensors, TensorDescription

_DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "object": BYTES,
}  # fmt: skip
_DTYPES = {datatype: dtype for dtype, datatype in _DATATYPES.items()}
_PLATFORMS = {".onnx": "onnxruntime_onnx", ".tflite": "litert_tflite"}


@dataclass(frozen=True, slots=True)
class TensorsAnswer:
    """Outputs, their bytes one after the other, and what each step took (milliseconds)."""

    outputs: tuple[TensorEntry, ...]
    body: bytes
    timings_ms: dict[str, float]


def describe_tensors(file_name: str, session: Session) -> ModelTensors:
    """The model's inputs and outputs; a dtype that the protocol does not have keeps its own name."""
    platform = _PLATFORMS.get(Path(file_name).suffix.lower(), "")
    return ModelTensors(platform, tuple(map(_describe, session.inputs)), tuple(map(_describe, session.outputs)))


def run_tensors(session: Session, data: bytes | bytearray | memoryview, ask: AskTensors) -> TensorsAnswer:
    """Runs the model on the tensors in `data`.

    Raises:
        RequestInvalid: names, datatypes or shapes are not the model's, the engine refuses them, or what comes out is
            more than a frame holds.
    """
    inputs = _read_inputs(session, data, ask)
    wanted = _list_wanted(session, ask.outputs)
    started = time.perf_counter()
    try:
        found = session.run_raw(inputs)
    except ModelUnsupported as error:
        raise RequestInvalid("the engine cannot run on these tensors: their values or open sides do not fit") from error
    infer_ms = round((time.perf_counter() - started) * 1000, 3)
    blocks = [_pack_output(name, found) for name in wanted]
    if sum(len(block) for _, block in blocks) > BODY_MAX_BYTES:
        raise RequestInvalid(f"expected outputs of at most {BODY_MAX_BYTES} bytes, found more: ask for fewer")
    body = b"".join(block for _, block in blocks)
    return TensorsAnswer(tuple(entry for entry, _ in blocks), body, {"infer": infer_ms})


def warm_up_tensors(session: Session) -> None:
    """Runs the engine on zeros, as far as it runs on them: values and open sides are the callers' to choose."""
    with suppress(ModelUnsupported, TypeError):
        session.warm_up({info.name: _make_blank(info) for info in session.inputs})


def _make_blank(info: TensorInfo) -> Tensor:
    """Zeros, or empty texts; open sides are 1. Raises TypeError for a dtype that numpy does not have."""
    sides = tuple(1 if side is None else side for side in info.shape)
    return np.full(sides, "", object) if info.dtype == _DTYPES[BYTES] else np.zeros(sides, info.dtype)


def _describe(info: TensorInfo) -> TensorDescription:
    shape = tuple(-1 if side is None else side for side in info.shape)
    return TensorDescription(info.name, _DATATYPES.get(info.dtype, info.dtype), shape)


def _read_inputs(session: Session, data: bytes | bytearray | memoryview, ask: AskTensors) -> dict[str, Tensor]:
    known = {info.name: info for info in session.inputs}
    found = [entry.name for entry in ask.inputs]
    if sorted(found) != sorted(known):
        raise RequestInvalid(f"expected the inputs {_join(list(known))}, found {_join(found)}")
    inputs, at = {}, 0
    for entry in ask.inputs:
        _require_fit(entry, known[entry.name])
        inputs[entry.name] = _read_tensor(memoryview(data)[at : at + entry.size_bytes], entry)
        at += entry.size_bytes
    return inputs


def _require_fit(entry: TensorEntry, info: TensorInfo) -> None:
    fits = len(info.shape) == len(entry.shape) and all(
        a in (None, b) for a, b in zip(info.shape, entry.shape, strict=True)
    )
    wanted = _describe(info)
    if not fits or entry.datatype != wanted.datatype:
        raise RequestInvalid(
            f"expected input {info.name!r:.80} {wanted.datatype}{list(wanted.shape)},"
            f" found {entry.datatype:.20}{list(entry.shape)}"
        )


def _read_tensor(data: memoryview, entry: TensorEntry) -> Tensor:
    count = math.prod(entry.shape)
    if entry.datatype == BYTES:
        return _read_texts(data, entry, count)
    if len(data) != count * ITEM_BYTES[entry.datatype]:
        raise RequestInvalid(f"expected {count} elements in input {entry.name!r:.80}, found {len(data)} bytes")
    if entry.datatype == "BOOL":  # any byte but 0 and 1 would be no bool to the engine
        return np.array(np.frombuffer(data, np.uint8).reshape(entry.shape) != 0)
    flat = np.frombuffer(data, np.dtype(_DTYPES[entry.datatype]).newbyteorder("<"))
    return np.require(flat.reshape(entry.shape), _DTYPES[entry.datatype], "A")


def _read_texts(data: memoryview, entry: TensorEntry, count: int) -> Tensor:
    texts = np.full(count, "", object)
    try:
        texts[:] = [bytes(element).decode() for element in iterate_bytes(data, limit=count)]
    except (UnicodeDecodeError, ValueError) as error:
        raise RequestInvalid(f"expected {count} texts in UTF-8 in input {entry.name!r:.80}, found others") from error
    return texts.reshape(entry.shape)


def _list_wanted(session: Session, wanted: Sequence[str]) -> list[str]:
    known = [info.name for info in session.outputs]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise RequestInvalid(f"expected outputs among {_join(known)}, found {_join(unknown)}")
    return list(wanted) or known


def _pack_output(name: str, found: dict[str, Tensor]) -> tuple[TensorEntry, bytes]:
    value = found.get(name)
    datatype = _DATATYPES.get(value.dtype.name) if value is not None else None
    if value is None or datatype is None:
        raise RequestInvalid(f"output {name!r:.80} is no tensor of the v2 protocol: ask for others")
    if datatype == BYTES:
        block = pack_bytes([str(text).encode("utf-8", "surrogateescape") for text in value.ravel()])
    else:
        block = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
    return TensorEntry(name, datatype, value.shape, len(block)), block


def _join(names: Sequence[str]) -> str:
    return f"{', '.join(names):.200}" or "none"
