"""Edits of TFLite files, from bytes to bytes; the file is read into the schema's objects and packed again.

Rules:
- The labels packed behind the flatbuffer stay behind it.
- The same bytes on every run.
- No torch: `models/train/tflite_writer.py` packs labels alike, but needs it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from models.train.tflite_metadata import LABELS_FILE, make_detector_metadata
from scripts.delta_corpus.onnx_edits import keep_above

FLOATS = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}
FIXED_DATE = (1980, 1, 1, 0, 0, 0)


def edit_model(data: bytes, change: Callable[[Any], None]) -> bytes:
    """Reads a file, lets `change` alter the model object, packs it again."""
    flat, files = split_files(data)
    model = schema.ModelT.InitFromPackedBuf(flat, 0)
    change(model)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return pack_files(bytes(builder.Output()), files)


def split_files(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The flatbuffer, and the files packed behind it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        return data[: entries[0].header_offset], {entry.filename: archive.read(entry) for entry in entries}


def pack_files(flat: bytes, files: dict[str, bytes]) -> bytes:
    """The flatbuffer with a plain stored zip behind it."""
    stream = io.BytesIO(flat)
    stream.seek(0, io.SEEK_END)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, FIXED_DATE), data)
    return stream.getvalue()


def prune_each(data: bytes) -> bytes:
    """Half of every weight tensor, the smallest ones, multiplied by 0: what was negative becomes -0.0."""

    def change(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            buffer = model.buffers[tensor.buffer]
            if tensor.type in FLOATS and len(tensor.shape) == 4 and buffer.data is not None:
                weight = np.asarray(buffer.data, np.uint8).view(FLOATS[tensor.type])
                buffer.data = (weight * keep_above(weight, float(np.median(np.abs(weight))))).view(np.uint8)

    return edit_model(data, change)


def set_version(data: bytes) -> bytes:
    """Another version in the metadata table of a detector; everything else stays."""
    metadata = make_detector_metadata("platform detector", "1.2.1-rc2", 256)

    def change(model: Any) -> None:
        model.buffers[model.metadata[0].buffer].data = np.frombuffer(metadata, np.uint8)

    return edit_model(data, change)


def set_description(data: bytes) -> bytes:
    """Another description."""

    def change(model: Any) -> None:
        model.description = "platform detector, second review"

    return edit_model(data, change)


def rename_label(data: bytes) -> bytes:
    """Another word for the first label in the packed file; the flatbuffer stays as it is."""
    flat, files = split_files(data)
    _, rest = files[LABELS_FILE].split(b"\n", 1)
    return pack_files(flat, files | {LABELS_FILE: b"person at work\n" + rest})


def add_relu(data: bytes) -> bytes:
    """A ReLU on the third output (scores), which is never negative."""

    def change(model: Any) -> None:
        graph = model.subgraphs[0]
        source = graph.outputs[2]
        added = schema.TensorT()
        added.name, added.shape = "scores.relu", graph.tensors[source].shape
        added.type, added.buffer = graph.tensors[source].type, 0
        graph.tensors.append(added)
        graph.outputs = np.array([*graph.outputs[:2], len(graph.tensors) - 1, *graph.outputs[3:]], np.int32)
        graph.operators.append(_make_relu(model, int(source), len(graph.tensors) - 1))

    return edit_model(data, change)


def reorder(data: bytes) -> bytes:
    """The same buffers in another order, and every reference to them changed."""

    def change(model: Any) -> None:
        count = len(model.buffers)
        order = [0, *(1 + np.random.default_rng(5).permutation(count - 1)).tolist()]  # buffer 0 must stay the empty one
        model.buffers = [model.buffers[i] for i in order]
        places = {old: new for new, old in enumerate(order)}
        for holder in [*model.subgraphs[0].tensors, *model.metadata]:
            holder.buffer = places[holder.buffer]

    return edit_model(data, change)


def _make_relu(model: Any, source: int, output: int) -> Any:
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    code.version = 1
    model.operatorCodes.append(code)
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = np.array([source], np.int32), np.array([output], np.int32)
    return operator
