"""Models from a person's disk, without any hub: a model file, a folder, or a bundle ZIP becomes a version to serve.

What this file leaves to others: what model files tell (`model/bundle_spec.py`), unpacking (`storage/classic.py`).

Rules:
- Nothing is guessed in silence: what the model and the given files leave open is SpecIncomplete; it says what to add.
- The person's files are read where they lie and never written to; a ZIP is unpacked into a temporary folder that goes
  with the block.
- A folder with a manifest (as the device's repository has them) is the version its manifest says. Anything else is
  named after its file, and its version is the start of the model's SHA-256 (of several models, of theirs together).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from edgeferry.errors import ConfigInvalid
from edgeferry.model.bundle import MODEL_SUFFIXES, BundleLimits, find_model_file
from edgeferry.model.bundle_spec import make_bundle_spec
from edgeferry.model.digest import Digest
from edgeferry.model.inspect import inspect_model, make_spec
from edgeferry.model.labels import LABELS_MAX_BYTES, read_labels
from edgeferry.model.manifest import MANIFEST_MAX_BYTES, read_manifest_bytes
from edgeferry.model.spec import LabelSpec, ModelSpec, Stage, read_spec_toml
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.classic import read_part, unpack_classic
from edgeferry.storage.files import hash_file, open_mapped, read_bounded
from edgeferry.storage.versions import MANIFEST_FILE

_SPEC_MAX_BYTES = 1 << 20
_NOT_IN_NAMES = re.compile(r"[^a-z0-9_-]+")


@contextmanager
def open_local_versions(
    paths: Sequence[Path], *, labels: Path | None = None, spec: Path | None = None
) -> Iterator[tuple[StoredVersion, ...]]:
    """The versions at `paths`, ready to be served while the block runs. `labels` and `spec` go with a single path.

    Raises:
        ConfigInvalid: nothing there, two models of one name, or files that do not go together.
        SpecIncomplete, ModelUnreadable, BundleError: see `model/inspect.py` and `storage/classic.py`.
    """
    if len(paths) != 1 and (labels or spec):
        raise ConfigInvalid(f"expected one model with --labels or --spec, found {len(paths)}")
    with ExitStack() as stack:
        versions = tuple(_open_version(path, labels, spec, stack) for path in paths)
        names = [version.model for version in versions]
        if len(set(names)) != len(names):
            raise ConfigInvalid(f"expected models of different names, found {', '.join(sorted(names))}: rename a file")
        yield versions


def _open_version(path: Path, labels: Path | None, spec: Path | None, stack: ExitStack) -> StoredVersion:
    name = make_model_name(path)
    if path.is_dir():
        return _read_folder(path, name, labels, spec)
    if not path.is_file():
        raise ConfigInvalid(f"expected a model file, a folder or a bundle ZIP at {path}, found nothing")
    if path.suffix.lower() == ".zip":
        temp = Path(stack.enter_context(TemporaryDirectory(prefix="edgeferry-")))
        return _read_folder(unpack_classic(temp, path, "bundle", limits=BundleLimits()), name, labels, spec)
    return _read_files(path.absolute().parent, [path.name], name, labels, spec)


def make_model_name(path: Path) -> str:
    """A model name from a file's: `My Model.v2.onnx` -> `my-model-v2`."""
    text = path.name if path.is_dir() else path.stem
    return _NOT_IN_NAMES.sub("-", (text or path.absolute().name).lower()).strip("-_")[:63] or "model"


def _read_folder(folder: Path, name: str, labels: Path | None, spec: Path | None) -> StoredVersion:
    folder = folder.absolute()
    if (folder / MANIFEST_FILE).is_file() and not (labels or spec):
        data = read_bounded(folder / MANIFEST_FILE, MANIFEST_MAX_BYTES)
        manifest = read_manifest_bytes(data)
        return StoredVersion(manifest.model, manifest.version, f"file:{folder}", folder, manifest.spec)
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    return _read_files(folder, names, name, labels, spec)


def _read_files(
    folder: Path, names: Sequence[str], model: str, labels: Path | None, spec: Path | None
) -> StoredVersion:
    """A version of the files `names` in `folder`; a lone file that is no model is refused by name."""
    if len(names) < 2 and not "".join(names).lower().endswith(MODEL_SUFFIXES):
        found = "".join(names)
        raise ConfigInvalid(f"expected a model file ({', '.join(MODEL_SUFFIXES)}) or a ZIP, found {found!r:.80}")
    overrides = read_spec_toml(read_bounded(spec, _SPEC_MAX_BYTES).decode("utf-8", "replace")) if spec else None
    if labels:
        made = _make_labelled_spec(folder, find_model_file(names), labels, overrides or {})
    else:
        made = make_bundle_spec(names, lambda name: read_part(folder / name), overrides)
    digest = _hash_models(folder, made)
    return StoredVersion(model, digest.hex[:12], f"{digest}:{model}", folder, made)


def _hash_models(folder: Path, spec: ModelSpec) -> Digest:
    digests = [hash_file(folder / stage.file).get_digest() for stage in spec.stages]
    return digests[0] if len(digests) == 1 else Digest.of("\n".join(map(str, digests)).encode())


def _make_labelled_spec(folder: Path, model_file: str, labels: Path, overrides: Mapping[str, object]) -> ModelSpec:
    """The spec with the person's labels, which travel inside it, wherever they lie."""
    lines = read_labels(read_bounded(labels, LABELS_MAX_BYTES))
    with open_mapped(folder / model_file) as data:
        inspection = inspect_model(model_file, data)
        made = make_spec(inspection, labels=lines, labels_file=labels.name, overrides=overrides)
    return ModelSpec(stages=tuple(_inline_labels(stage, labels.name, lines) for stage in made.stages))


def _inline_labels(stage: Stage, labels_file: str, lines: tuple[str, ...]) -> Stage:
    if stage.labels.file != labels_file:
        return stage
    return msgspec.structs.replace(stage, labels=LabelSpec(names=lines, offset=stage.labels.offset))
