"""Models from a person's disk, without any hub: a model file, a folder, or a bundle ZIP becomes a version to serve.

What this file leaves to others: what model files tell (`model/bundle_spec.py`), unpacking (`storage/classic.py`).

Rules:
- Nothing is guessed in silence: what the model and the given files leave open is SpecIncomplete; it says what to add.
  A model whose answer family is not recognised is opened as plain tensors where the caller can say so (`say`).
- The person's files are read where they lie and never written to; a ZIP is unpacked into a temporary folder that goes
  with the block.
- A folder with a manifest (as the device's repository has them) is the version its manifest says. Anything else is
  named after its file, and its version is the start of the model's SHA-256 (of several models, of theirs together).
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
from edgeferry.model.bundle import MODEL_SUFFIXES, SPEC_FILE, BundleLimits, find_model_file
from edgeferry.model.bundle_spec import make_bundle_spec
from edgeferry.model.digest import Digest
from edgeferry.model.inspect import inspect_model, make_spec, make_tensors_stage
from edgeferry.model.labels import LABELS_MAX_BYTES, read_labels
from edgeferry.model.manifest import MANIFEST_MAX_BYTES, read_manifest_bytes
from edgeferry.model.spec import LabelSpec, ModelSpec, Stage, read_spec_toml
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.classic import read_part, unpack_classic
from edgeferry.storage.files import hash_file, open_mapped, read_bounded
from edgeferry.storage.versions import MANIFEST_FILE

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
    if len(names) < 2 and not "".join(names).lower().endswith(MODEL_SUFFIXES):
        found = "".join(names)
        raise ConfigInvalid(f"expected a model file ({', '.join(MODEL_SUFFIXES)}) or a ZIP, found {found!r:.80}")
    if given.labels:
        made = _make_labelled_spec(folder, find_model_file(names), given.labels, _read_overrides(given) or {})
    else:
        made = _make_found_spec(folder, names, given)
    digest = _hash_models(folder, made)
    return StoredVersion(model, digest.hex[:12], f"{digest}:{model}", folder, made)


def _read_overrides(given: _Given) -> dict[str, object] | None:
    return read_spec_toml(read_bounded(given.spec, _SPEC_MAX_BYTES).decode("utf-8", "replace")) if given.spec else None


def _make_found_spec(folder: Path, names: Sequence[str], given: _Given) -> ModelSpec:
    try:
        return make_bundle_spec(names, lambda name: read_part(folder / name), _read_overrides(given))
    except SpecIncomplete as error:
        if given.say is None or given.spec is not None or SPEC_FILE in names:
            raise
        file = find_model_file(names)
        sees_picture = "input" in inspect_model(file, read_part(folder / file)).found  # alone, it must
        if sees_picture and "task" not in str(error.values.get("missing", "")).split(", "):
            raise
        given.say(f"{file}: no answer family is recognised, so only /v2 serves it, as plain tensors. {error.message}")
        return ModelSpec(stages=(make_tensors_stage(file),))


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
