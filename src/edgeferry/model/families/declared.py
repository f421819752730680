"""Declared: ONNX metadata_props `edgeferry.*` (docs/formats/spec.md) say all of it."""

from __future__ import annotations

from edgeferry.model.facts import ModelFacts
from edgeferry.model.families.classification import count_classes
from edgeferry.model.families.draft import Draft, fill_tensor, find_picture, fit_labels

PREFIX = "edgeferry."
LABELS_KEY = "edgeferry.labels"
_ALIASES = {"classifier": "classification"}
_INTEGERS = ("width", "height", "pad", "resize_to", "quant_zero")
_NUMBERS = ("mean", "std", "quant_scale")
_WORDS = ("layout", "colour", "dtype", "fit", "resample")


def draft_declared(facts: ModelFacts, draft: Draft) -> bool:
    """Takes what the metadata declares; False where it declares no family."""
    said = {key.removeprefix(PREFIX): value for key, value in facts.metadata.items() if key.startswith(PREFIX)}
    if "family" not in said:
        return False
    family = _ALIASES.get(said["family"], said["family"])
    draft.answer["family"] = family
    draft.stage["task"] = said.get("task", "")
    picture = find_picture(facts)
    fill_tensor(picture, facts, draft)
    for name in (*_INTEGERS, *_NUMBERS, *_WORDS):
        if f"input.{name}" in said:
            _take_declared(name, said[f"input.{name}"], draft)
    for name in ("mean", "std", "fit"):
        if name not in draft.input:
            draft.missing.setdefault(f"input.{name}", f"the metadata has no {PREFIX}input.{name}")
    if "threshold" in said:
        _take_number("thresholds.score", said["threshold"], draft.thresholds, draft)
    named = len(said["labels"].split("\n")) if "labels" in said else None
    fit_labels(draft, count_classes(facts) if family == "classification" else named)
    return True


def _take_declared(name: str, text: str, draft: Draft) -> None:
    """Takes one declared field of the input; what contradicts the tensor is missing again."""
    if name in _WORDS:
        value: object = text
    elif name in _INTEGERS:
        value = int(text) if text.removeprefix("-").isdecimal() and len(text) < 8 else None
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
