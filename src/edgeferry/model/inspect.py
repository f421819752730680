"""What a model file tells of itself, and the ModelSpec made from it.

The two parsers (`inspect_onnx`, `inspect_litert`) say what stands in the file; `families.py` recognises what that
means; this file puts both together with the operator's labels and overrides.

Rules:
- No guess is silent: what the file does not say is either a field the operator must add (SpecIncomplete names it and
  the way to add it), or a convention of a recognised family that stands in `Inspection.notes`.
- Overrides win over what was found, field by field; unknown fields are refused.
- Any bytes may come in: errors are ModelUnreadable, memory and time stay bounded by the file's size.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from edgeferry.errors import BundleError, ConfigInvalid, ManifestInvalid, ModelUnreadable, SpecIncomplete
from edgeferry.model.bundle import SPEC_FILE, find_label_file
from edgeferry.model.facts import ModelFacts
from edgeferry.model.families.declared import LABELS_KEY
from edgeferry.model.families.table import draft_stage
from edgeferry.model.families.ultralytics import NAMES_KEY, find_names
from edgeferry.model.inspect_litert import inspect_litert, read_packed
from edgeferry.model.inspect_onnx import inspect_onnx
from edgeferry.model.labels import read_labels
from edgeferry.model.packed_notes import add_packed_notes
from edgeferry.model.spec import AnswerSpec, ModelSpec, Stage, check_spec

_PARSERS: dict[str, Callable[[memoryview], ModelFacts]] = {".onnx": inspect_onnx, ".tflite": inspect_litert}

TENSORS: Literal["tensors"] = "tensors"
"""Task and family of a model that is served as raw tensors."""
_TASKS_WITH_LABELS = ("classification", "detection")
_BEST_CLASSES = {"score": 0.0, "max_results": 5}
"""A classifier ranks: of a thousand classes the right one may well have 0.3. Its best are answered, with scores."""

ModelBytes = bytes | bytearray | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model file, read, and what is known of its spec so far.

    Attributes:
        file_name: the name it has in the bundle.
        facts: tensors, operators, metadata.
        labels: labels packed in the model file; empty where there are none.
        labels_source: name of the packed file, or of the metadata key, that holds them.
        found: fields of a Stage, as in a spec TOML.
        notes: conventions that were applied, one sentence each: read them.
        missing: field -> why it cannot be known and what to add; empty when make_spec needs nothing more.
    """

    file_name: str
    facts: ModelFacts
    labels: tuple[str, ...]
    labels_source: str
    found: Mapping[str, object]
    notes: tuple[str, ...]
    missing: Mapping[str, str]


def inspect_model(file_name: str, data: ModelBytes) -> Inspection:
    """Reads a model file, by its extension (`.onnx`, `.tflite`).

    Raises:
        ModelUnreadable: another extension, or bytes that are no such model.
    """
    with memoryview(data) as view:
        facts = _read_facts(file_name, view)
        source = _find_packed_labels(facts)
        labels = _read_packed_labels(facts, view, source) if source else ()
    draft = draft_stage(facts, labels)
    found = {"file": file_name, **draft.to_stage()}
    return Inspection(file_name, facts, labels, source, found, tuple(draft.notes), draft.missing)


def _read_facts(file_name: str, view: memoryview) -> ModelFacts:
    parse = next((parse for suffix, parse in _PARSERS.items() if file_name.lower().endswith(suffix)), None)
    if parse is None:
        raise ModelUnreadable(f"expected a model file {' or '.join(_PARSERS)}, found {file_name!r:.80}")
    return add_packed_notes(parse(view), view)


def make_spec(
    inspection: Inspection,
    *,
    labels: tuple[str, ...] | None = None,
    labels_file: str = "",
    overrides: Mapping[str, object] | None = None,
) -> ModelSpec:
    """Makes the spec of a model: what was found, then the label file, then `overrides` (a parsed spec TOML) over both.

    Args:
        inspection: of the model file.
        labels: lines of the label file, when there is one; they count before packed labels.
        labels_file: its name in the bundle.
        overrides: fields of one Stage (of several stages each is made on its own: `bundle_spec.py`).

    Raises:
        SpecIncomplete: fields that cannot be known; the message names each and says how to add it.
        ConfigInvalid: an override that is no field of a spec, or has a value that it cannot have.
    """
    overrides = overrides or {}
    _check_names(overrides, Stage)
    if overrides.get("file", inspection.file_name) != inspection.file_name:
        raise ConfigInvalid(f"expected a spec of {inspection.file_name!r:.80}, found one of {overrides['file']!r:.80}")
    stage = _make_stage(inspection, overrides, labels, labels_file)
    try:
        return check_spec(ModelSpec(stages=(stage,)))
    except ManifestInvalid as error:
        raise ConfigInvalid(f"{inspection.file_name}: {error.message}") from error


def read_packed_labels(file_name: str, view: memoryview, source: str) -> tuple[str, ...]:
    """Labels that lie in a model file, at the place that `LabelSpec.packed` names.

    Raises:
        ModelUnreadable: it holds no such labels.
    """
    facts = _read_facts(file_name, view) if source in (LABELS_KEY, NAMES_KEY) else None
    return _read_packed_labels(facts, view, source)


