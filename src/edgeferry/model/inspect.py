"""What a model file tells of itself, and the ModelSpec made from it.

The two parsers (`inspect_onnx`, `inspect_litert`) say what stands in the file; `families.py` recognises what that means;
this file puts both together with the operator's labels and overrides.

Rules:
- No guess is silent: what the file does not say is either a field the operator must add (SpecIncomplete names it and the
  way to add it), or a convention of a recognised family that stands in `Inspection.notes`.
- Overrides win over what was found, field by field; unknown fields are refused.
- Any bytes may come in: errors are ModelUnreadable, memory and time stay bounded by the file's size.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgeferry.model.facts import ModelFacts
from edgeferry.model.spec import ModelSpec, Stage

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
    raise NotImplementedError


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
        overrides: fields of one Stage, or `stages`: a list of them.

    Raises:
        SpecIncomplete: fields that cannot be known; the message names each and says how to add it.
        ConfigInvalid: an override that is no field of a spec, or has a value that it cannot have.
    """
    raise NotImplementedError


def load_labels(stage: Stage, folder_read: Callable[[str], bytes]) -> tuple[str, ...]:
    """The labels of a stage: its names, else its label file, else those packed in its model file.

    Args:
        stage: of the spec.
        folder_read: bytes of a file of the version, by name.

    Raises:
        BundleUnreadable, BundleTooLarge: the label file is no text, or far too long.
        ModelUnreadable: the model file holds no such labels.
    """
    raise NotImplementedError
