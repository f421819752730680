"""ModelSpec: how pictures become a model's input, and its outputs become an answer.

A version has one stage for most models, several for a pipeline. What this file leaves to others: filling a spec from
model bytes (`inspect_onnx`, `inspect_litert`), using it (`vision/`).

Rules:
- A spec is a frozen value that round-trips through JSON and TOML; unknown fields are refused.
- Pixel arithmetic is `value = (pixel - mean) / std` on pixels 0..255, then, where `quant_scale` is set,
  `rint(value / quant_scale) + quant_zero`.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from edgeferry.errors import ManifestInvalid, SpecIncomplete
from edgeferry.model.labels import LABELS_MAX_LINES

Task = Literal["classification", "detection", "pose", "landmarks", "segmentation", "image", "tensors"]
Layout = Literal["nhwc", "nchw"]
Colour = Literal["rgb", "bgr", "grey"]
Dtype = Literal["uint8", "int8", "float16", "float32"]
Fit = Literal["stretch", "letterbox", "letterbox_top_left", "letterbox_edge", "crop"]
Resample = Literal["bilinear", "bicubic"]
Parameter = str | float | int | bool | tuple[float, ...]


class InputSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The picture input of one stage. `width`, `height` in pixels; `pad` is a grey value 0..255."""

    width: int
    height: int
    layout: Layout
    colour: Colour = "rgb"
    dtype: Dtype
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    quant_scale: float = 0.0
    quant_zero: int = 0
    fit: Fit = "stretch"
    pad: int = 0
    resample: Resample = "bilinear"
    resize_to: int = 0
    """For `crop`: the shorter side is first resized to this many pixels (0: to the crop itself)."""
    scale_jpeg: bool = True
    """Whether a JPEG over twice as large is decoded at a smaller scale, in a fraction of the time."""
    tensor: str = ""
    """Name of the input tensor; empty when the model has only one."""
    size_tensor: str = ""
    """Name of a second input that takes the original (height, width) as float32 [1, 2]; empty when there is none."""


class AnswerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The answer family (a file in `vision/answers/`), its parameters, and output tensor names by role where known."""

    family: str
    parameters: dict[str, Parameter] = {}
    outputs: dict[str, str] = {}


class LabelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where labels come from: `names`, else the bundle's `file`, else `packed` in the model file.

    The label of a class is the line at `class + offset` of the unfiltered list.
    """

    names: tuple[str, ...] = ()
    file: str = ""
    packed: str = ""
    offset: int = 0


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`score` 0..1 below which nothing is answered, `iou` for suppression, and the most results one answer holds."""

    score: float = 0.5
    iou: float = 0.45
    max_results: int = 100


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model file and what surrounds it. `input` is None where no picture goes in: tensors, points."""

    file: str
    task: Task
    input: InputSpec | None = None
    answer: AnswerSpec
    labels: LabelSpec = LabelSpec()
    thresholds: Thresholds = Thresholds()


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """All stages of a model version, in the order in which a picture walks through them."""

    stages: tuple[Stage, ...]

    def get_answering(self) -> Stage:
        """The stage whose task and labels the answer has: the last that sees a picture; those after it only add."""
        return next((stage for stage in reversed(self.stages) if stage.input is not None), self.stages[-1])


SPEC_MAX_CHARS = 32 << 10
"""Of a spec file: a dotted key costs the TOML parser its length squared, and bundles come from outside."""
_INPUT_LIMIT_PIXELS = 16_384


def check_spec(spec: ModelSpec) -> ModelSpec:
    """Returns `spec` when its values make sense together; raises ManifestInvalid naming the first that does not."""
    if not spec.stages:
        raise ManifestInvalid("expected at least one stage in the spec, found none")
    for stage in spec.stages:
        if stage.input is not None:
            _check_input(stage.input)
        if abs(stage.labels.offset) > LABELS_MAX_LINES:
            raise ManifestInvalid(f"expected labels.offset within {LABELS_MAX_LINES}, found {stage.labels.offset}")
        _check_share("thresholds.score", stage.thresholds.score)
        _check_share("thresholds.iou", stage.thresholds.iou)
        if not 0 < stage.thresholds.max_results <= 10_000:
            raise ManifestInvalid(f"expected thresholds.max_results in 1..10000, found {stage.thresholds.max_results}")
    return spec


def _check_input(spec: InputSpec) -> None:
    if not (0 < spec.width <= _INPUT_LIMIT_PIXELS and 0 < spec.height <= _INPUT_LIMIT_PIXELS):
        raise ManifestInvalid(f"expected input sides in 1..{_INPUT_LIMIT_PIXELS}, found {spec.width}x{spec.height}")
    channels = 1 if spec.colour == "grey" else 3
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) not in (1, channels):
            raise ManifestInvalid(f"expected 1 or {channels} values in input.{name}, found {len(values)}")
    if any(value == 0 for value in spec.std):
        raise ManifestInvalid("expected input.std without zeros")
    if not all(map(math.isfinite, (*spec.mean, *spec.std, spec.quant_scale))) or spec.quant_scale < 0:
        raise ManifestInvalid("expected finite numbers in input.mean, std and quant_scale, and no scale below 0")
    for name, value, most in (("pad", spec.pad, 255), ("resize_to", spec.resize_to, _INPUT_LIMIT_PIXELS)):
        if not 0 <= value <= most:
            raise ManifestInvalid(f"expected input.{name} in 0..{most}, found {value}")
    if not -128 <= spec.quant_zero <= 255:
        raise ManifestInvalid(f"expected input.quant_zero in -128..255, found {spec.quant_zero}")


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ManifestInvalid(f"expected {name} in 0..1, found {value}")


def read_spec_toml(text: str) -> dict[str, object]:
    """Parses a `--spec` file into the plain mapping that overrides what inspection found; raises SpecIncomplete.

    The file holds the fields of one Stage (`task`, `[input]`, `[answer]`, `[labels]`, `[thresholds]`) or `[[stages]]`.
    """
    import tomllib  # whoever reads no such file, a worker above all, starts sooner

    if len(text) > SPEC_MAX_CHARS:
        raise SpecIncomplete(f"expected a spec file of at most {SPEC_MAX_CHARS} characters, found {len(text)}")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecIncomplete(f"expected a TOML spec file: {error}") from error
