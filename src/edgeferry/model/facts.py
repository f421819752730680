"""ModelFacts: what stands in a model file, whichever format it has. Values only; the parsers fill them.

Rules:
- Names, shapes and types are as written in the file; nothing here is guessed.
- dtypes are numpy's names (`float32`, `uint8`, ...); a dimension the file leaves open is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ModelFormat = Literal["onnx", "litert"]


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One input or output. Where `quant_scale` is not 0: real value = (stored - quant_zero) * quant_scale."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    quant_scale: float = 0.0
    quant_zero: int = 0
    described_as: str = ""
    """Its name in TFLite metadata."""
    made_by: str = ""
    """For outputs: the operator whose values these are, looking through reshapes, casts and (de)quantisation."""


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What TFLite metadata says of a picture input; empty where it says nothing."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    colour: Literal["", "rgb", "grey"] = ""


@dataclass(frozen=True, slots=True)
class PostProcessFacts:
    """A `TFLite_Detection_PostProcess` operator: the tensors it writes, in its own fixed order, and its options.

    `outputs` names boxes, classes, scores, count.
    """

    outputs: tuple[str, ...]
    num_classes: int | None = None
    max_detections: int | None = None
    score_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file packed into a .tflite. `holds_labels` when the metadata says so."""

    name: str
    size_bytes: int
    holds_labels: bool = False


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model file, read.

    Attributes:
        inputs, outputs: in the file's order; ONNX initializers are no inputs.
        operators: how often each operator stands in the (first) graph; custom ones under their own names.
        opset: ONNX operator set version of the default domain; for LiteRT the schema version.
        metadata: ONNX metadata_props, or name, description, version, author and license of TFLite metadata.
        signatures: LiteRT signature definitions: key -> {name in signature: name of tensor}.
        weight_bytes: bytes of constant tensors.
    """

    format: ModelFormat
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    operators: Mapping[str, int]
    opset: int
    producer: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    signatures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    weight_bytes: int = 0
    picture: PictureFacts = PictureFacts()
    post_process: PostProcessFacts | None = None
    packed: tuple[PackedFile, ...] = ()