# --- packed labels ----------------------------------------------------------------------------------------------------
def _find_packed_labels(facts: ModelFacts) -> str:
    """Where labels are packed: a metadata key, or the one packed file that holds labels; "" without any."""
    if LABELS_KEY in facts.metadata:
        return LABELS_KEY
    if find_names(facts.metadata):
        return NAMES_KEY
    declared = [each.name for each in facts.packed if each.holds_labels]
    if len(declared) == 1:
        return declared[0]
    try:
        return find_label_file(declared or [each.name for each in facts.packed]) or ""
    except BundleError:
        return ""


def _read_packed_labels(facts: ModelFacts | None, view: memoryview, source: str) -> tuple[str, ...]:
    metadata = facts.metadata if facts is not None else {}
    names = find_names(metadata) if source == NAMES_KEY else None
    if names:
        return names
    try:
        if source == LABELS_KEY and LABELS_KEY in metadata:
            return read_labels(metadata[LABELS_KEY].encode())
        return read_labels(read_packed(view, source))
    except BundleError as error:
        raise ModelUnreadable(f"expected labels packed in the model: {error.message}") from error


# --- found, labels and overrides --------------------------------------------------------------------------------------
def _check_names(override: Mapping[str, object], kind: type[msgspec.Struct], path: str = "") -> None:
    """Refuses a field that no spec has before anything is called missing: a slip of the pen should be told as one."""
    fields = {each.name: each.type for each in msgspec.structs.fields(kind)}
    for name, value in override.items():
        if name not in fields:
            raise ConfigInvalid(f"expected one of {', '.join(fields)} in the spec, found {path + name!r:.80}")
        inner = fields[name]
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            _check_names(value, inner, f"{path}{name}.")


def _make_stage(
    inspection: Inspection, override: Mapping[str, object], labels: tuple[str, ...] | None, labels_file: str
) -> Stage:
    said = override.get("labels")
    names = said.get("names") if isinstance(said, Mapping) else None
    wanted = said.get("file", labels_file) if isinstance(said, Mapping) else labels_file
    lines = inspection.labels
    where: dict[str, object] = {"packed": inspection.labels_source} if inspection.labels_source else {}
    if wanted != labels_file:
        raise ConfigInvalid(f"expected the label file {wanted!r:.80}, which the spec names, among the files given")
    if isinstance(names, list):
        lines, where = tuple(str(name) for name in names), {}
    elif labels is not None:
        lines, where = labels, {"file": labels_file}
    draft = draft_stage(inspection.facts, lines)
    where = where if lines or not draft.names else {"names": list(draft.names)}
    found = {"file": inspection.file_name, **draft.to_stage(), "labels": {**where, "offset": draft.offset}}
    merged = _merge(found, override)
    if _says_tensors(merged, override):
        return make_tensors_stage(inspection.file_name)
    if _is_classifier(merged):
        merged = _merge({"thresholds": _BEST_CLASSES}, merged)
    missing = {path: why for path, why in draft.missing.items() if not _is_said(override, path)}
    if merged.get("task") not in _TASKS_WITH_LABELS and "task" not in missing:
        missing.pop("labels", None)
    if missing:
        raise _make_refusal(inspection.file_name, missing)
    return _convert_stage(merged)


def make_tensors_stage(file_name: str) -> Stage:
    """A stage whose tensors nobody reads: served as they are through v2, and nowhere else."""
    return Stage(file=file_name, task=TENSORS, answer=AnswerSpec(family=TENSORS))


def _is_classifier(merged: Mapping[str, object]) -> bool:
    answer = merged.get("answer")
    return isinstance(answer, Mapping) and answer.get("family") == "classification"


def _says_tensors(merged: Mapping[str, object], override: Mapping[str, object]) -> bool:
    answer = merged.get("answer")
    family = answer.get("family") if isinstance(answer, Mapping) else None
    return family == TENSORS or (merged.get("task") == TENSORS and not _is_said(override, "answer.family"))


def _merge(found: Mapping[str, object], override: Mapping[str, object]) -> dict[str, object]:
    """Field by field; a table is merged with a table, anything else replaced."""
    merged = dict(found)
    for key, value in override.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]  # both are mappings
    return merged


def _is_said(override: Mapping[str, object], path: str) -> bool:
    """Whether the overrides hold `table.field`; `labels` as a whole is said when they tell where labels come from."""
    if path == "labels":
        return any(_is_said(override, f"labels.{name}") for name in ("names", "file", "packed"))
    value: object = override
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    return True


def _make_refusal(file_name: str, missing: Mapping[str, str]) -> SpecIncomplete:
    paths_by_reason: dict[str, list[str]] = {}
    for path, why in missing.items():
        paths_by_reason.setdefault(why, []).append(path)
    reasons = "; ".join(f"{', '.join(paths)} ({why})" for why, paths in paths_by_reason.items())
    return SpecIncomplete(
        f"expected a full spec for {file_name}, missing {reasons}. "
        f"Add it with --spec FILE (TOML; docs/formats/spec.md), or as {SPEC_FILE} in a classic bundle",
        file=file_name,
        missing=", ".join(missing),
    )


def _convert_stage(stage: Mapping[str, object]) -> Stage:
    try:
        return msgspec.convert(stage, Stage)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(f"the spec does not fit: {error}") from error
