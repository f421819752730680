"""Recognises answer families in what a model file says, and drafts the fields of its Stage.

Decoding the answers is `vision/answers/`; merging with the operator's overrides is `inspect.py`.

Rules, in this order; the first that fits drafts the stage:
1. Declared: ONNX metadata_props `edgeferry.*` (docs/formats/spec.md) say all of it.
2. `ssd`: an operator TFLite_Detection_PostProcess. Its outputs are known by its own order, whatever the graph's.
3. `tiny_yolov3`: the interface of the ONNX zoo: a picture and `image_shape` in, boxes, scores and indices out.
4. `classification`: one picture in, one row of n numbers out, and labels for n classes.
5. Anything else: what the tensors say of the input; task and family are missing.

Conventions, each told in a note when it is applied:
- A uint8 picture input takes pixels as they are (TFLite Task Library: normalisation of metadata is for float inputs).
- LiteRT models are fed by plain resizing (the same library). ONNX has no convention: input.fit is missing there.
- Three channels are RGB where nothing is said.

Labels, where the number n of classes is known: n lines fit as they are; n + 1 lines fit with offset 1 when the first
one stands for nothing (`???`, `background`). Anything else is for the operator to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeferry.model.facts import ModelFacts, TensorFacts
from edgeferry.model.labels import is_placeholder

PREFIX = "edgeferry."
LABELS_KEY = "edgeferry.labels"
_ALIASES = {"classifier": "classification"}
_DTYPES = ("uint8", "int8", "float16", "float32")
_INTEGERS = ("width", "height", "pad", "resize_to", "quant_zero")
_NUMBERS = ("mean", "std", "quant_scale")
_WORDS = ("layout", "colour", "dtype", "fit", "resample")
_PROBABILITIES = ("Softmax", "SOFTMAX", "Sigmoid", "LOGISTIC")
_YOLO_SIDE = 416
_NO_LABELS = "the model carries no labels: add them with --labels FILE, or as labels.names"


@dataclass(slots=True)
class Draft:
    """A stage in the making. `missing`: field -> why it is not known; `notes`: conventions that were applied."""

    labels: Sequence[str]
    stage: dict[str, object] = field(default_factory=dict)
    input: dict[str, object] = field(default_factory=dict)
    answer: dict[str, object] = field(default_factory=dict)
    thresholds: dict[str, object] = field(default_factory=dict)
    offset: int = 0
    notes: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def to_stage(self) -> dict[str, object]:
        """The fields found, as in a spec TOML; labels are added by who knows where they lie."""
        tables = {"input": self.input, "answer": self.answer, "thresholds": self.thresholds}
        return {**self.stage, **{name: table for name, table in tables.items() if table}}


def draft_stage(facts: ModelFacts, labels: Sequence[str]) -> Draft:
    """Applies the first rule that fits; `labels` are those that will be used, empty when there are none."""
    draft = Draft(labels)
    rules: tuple[Callable[[ModelFacts, Draft], bool], ...] = (_declared, _ssd, _tiny_yolov3, _classification)
    if not any(rule(facts, draft) for rule in rules):
        _unknown(facts, draft)
    return draft


# --- 1. declared ------------------------------------------------------------------------------------------------------
def _declared(facts: ModelFacts, draft: Draft) -> bool:
    said = {key.removeprefix(PREFIX): value for key, value in facts.metadata.items() if key.startswith(PREFIX)}
    if "family" not in said:
        return False
    family = _ALIASES.get(said["family"], said["family"])
    draft.answer["family"] = family
    draft.stage["task"] = said.get("task", "")
    picture = _find_picture(facts)
    _fill_tensor(picture, facts, draft)
    for name in (*_INTEGERS, *_NUMBERS, *_WORDS):
        if f"input.{name}" in said:
            _take_declared(name, said[f"input.{name}"], draft)
    for name in ("mean", "std", "fit"):
        if name not in draft.input:
            draft.missing.setdefault(f"input.{name}", f"the metadata has no {PREFIX}input.{name}")
    if "threshold" in said:
        _take_number("thresholds.score", said["threshold"], draft.thresholds, draft)
    classes = _count_classes(facts) if family == "classification" else len(said.get("labels", "").split("\n"))
    _fit_labels(draft, classes)
    return True


def _take_declared(name: str, text: str, draft: Draft) -> None:
    """Takes one declared field of the input; what contradicts the tensor is missing again."""
    if name in _WORDS:
        value: object = text
    elif name in _INTEGERS:
        value = int(text) if text.lstrip("-").isdecimal() and len(text) < 8 else None
    else:
        value = _read_numbers(text)
    if value is None or draft.input.get(name, value) != value:
        found = draft.input.pop(name, "no number")
        draft.missing[f"input.{name}"] = f"the metadata says {text!r:.40}, the tensor {found!r:.40}"
        return
    draft.input[name] = value
    draft.missing.pop(f"input.{name}", None)


def _take_number(path: str, text: str, table: dict[str, object], draft: Draft) -> None:
    numbers = _read_numbers(text)
    if numbers is None or len(numbers) != 1:
        draft.missing[path] = f"the metadata says {text!r:.40}, which is no number"
    else:
        table[path.rpartition(".")[2]] = numbers[0]


def _read_numbers(text: str) -> list[float] | None:
    try:
        return [float(word) for word in text.replace(",", " ").split()][:4] or None
    except ValueError:
        return None


# --- 2. ssd -----------------------------------------------------------------------------------------------------------
def _ssd(facts: ModelFacts, draft: Draft) -> bool:
    operator = facts.post_process
    if operator is None:
        return False
    draft.stage["task"] = "detection"
    draft.answer["family"] = "ssd"
    written = {tensor.name for tensor in facts.outputs}
    if len(operator.outputs) == 4 and written.issuperset(operator.outputs):
        draft.answer["outputs"] = dict(zip(("boxes", "classes", "scores", "count"), operator.outputs, strict=True))
    _fill_picture(facts, draft)
    if operator.num_classes is None:
        draft.missing["labels.offset"] = "the detection operator does not say its number of classes"
    _fit_labels(draft, operator.num_classes)
    return True


# --- 3. tiny_yolov3 ---------------------------------------------------------------------------------------------------
def _tiny_yolov3(facts: ModelFacts, draft: Draft) -> bool:
    """As yolov3-tiny of the ONNX model zoo: letterboxed on grey 128, bicubic, 0..1, suppression in the graph."""
    picture = _find_picture(facts)
    size = next((each for each in facts.inputs if each.name == "image_shape"), None)
    roles = _find_yolo_outputs(facts.outputs)
    if facts.format != "onnx" or picture is None or size is None or roles is None or len(facts.inputs) != 2:
        return False
    draft.stage["task"] = "detection"
    draft.answer |= {"family": "tiny_yolov3", "outputs": {role: tensor.name for role, tensor in roles.items()}}
    draft.thresholds["score"] = 0.0  # the graph has chosen already; what it answers counts
    _fill_tensor(picture, facts, draft)
    for side in ("width", "height"):
        if draft.missing.pop(f"input.{side}", ""):
            draft.input[side] = _YOLO_SIDE
            draft.notes.append(f"input.{side}: {_YOLO_SIDE}, as published; the graph leaves it open")
    draft.input |= {"mean": [0.0], "std": [255.0], "fit": "letterbox", "pad": 128, "resample": "bicubic"}
    draft.input |= {"tensor": picture.name, "size_tensor": size.name}
    draft.notes.append(
        "recognised by its inputs and outputs as Tiny YOLOv3 of the ONNX model zoo: letterbox on grey 128, bicubic, "
        "RGB 0..1, thresholds in the graph"
    )
    classes = roles["scores"].shape[1]
    _fit_labels(draft, classes)
    return True


def _find_yolo_outputs(outputs: Sequence[TensorFacts]) -> dict[str, TensorFacts] | None:
    """boxes [1, n, 4], scores [1, classes, n] and whole-numbered indices [m, 3] or [1, m, 3], in any order."""
    indices = [each for each in outputs if each.dtype in ("int32", "int64") and each.shape[-1:] == (3,)]
    floats = [each for each in outputs if each.dtype == "float32" and len(each.shape) == 3]
    if len(outputs) != 3 or len(indices) != 1 or len(floats) != 2:
        return None
    for boxes, scores in (floats, floats[::-1]):
        if boxes.shape[2] == 4 and boxes.shape[1] == scores.shape[2]:
            return {"boxes": boxes, "scores": scores, "indices": indices[0]}
    return None


# --- 4. classification ------------------------------------------------------------------------------------------------
def _classification(facts: ModelFacts, draft: Draft) -> bool:
    classes = _count_classes(facts)
    if classes is None or len(facts.inputs) != 1 or _find_picture(facts) is None:
        return False
    draft.stage["task"] = "classification"
    draft.answer["family"] = "classification"
    if facts.outputs[0].made_by in _PROBABILITIES:
        draft.answer["parameters"] = {"activation": "none"}
    else:
        draft.notes.append("answer.parameters.activation: rows that are no probabilities go through softmax")
    _fill_picture(facts, draft)
    _fit_labels(draft, classes)
    return True


def _count_classes(facts: ModelFacts) -> int | None:
    """n of a single output [1, n], with more ones before or after; None for anything else."""
    sizes = [size for size in facts.outputs[0].shape[1:] if size != 1]
    if len(facts.outputs) != 1 or facts.outputs[0].shape[:1] not in ((1,), (None,)) or len(sizes) != 1:
        return None
    return sizes[0]


# --- 5. anything else -------------------------------------------------------------------------------------------------
def _unknown(facts: ModelFacts, draft: Draft) -> None:
    what = ", ".join(f"{each.name}{list(each.shape)}" for each in facts.outputs)
    draft.missing["task"] = f"no answer family is recognised in the outputs {what:.200}"
    draft.missing["answer.family"] = "see docs/formats/spec.md for the families and what each takes"
    _fill_picture(facts, draft)
    if not draft.labels:
        draft.missing["labels"] = _NO_LABELS


# --- the input --------------------------------------------------------------------------------------------------------
def _find_picture(facts: ModelFacts) -> TensorFacts | None:
    """The only input that can be a picture: four axes, batch 1 or open, 1 or 3 channels, a type we can fill."""
    found = [each for each in facts.inputs if _find_layout(each, facts) and each.dtype in _DTYPES]
    return found[0] if len(found) == 1 else None


def _find_layout(tensor: TensorFacts, facts: ModelFacts) -> str:
    if len(tensor.shape) != 4 or tensor.shape[0] not in (1, None):
        return ""
    layouts = ("nhwc", "nchw") if facts.format == "litert" else ("nchw", "nhwc")
    return next((layout for layout in layouts if tensor.shape[layout.index("c")] in (1, 3)), "")


def _fill_picture(facts: ModelFacts, draft: Draft) -> None:
    """Fills the input from the tensor, the metadata and the conventions of the format."""
    picture = _find_picture(facts)
    _fill_tensor(picture, facts, draft)
    if picture is None:
        return
    _fill_normalisation(picture, facts, draft)
    if facts.format == "litert":
        draft.input["fit"] = "stretch"
        draft.notes.append("input.fit: stretch, as the TFLite Task Library feeds LiteRT models")
    else:
        draft.missing["input.fit"] = "an ONNX file does not say how a picture is fitted (stretch, letterbox, crop, ...)"


def _fill_tensor(picture: TensorFacts | None, facts: ModelFacts, draft: Draft) -> None:
    """Fills what the input tensor itself says."""
    if picture is None:
        what = ", ".join(f"{each.name} {each.dtype}{list(each.shape)}" for each in facts.inputs)
        draft.missing["input"] = (
            f"expected one picture input [1, height, width, 3] or [1, 3, height, width]: {what:.200}"
        )
        return
    layout = _find_layout(picture, facts)
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


def _fill_normalisation(picture: TensorFacts, facts: ModelFacts, draft: Draft) -> None:
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
    if picture.dtype == "int8":
        draft.input |= {"quant_scale": picture.quant_scale, "quant_zero": picture.quant_zero}
        if not picture.quant_scale:
            draft.missing["input.quant_scale"] = "the int8 input carries no quantisation"


# --- labels -----------------------------------------------------------------------------------------------------------
def _fit_labels(draft: Draft, classes: int | None) -> None:
    """Sets the offset by the rule above, or says what is missing."""
    lines = draft.labels
    if not lines:
        draft.missing["labels"] = _NO_LABELS
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
