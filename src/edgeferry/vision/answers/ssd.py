"""SSD: the four outputs of TFLite_Detection_PostProcess (or its like in ONNX) -> objects.

boxes [1, n, 4] (top, left, bottom, right in 0..1 of the input), classes [1, n] (numbers), scores [1, n], count [1].
The op writes them in this order, but converters reorder and rename outputs, so roles are found, in this order:
1. `answer.outputs` of the spec, where it names them;
2. shape: boxes are the only one with three axes, count the only single number;
3. the name of classes and scores: words, or the op's own `TFLite_Detection_PostProcess:1` and `:2`;
4. their values: classes are whole numbers, scores lie in 0..1; where both could be either, scores are the falling row.

Rules:
- Entries past the count are not looked at: the op leaves what was in memory before.
- The label is the line at class + `labels.offset`.
"""

from __future__ import annotations

import numpy as np

from edgeferry.model.spec import Stage
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.vision.answers.objects import Outputs, Tensor, make_detection_answer, make_refusal
from edgeferry.vision.preprocess import Placement

_WANTED = "boxes [1, n, 4], classes [1, n], scores [1, n] and count [1]"
_OP = "TFLite_Detection_PostProcess"
_CLASS_WORDS = ("class", "category", "categories", "label")
_SCORE_WORDS = ("score", "confiden", "probab")


def decode_ssd(stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]) -> DetectionAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    boxes, scores, classes = read_counted(stage, outputs)
    return make_detection_answer(placement.to_picture(boxes), scores, classes, stage=stage, labels=labels)


def read_counted(stage: Stage, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [n, 4] as the model writes them, scores [n] and classes [n], up to the count. Raises ModelUnsupported."""
    roles = find_roles(outputs, stage.answer.outputs)
    if roles["boxes"].shape[-1:] != (4,) or ("count" in roles and roles["count"].size != 1):
        raise make_refusal(_WANTED, outputs)
    boxes = roles["boxes"].reshape(-1, 4)
    classes, scores = roles["classes"].reshape(-1), roles["scores"].reshape(-1)
    count = min(_read_count(roles.get("count")), len(boxes), len(classes), len(scores))
    return boxes[:count], scores[:count], classes[:count]


def find_roles(outputs: Outputs, declared: dict[str, str]) -> Outputs:
    """Output tensors by role: boxes, classes, scores and, where there is one, count. Raises ModelUnsupported."""
    roles = {role: outputs[name] for role, name in declared.items() if name in outputs}
    taken = {name for name in declared.values() if name in outputs}
    rest = {name: value for name, value in outputs.items() if name not in taken}
    if "boxes" not in roles:
        roles["boxes"] = _take_boxes(rest, outputs)
    missing = [role for role in ("classes", "scores") if role not in roles]
    if "count" not in roles and len(rest) > len(missing):
        roles["count"] = _take_count(rest, outputs)
    if len(rest) != len(missing):
        raise make_refusal(_WANTED, outputs)
    if len(missing) == 2:
        roles["classes"], roles["scores"] = _tell_apart(*rest.items())
    elif missing:
        roles[missing[0]] = next(iter(rest.values()))
    return roles


def _take_boxes(rest: Outputs, outputs: Outputs) -> Tensor:
    names = [name for name, value in rest.items() if value.ndim == 3 and value.shape[2] == 4]
    if len(names) != 1:
        raise make_refusal(_WANTED, outputs)
    return rest.pop(names[0])


def _take_count(rest: Outputs, outputs: Outputs) -> Tensor:
    """The single number; where a model answers one box at most, all three are single: then the name or fewest axes."""
    names = [name for name, value in rest.items() if value.size == 1]
    if len(names) > 1:
        names = [name for name in names if _is_named_count(name)] or [
            name for name in names if rest[name].ndim == min(rest[other].ndim for other in names)
        ]
    if len(names) != 1:
        raise make_refusal(_WANTED, outputs)
    return rest.pop(names[0])


def _is_named_count(name: str) -> bool:
    return name.endswith(f"{_OP}:3") or any(word in name.lower() for word in ("count", "num"))


def _tell_apart(first: tuple[str, Tensor], second: tuple[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Two outputs that are classes and scores, in either order -> (classes, scores)."""
    named = _find_by_name(first, second)
    if named is not None:
        return named
    straight = _may_be_classes(first[1]) and _may_be_scores(second[1])
    crossed = _may_be_classes(second[1]) and _may_be_scores(first[1])
    if straight and crossed:
        crossed = not _falls(second[1]) and _falls(first[1])
        straight = not crossed
    if not straight and not crossed:
        raise make_refusal(_WANTED, dict((first, second)))
    return (first[1], second[1]) if straight else (second[1], first[1])


def _find_by_name(first: tuple[str, Tensor], second: tuple[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    kinds = (_name_kind(first[0]), _name_kind(second[0]))
    if kinds in (("classes", "scores"), ("classes", ""), ("", "scores")):
        return first[1], second[1]
    if kinds in (("scores", "classes"), ("scores", ""), ("", "classes")):
        return second[1], first[1]
    return None


def _name_kind(name: str) -> str:
    low = name.lower()
    if name.endswith(f"{_OP}:1") or any(word in low for word in _CLASS_WORDS):
        return "classes" if not any(word in low for word in _SCORE_WORDS) else ""
    if name.endswith(f"{_OP}:2") or any(word in low for word in _SCORE_WORDS):
        return "scores"
    return ""


def _may_be_classes(values: Tensor) -> bool:
    return bool(np.all(values == np.rint(values)) and np.all(values >= 0))


def _may_be_scores(values: Tensor) -> bool:
    return bool(np.all(values >= 0) and np.all(values <= 1))


def _falls(values: Tensor) -> bool:
    return bool(np.all(np.diff(values.reshape(-1)) <= 0))


def _read_count(count: Tensor | None) -> int:
    if count is None:
        return 1 << 30
    value = float(count.reshape(-1)[0])
    return round(value) if np.isfinite(value) and value > 0 else 0
