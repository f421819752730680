"""Draft: a stage in the making, and what every family fills of it: the picture input, and how labels fit.

Conventions, each told in a note when it is applied:
- A uint8 picture input takes pixels as they are (TFLite Task Library: normalisation of metadata is for float inputs).
- LiteRT models are fed by plain resizing (the same library). ONNX has no convention: input.fit is missing there.
- Three channels are RGB where nothing is said.

Labels, where the number n of classes is known: n lines fit as they are; n + 1 lines fit with offset 1 when the first
one stands for nothing (`???`, `background`). Anything else is for the operator to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgeferry.model.facts import ModelFacts, TensorFacts
from edgeferry.model.labels import is_placeholder
from edgeferry.model.spec import Colour, Fit

DTYPES = ("uint8", "int8", "float16", "float32")
NO_LABELS = "the model carries no labels: add them with --labels FILE, or as labels.names"


@dataclass(slots=True)
class Draft:
    """A stage in the making. `missing`: field -> why it is not known; `notes`: conventions that were applied.

    `names`: the only label of a family that has one, for where neither the file nor the operator says any.
    """

    labels: Sequence[str]
    stage: dict[str, object] = field(default_factory=dict)
    input: dict[str, object] = field(default_factory=dict)
    answer: dict[str, object] = field(default_factory=dict)
    thresholds: dict[str, object] = field(default_factory=dict)
    offset: int = 0
    notes: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def fill_published(self, fields: Mapping[str, object], why: str) -> None:
        """Fills those fields of the input that are not known yet as a recognised model is published."""
        taken = [name for name in fields if name not in self.input]
        for name in taken:
            self.input[name] = fields[name]
            self.missing.pop(f"input.{name}", None)
        if taken:
            self.notes.append(f"{', '.join(f'input.{name}' for name in taken)}: {why}")

    def fill_names(self, only: str) -> None:
        """What the only class is called, where there are no labels."""
        if not self.labels:
            self.names = (only,)
            self.notes.append(f"labels.names: {only}, the only class")

    def to_stage(self) -> dict[str, object]:
        """The fields found, as in a spec TOML; labels are added by who knows where they lie."""
        tables = {"input": self.input, "answer": self.answer, "thresholds": self.thresholds}
        return {**self.stage, **{name: table for name, table in tables.items() if table}}


# --- the input --------------------------------------------------------------------------------------------------------
def find_picture(facts: ModelFacts) -> TensorFacts | None:
    """The only input that can be a picture: four axes, batch 1 or open, 1 or 3 channels, a type we can fill."""
    found = [each for each in facts.inputs if find_layout(each, facts) and each.dtype in DTYPES]
    return found[0] if len(found) == 1 else None


def find_planes(facts: ModelFacts) -> TensorFacts | None:
    """The only input of an ONNX model where it is a picture in colour, floats [1, 3, height, width]."""
    picture = find_picture(facts)
    if facts.format != "onnx" or picture is None or len(facts.inputs) != 1:
        return None
    return picture if picture.shape[1] == 3 and picture.dtype.startswith("float") else None


def find_layout(tensor: TensorFacts, facts: ModelFacts) -> str:
    if len(tensor.shape) != 4 or tensor.shape[0] not in (1, None):
        return ""
    layouts = ("nhwc", "nchw") if facts.format == "litert" else ("nchw", "nhwc")
    return next((layout for layout in layouts if tensor.shape[layout.index("c")] in (1, 3)), "")


def fill_picture(facts: ModelFacts, draft: Draft) -> None:
    """Fills the input from the tensor, the metadata and the conventions of the format."""
    picture = find_picture(facts)
    fill_tensor(picture, facts, draft)
    if picture is None:
        return
    fill_normalisation(picture, facts, draft)
    if facts.format == "litert":
        draft.input["fit"] = "stretch"
        draft.notes.append("input.fit: stretch, as the TFLite Task Library feeds LiteRT models")
    else:
        draft.missing["input.fit"] = "an ONNX file does not say how a picture is fitted (stretch, letterbox, crop, ...)"


def fill_tensor(picture: TensorFacts | None, facts: ModelFacts, draft: Draft) -> None:
    """Fills what the input tensor itself says."""
    if picture is None:
        what = ", ".join(f"{each.name} {each.dtype}{list(each.shape)}" for each in facts.inputs)
        draft.missing["input"] = (
            f"expected one picture input [1, height, width, 3] or [1, 3, height, width]: {what:.200}"
        )
        return
    layout = find_layout(picture, facts)
    draft.input |= {"layout": layout, "dtype": picture.dtype}
    if picture.shape[layout.index("c")] == 1:
        draft.input["colour"] = "grey"
    for name, axis in (("width", "w"), ("height", "h")):
        size = picture.shape[layout.index(axis)]
        if size is None:
            draft.missing[f"input.{name}"] = "the graph leaves it open"
        else:
            draft.input[name] = size
    if len(facts.inputs) > 1:
        draft.input["tensor"] = picture.name
    if picture.quant_scale and picture.dtype == "int8":
        draft.input |= {"quant_scale": picture.quant_scale, "quant_zero": picture.quant_zero}
    elif picture.dtype == "int8":
        draft.missing["input.quant_scale"] = "the int8 input carries no quantisation"


def fill_normalisation(picture: TensorFacts, facts: ModelFacts, draft: Draft) -> None:
    said = facts.picture
    if "colour" not in draft.input:
        draft.input["colour"] = "rgb"
        if said.colour != "rgb":
            draft.notes.append("input.colour: rgb; the file does not say, set it if the model wants bgr")
    if picture.dtype == "uint8":
        draft.input |= {"mean": [0.0], "std": [1.0]}
        draft.notes.append("input.mean, input.std: a uint8 input takes pixels as they are")
    elif said.mean and said.std:
        draft.input |= {"mean": list(said.mean), "std": list(said.std)}
    else:
        for name in ("mean", "std"):
            draft.missing[f"input.{name}"] = f"the file does not say how a {picture.dtype} input is normalised"


@dataclass(frozen=True, slots=True)
class Published:
    """How a model is fed by its authors; `value = (pixel - mean) / std` in every channel."""

    model: str
    fit: Fit
    colour: Colour = "rgb"
    mean: float = 0.0
    std: float = 255.0
    pad: int = 0


def feed_as_published(facts: ModelFacts, draft: Draft, fed: Published) -> None:
    """Fills the input of a detector that is recognised by its outputs, and says in a note how it is fed."""
    draft.stage["task"] = "detection"
    fill_tensor(find_picture(facts), facts, draft)
    draft.input |= {"colour": fed.colour, "mean": [fed.mean], "std": [fed.std], "fit": fed.fit}
    around = ""
    if fed.fit.startswith("letterbox"):
        draft.input["pad"] = fed.pad
        around = f" on grey {fed.pad}"
    draft.notes.append(
        f"recognised by its outputs, and fed as {fed.model} is published: {fed.fit}{around}, {fed.colour}, "
        f"(pixel - {fed.mean:g}) / {fed.std:g}; say what differs"
    )


# --- labels -----------------------------------------------------------------------------------------------------------
def name_classes(draft: Draft, *names: str) -> None:
    """Of a family whose classes are always the same: its names stand where the model and the operator give none."""
    if not draft.labels:
        draft.names = names
        draft.notes.append(f"labels.names: {', '.join(names)}, as the family has them")


def fit_labels(draft: Draft, classes: int | None) -> None:
    """Sets the offset by the rule above, or says what is missing."""
    lines = draft.labels
    if not lines:
        draft.missing["labels"] = NO_LABELS
    elif classes is None:
        draft.missing.setdefault("labels.offset", "the model does not say its number of classes")
    elif len(lines) == classes + 1 and is_placeholder(lines[0]):
        draft.offset = 1
        draft.notes.append(
            f"labels.offset: 1, since line 1 of {len(lines)} is {lines[0]!r:.20} and classes are {classes}"
        )
    elif len(lines) != classes or (is_placeholder(lines[0]) and draft.answer["family"] != "classification"):
        draft.missing["labels.offset"] = (
            f"the model has {classes} classes, the labels {len(lines)} lines, the first {lines[0]!r:.20}: "
            "say which line is class 0"
        )
