"""What `publish` reads: a model file with labels and spec beside it, or a bundle that holds them.

Which file of a bundle is which is `model/bundle.py`'s rule. What is published are the files, not the bundle: a device
that has the version before fetches patches of them.

Rules:
- A bundle is told by its first bytes: a model with an archive behind it is a model.
- What the operator names beside a bundle wins over what lies in it; it is said which files are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeferry.errors import ConfigInvalid
from edgeferry.model.bundle import SPEC_FILE, BundleLimits, find_label_file, find_model_file
from edgeferry.storage.classic import read_bundle
from edgeferry.storage.files import read_bounded, translate_disk_errors

MODEL_MAX_BYTES = 2 << 30
LABELS_MAX_BYTES = 4 << 20
SPEC_MAX_BYTES = 16 << 10
_BUNDLE_BEGINS = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """File names and bytes; no labels: empty."""

    model_file: str
    model_data: bytes
    labels_file: str
    labels_data: bytes
    spec_text: str


def read_model_files(model: Path, labels: Path | None, spec: Path | None, *, say: Callable[[str], None]) -> ModelFiles:
    """Reads what the operator named.

    Raises:
        BundleError: of a bundle that is unsafe, too large, damaged, or holds no model or several.
        ConfigInvalid, StorageFailed: a file is no text, too long, or cannot be read.
    """
    if _is_bundle(model):
        found = read_bundle(model, limits=BundleLimits(max_total_bytes=MODEL_MAX_BYTES))
        model_file = find_model_file(found)
    else:
        found, model_file = {model.name: read_bounded(model, MODEL_MAX_BYTES)}, model.name
    others = found.keys() - {model_file}
    labels_file = labels.name if labels else find_label_file(others) or ""
    left_out = sorted(others - {labels_file, SPEC_FILE})
    if left_out:
        say(f"left out of {model.name}: {', '.join(left_out)}")
    return ModelFiles(
        model_file=model_file,
        model_data=found[model_file],
        labels_file=labels_file,
        labels_data=read_bounded(labels, LABELS_MAX_BYTES) if labels else found.get(labels_file, b""),
        spec_text=_read_spec(spec, found.get(SPEC_FILE, b"")),
    )


def _is_bundle(path: Path) -> bool:
    with translate_disk_errors(path), path.open("rb") as file:
        return file.read(len(_BUNDLE_BEGINS)) == _BUNDLE_BEGINS


def _read_spec(path: Path | None, bundled: bytes) -> str:
    data, name = (read_bounded(path, SPEC_MAX_BYTES), path.name) if path else (bundled, SPEC_FILE)
    if len(data) > SPEC_MAX_BYTES:
        raise ConfigInvalid(f"expected at most {SPEC_MAX_BYTES} bytes in {name}, found {len(data)}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"expected UTF-8 in {name}") from error
