"""The spec of a bundle: files that lie side by side and, where they need one, a spec TOML -> ModelSpec.

What this file leaves to others: what one model file tells (`inspect.py`), which file is which (`bundle.py`).

Rules:
- Without `[[stages]]` there is one model file, and the only label file belongs to it.
- With `[[stages]]` each table names the model file of its stage (`file`), and its label file where it wants one
  (`labels.file`); each stage is filled from its own model file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgeferry.errors import ConfigInvalid, ManifestInvalid
from edgeferry.model.bundle import MODEL_SUFFIXES, SPEC_FILE, find_label_file, find_model_file
from edgeferry.model.inspect import ModelBytes, inspect_model, make_spec
from edgeferry.model.labels import read_labels
from edgeferry.model.spec import SPEC_MAX_CHARS, ModelSpec, Stage, check_spec, read_spec_toml

Read = Callable[[str], ModelBytes]
"""Bytes of a file of the bundle, by name."""
Overrides = Mapping[str, object]
"""A parsed spec TOML."""


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """A spec, and the conventions that were applied to make it, one sentence each."""

    spec: ModelSpec
    notes: tuple[str, ...]


def make_bundle_spec(names: Iterable[str], folder_read: Read, overrides: Overrides | None = None) -> ModelSpec:
    """Makes the spec of loose files, as a classic ZIP holds them: models, labels, and a spec.toml if needed.

    Args:
        names: of the files.
        folder_read: bytes of a file of the bundle, by name.
        overrides: instead of the bundle's own spec.toml.

    Raises:
        BundleIncomplete: no model, several that no `[[stages]]` name, or several label files that may be meant.
        BundleUnreadable, BundleTooLarge: a label file is no text, or far too long.
        ModelUnreadable, SpecIncomplete, ConfigInvalid: as inspect_model and make_spec.
    """
    names = sorted(names)
    if overrides is None:
        overrides = _read_overrides(folder_read(SPEC_FILE)) if SPEC_FILE in names else {}
    if has_stages(overrides):
        return make_pipeline_spec(names, folder_read, overrides).spec
    model_file, labels_file = find_model_file(names), _get_named_labels(overrides)
    labels_file = labels_file if labels_file in names else find_label_file(names) or ""
    return make_single_spec(model_file, labels_file, folder_read, overrides).spec


def make_single_spec(model_file: str, labels_file: str, folder_read: Read, overrides: Overrides) -> BundleSpec:
    """Makes the spec of one model with its label file ("": none); raises as above."""
    labels = read_labels(bytes(folder_read(labels_file))) if labels_file else None
    inspection = inspect_model(model_file, folder_read(model_file))
    spec = make_spec(inspection, labels=labels, labels_file=labels_file, overrides=overrides)
    return BundleSpec(spec, inspection.notes)


def make_pipeline_spec(names: Iterable[str], folder_read: Read, overrides: Overrides) -> BundleSpec:
    """Makes the spec of several stages, each of which is filled from the model file that it names; raises as above."""
    names, stages, notes = sorted(names), list[Stage](), list[str]()
    for table in list_stage_tables(overrides):
        file, labels_file = _require_file(table, names), _get_named_labels(table)
        made = make_single_spec(file, labels_file if labels_file in names else "", folder_read, table)
        stages += made.spec.stages
        notes += [f"{file}: {note}" for note in made.notes]
    try:
        return BundleSpec(check_spec(ModelSpec(stages=tuple(stages))), tuple(notes))
    except ManifestInvalid as error:
        raise ConfigInvalid(error.message) from error


def has_stages(overrides: Overrides) -> bool:
    """Whether a parsed spec TOML speaks of `[[stages]]`."""
    return "stages" in overrides


def list_stage_tables(overrides: Overrides) -> Sequence[Overrides]:
    """The `[[stages]]` of a parsed spec TOML; raises ConfigInvalid when they are no list of tables, or not alone."""
    stages = overrides.get("stages")
    if len(overrides) > 1:
        raise ConfigInvalid("expected either [[stages]] or the fields of one stage in the spec file, found both")
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, Mapping) for stage in stages):
        raise ConfigInvalid("expected [[stages]] as a list of tables in the spec file")
    return stages


def list_stage_files(overrides: Overrides) -> tuple[str, ...]:
    """The files that `[[stages]]` name, in order, each once: models and labels."""
    files: dict[str, None] = {}
    for table in list_stage_tables(overrides):
        named = (table.get("file"), _get_named_labels(table))
        files |= {name: None for name in named if isinstance(name, str) and name}
    return tuple(files)


def _read_overrides(data: ModelBytes) -> dict[str, object]:
    return read_spec_toml(bytes(data[: 2 * SPEC_MAX_CHARS]).decode("utf-8", "replace"))


def _get_named_labels(table: Overrides) -> str:
    said = table.get("labels")
    wanted = said.get("file") if isinstance(said, Mapping) else None
    return wanted if isinstance(wanted, str) else ""


def _require_file(table: Overrides, names: Sequence[str]) -> str:
    file = table.get("file")
    if not isinstance(file, str) or file not in names:
        models = [name for name in names if name.lower().endswith(MODEL_SUFFIXES)]
        raise ConfigInvalid(f"expected each of [[stages]] to name its model among {models!r:.200}, found {file!r:.80}")
    return file
