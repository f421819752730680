"""v2_models: what the v2 protocol says of a server and of a model: metadata, and a configuration in Triton's words.

Rules:
- Metadata is the protocol's; the configuration holds what clients of pictures read: batch, format, dims.
- A batch is told where the first side of every input and output is 1 or open: dims then stand without it.
"""

from __future__ import annotations

import msgspec

from edgeferry.model.spec import ModelSpec
from edgeferry.wire.worker_frames import ModelTensors, TensorDescription

EXTENSIONS = ("classification", "model_repository", "model_configuration", "binary_tensor_data")
PICTURE = ModelTensors(
    "edgeferry_pipeline",
    (TensorDescription("picture", "BYTES", (1,)),),
    (TensorDescription("answer", "BYTES", (1,)),),
)
"""How a version of several stages shows itself: a picture in, its answer out."""
_TYPES = {"BYTES": "TYPE_STRING"}


class ServerMetadata(msgspec.Struct, frozen=True):
    """What answers GET /v2."""

    name: str
    version: str
    extensions: tuple[str, ...]


class LiveAnswer(msgspec.Struct, frozen=True):
    """Whether the process lives."""

    live: bool


class ReadyAnswer(msgspec.Struct, frozen=True):
    """Whether the server, or a model, answers."""

    ready: bool


class ModelMetadata(msgspec.Struct, frozen=True):
    """What goes into a model and comes out, and which versions of it answer; a side of -1 is open."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]


class ConfigTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """An input or output; `format` says where a picture's channels stand."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    format: str = ""


class ModelConfig(msgspec.Struct, frozen=True):
    """A model's configuration. `max_batch_size` 0: no side of the tensors is a batch."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: tuple[ConfigTensor, ...]
    output: tuple[ConfigTensor, ...]


def make_metadata(name: str, versions: tuple[str, ...], tensors: ModelTensors) -> ModelMetadata:
    """The metadata of a model whose `versions` answer."""
    shown = tensors if tensors.inputs else PICTURE
    return ModelMetadata(name, versions, shown.platform, shown.inputs, shown.outputs)


def make_config(name: str, spec: ModelSpec, tensors: ModelTensors) -> ModelConfig:
    """The configuration of a model with that spec."""
    shown = tensors if tensors.inputs else PICTURE
    every = (*shown.inputs, *shown.outputs)
    is_batch = all(len(one.shape) > 1 and one.shape[0] in (1, -1) for one in every)
    picture = spec.stages[0].input
    formats = {4: f"FORMAT_{picture.layout.upper()}"} if picture is not None else {}
    inputs = (_make_tensor(one, is_batch, formats.get(len(one.shape), "FORMAT_NONE")) for one in shown.inputs)
    outputs = (_make_tensor(one, is_batch, "") for one in shown.outputs)
    backend = shown.platform.partition("_")[0]
    return ModelConfig(name, shown.platform, backend, int(is_batch), tuple(inputs), tuple(outputs))


def _make_tensor(one: TensorDescription, is_batch: bool, layout: str) -> ConfigTensor:
    kind = _TYPES.get(one.datatype, f"TYPE_{one.datatype}")
    return ConfigTensor(one.name, kind, one.shape[is_batch:], layout)
