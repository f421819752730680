"""Models from a person's disk, without any hub: a model file, a folder, or a bundle ZIP becomes a version to serve.

What this file leaves to others: what the model file tells (`model/inspect.py`), unpacking (`storage/classic.py`).

Rules:
- Nothing is guessed in silence: what the model and the given files leave open is SpecIncomplete; it says what to add.
  A model whose answer family is not recognised is opened as plain tensors where the caller can say so (`say`).
- The person's files are read where they lie and never written to; a ZIP is unpacked into a temporary folder that goes
  with the block.
- A folder with a manifest (as the device's repository has them) is the version its manifest says. Anything else is
  named after its file, and its version is the start of the model's SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from edgeferry.errors import ConfigInvalid, SpecIncomplete
from edgeferry.model.bundle import MODEL_SUFFIXES, SPEC_FILE, BundleLimits, find_label_file, find_model_file
from edgeferry.model.inspect import inspect_model, make_bundle_spec, make_spec, make_tensors_stage
from edgeferry.model.labels import LABELS_MAX_BYTES, read_labels
from edgeferry.model.manifest import MANIFEST_MAX_BYTES, read_manifest_bytes
from edgeferry.model.spec import LabelSpec, ModelSpec, Stage, read_spec_toml
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.classic import unpack_classic
from edgeferry.storage.files import hash_file, open_mapped, read_bounded
from edgeferry.storage.versions import MANIFEST_FILE

_MODEL_MAX_BYTES = 2 << 30
_SPEC_MAX_BYTES = 1 << 20
_NOT_IN_NAMES = re.compile(r"[^a-z0-9_-]+")
Say = Callable[[str], None]


@contextmanager
def open_local_versions(
    paths: Sequence[Path], *, labels: Path | None = None, spec: Path | None = None, say: Say | None = None
) -> Iterator[tuple[StoredVersion, ...]]:
    """The versions at `paths`, ready to be served while the block runs. `labels` and `spec` go with a single path.

    With `say`, a model of which nothing but tensors is known is opened too, and `say` is told why.

    Raises:
        ConfigInvalid: nothing there, two models of one name, or files that do not go together.
        SpecIncomplete, ModelUnreadable, BundleError: see `model/inspect.py` and `storage/classic.py`.
    """
    if len(paths) != 1 and (labels or spec):
        raise ConfigInvalid(f"expected one model with --labels or --spec, found {len(paths)}")
    with ExitStack() as stack:
        versions = tuple(_open_version(path, _Given(labels, spec, say), stack) for path in paths)
        names = [version.model for version in versions]
        if len(set(names)) != len(names):
            raise ConfigInvalid(f"expected models of different names, found {', '.join(sorted(names))}: rename a file")
        yield versions


@dataclass(frozen=True, slots=True)
class _Given:
    """What came beside the paths."""

    labels: Path | None
    spec: Path | None
    say: Say | None


def _open_version(path: Path, given: _Given, stack: ExitStack) -> StoredVersion:
    name = make_model_name(path)
    if path.is_dir():
        return _read_folder(path, name, given)
    if not path.is_file():
        raise ConfigInvalid(f"expected a model file, a folder or a bundle ZIP at {path}, found nothing")
    if path.suffix.lower() == ".zip":
        temp = Path(stack.enter_context(TemporaryDirectory(prefix="edgeferry-")))
        return _read_folder(unpack_classic(temp, path, "bundle", limits=BundleLimits()), name, given)
    return _read_files(path.absolute().parent, [path.name], name, given)


def make_model_name(path: Path) -> str:
    """A model name from a file's: `My Model.v2.onnx` -> `my-model-v2`."""
    text = path.name if path.is_dir() else path.stem
    return _NOT_IN_NAMES.sub("-", (text or path.absolute().name).lower()).strip("-_")[:63] or "model"


def _read_folder(folder: Path, name: str, given: _Given) -> StoredVersion:
    folder = folder.absolute()
    if (folder / MANIFEST_FILE).is_file() and not (given.labels or given.spec):
        data = read_bounded(folder / MANIFEST_FILE, MANIFEST_MAX_BYTES)
        manifest = read_manifest_bytes(data)
        return StoredVersion(manifest.model, manifest.version, f"file:{folder}", folder, manifest.spec)
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    return _read_files(folder, names, name, given)


def _read_files(folder: Path, names: Sequence[str], model: str, given: _Given) -> StoredVersion:
    """A version of the files `names` in `folder`; a lone file that is no model is refused by name."""
    model_file = find_model_file(names) if len(names) > 1 else names[0] if names else ""
    if not model_file.lower().endswith(MODEL_SUFFIXES):
        raise ConfigInvalid(f"expected a model file ({', '.join(MODEL_SUFFIXES)}) or a ZIP, found {model_file!r:.80}")
    if given.labels or given.spec:
        made = _make_given_spec(folder, names, model_file, given.labels, given.spec)
    else:
        made = _make_found_spec(folder, names, model_file, given.say)
    digest = hash_file(folder / model_file).get_digest()
    return StoredVersion(model, digest.hex[:12], f"{digest}:{model}", folder, made)


def _make_found_spec(folder: Path, names: Sequence[str], model_file: str, say: Say | None) -> ModelSpec:
    try:
        return make_bundle_spec(names, lambda file: read_bounded(folder / file, _MODEL_MAX_BYTES))
    except SpecIncomplete as error:
        is_unknown = "task" in str(error.values.get("missing", "")).split(", ")
        if say is None or not is_unknown or SPEC_FILE in names:
            raise
        say(f"{model_file}: no answer family is recognised, only /v2 serves it, as plain tensors. {error.message}")
        return ModelSpec(stages=(make_tensors_stage(model_file),))


def _make_given_spec(
    folder: Path, names: Sequence[str], model_file: str, labels: Path | None, spec: Path | None
) -> ModelSpec:
    """The spec with what the person gave beside the model; their labels travel inside the spec, wherever they lie."""
    overrides: Mapping[str, object] = {}
    if spec is not None:
        overrides = read_spec_toml(read_bounded(spec, _SPEC_MAX_BYTES).decode("utf-8", "replace"))
    beside = find_label_file(names)
    label_path = labels or (folder / beside if beside else None)
    lines = read_labels(read_bounded(label_path, LABELS_MAX_BYTES)) if label_path else None
    labels_file = label_path.name if label_path else ""
    with open_mapped(folder / model_file) as data:
        inspection = inspect_model(model_file, data)
        made = make_spec(inspection, labels=lines, labels_file=labels_file, overrides=overrides)
    return ModelSpec(stages=tuple(_inline_labels(stage, labels_file, lines) for stage in made.stages))


def _inline_labels(stage: Stage, labels_file: str, lines: tuple[str, ...] | None) -> Stage:
    if lines is None or not labels_file or stage.labels.file != labels_file:
        return stage
    return msgspec.structs.replace(stage, labels=LabelSpec(names=lines, offset=stage.labels.offset))
