"""What `publish` reads: a model file with labels and spec beside it, or a bundle (ZIP, folder) that holds them.

Which file of a bundle is which is `model/bundle.py`'s rule. What is published are the files, not the bundle: a device
that has the version before fetches patches of them.

Rules:
- A ZIP is told by its first bytes: a model with an archive behind it is a model.
- What the operator names beside a bundle wins over what lies in it; it is said which files are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeferry.errors import BundleTooLarge, ConfigInvalid
from edgeferry.model.bundle import SPEC_FILE, BundleLimits, find_label_file, find_model_file
from edgeferry.model.bundle_spec import has_stages, list_stage_files
from edgeferry.model.spec import read_spec_toml
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
    others: Mapping[str, bytes] = field(default_factory=dict)
    """Of a pipeline: what its other stages name."""


def read_model_files(model: Path, labels: Path | None, spec: Path | None, *, say: Callable[[str], None]) -> ModelFiles:
    """Reads what the operator named.

    Raises:
        BundleError: of a bundle that is unsafe, too large, damaged, or holds no model or several.
        ConfigInvalid, StorageFailed: a file is no text, too long, or cannot be read.
    """
    is_bundle = model.is_dir() or _is_bundle(model)
    if model.is_dir():
        found = _read_folder(model)
    elif is_bundle:
        found = read_bundle(model, limits=BundleLimits(max_total_bytes=MODEL_MAX_BYTES))
    else:
        found = {model.name: read_bounded(model, MODEL_MAX_BYTES)}
    text = _read_spec(spec, found.get(SPEC_FILE, b""))
    overrides = read_spec_toml(text)
    if has_stages(overrides):
        files = _pick_stages(found, overrides, labels, text)
    else:
        files = _pick_one(found, find_model_file(found) if is_bundle else model.name, labels, text)
    left_out = sorted(found.keys() - {files.model_file, files.labels_file, SPEC_FILE} - files.others.keys())
    if left_out:
        say(f"left out of {model.name}: {', '.join(left_out)}")
    return files


def _pick_one(found: Mapping[str, bytes], model_file: str, labels: Path | None, text: str) -> ModelFiles:
    labels_file = labels.name if labels else find_label_file(found.keys() - {model_file}) or ""
    return ModelFiles(
        model_file=model_file,
        model_data=found[model_file],
        labels_file=labels_file,
        labels_data=read_bounded(labels, LABELS_MAX_BYTES) if labels else found.get(labels_file, b""),
        spec_text=text,
    )


def _pick_stages(
    found: Mapping[str, bytes], overrides: Mapping[str, object], labels: Path | None, text: str
) -> ModelFiles:
    """The files that the stages name; the first model stands for all of them."""
    first, *others = list_stage_files(overrides) or ("",)
    if labels is not None:
        raise ConfigInvalid("expected the label file of each stage in its table of the spec, found --labels")
    missing = sorted({first, *others} - found.keys())
    if missing:
        raise ConfigInvalid(f"expected a bundle that holds what its stages name, found no {', '.join(missing)!r:.200}")
    return ModelFiles(
        model_file=first,
        model_data=found[first],
        labels_file="",
        labels_data=b"",
        spec_text=text,
        others={name: found[name] for name in others},
    )


def _read_folder(folder: Path) -> dict[str, bytes]:
    with translate_disk_errors(folder):
        paths = [path for path in sorted(folder.iterdir()) if path.is_file()]
    most = BundleLimits().max_members
    if len(paths) > most:
        raise BundleTooLarge(f"expected at most {most} files in {folder.name!r:.80}, found {len(paths)}")
    return {path.name: read_bounded(path, MODEL_MAX_BYTES) for path in paths}


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
