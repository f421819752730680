"""What shall run here, and what has to be fetched for it: decisions, without I/O.

What this file leaves to others: reading the twin (`twin/contract.py`), fetching (`fetch.py`), doing (`steps.py`).

Rules:
- A full desired document in, all targets out: what a twin no longer names is no longer a target.
- Where our section names a model, the three classic fields are not followed, and that is said.
- Paths from another module's message are confined to the storage root, links included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeferry.agent.record import (
    Artifact,
    Target,
    make_classic_key,
    make_local_version,
    make_signed_key,
)
from edgeferry.errors import ClassicRefused, EdgeferryError, NameInvalid, RequestInvalid, TwinInvalid
from edgeferry.link.route import pick_route
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest
from edgeferry.names import get_stem, require_file_name
from edgeferry.twin.contract import CLASSIC_MODEL, ClassicDesired, Desired, Problem

_OURS = re.compile(r"edgeferry", re.IGNORECASE)
_PATH_MAX_CHARS = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the twin asks for, by model, and what of it cannot be followed."""

    targets: Mapping[str, Target] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def make_wanted(desired: Desired, *, accept_classic: bool) -> Wanted:
    """Turns a full desired document into targets; never raises on what a cloud may send."""
    targets = {
        entry.model: Target(
            kind="signed",
            model=entry.model,
            version=entry.version,
            key=make_signed_key(entry.model, entry.manifest, entry.try_),
            identity=str(entry.manifest),
            try_=entry.try_,
            priority=entry.priority,
            repo=desired.repo,
            sas=desired.sas,
        )
        for entry in desired.models
    }
    if desired.classic is None:
        return Wanted(targets, desired.problems)
    try:
        _require_classic(desired, accept_classic=accept_classic)
        return Wanted({CLASSIC_MODEL: _make_classic(desired.classic)}, desired.problems)
    except EdgeferryError as error:
        return Wanted(targets, (*desired.problems, Problem("FileName", error)))


def _require_classic(desired: Desired, *, accept_classic: bool) -> None:
    if desired.models:
        raise ClassicRefused("FileName is not followed: the section edgeferry of this twin names models")
    if not accept_classic:
        raise ClassicRefused("FileName is not followed: this device takes signed versions only")


def _make_classic(classic: ClassicDesired) -> Target:
    stem = get_stem(require_file_name(classic.file_name))
    if _OURS.match(stem) or stem == classic.file_name:
        raise NameInvalid(
            f"expected a FileName like 'model-1.0.zip', not starting with 'edgeferry', found {stem!r:.80}"
        )
    if not classic.download_url:
        raise TwinInvalid("DownloadUrl: expected an http or https URL, found none")
    key = make_classic_key(classic.file_name, classic.content_md5, classic.url_without_query)
    identity = Digest.of(key.encode("utf-8", "surrogatepass"))
    return Target(
        kind="classic",
        model=CLASSIC_MODEL,
        version=make_local_version(classic.file_name, identity),
        key=key,
        identity=str(identity),
        file_name=classic.file_name,
        url=classic.download_url,
        md5=classic.content_md5,
    )


def make_local_target(message: Mapping[str, Any], storage: Path) -> Target:
    """The target that another module's message `{"local_model_path", "local_labelmap_path"}` names; reads the disk.

    Args:
        message: the parsed body.
        storage: the storage root that both modules share.

    Raises:
        RequestInvalid: a path is missing, leads out of `storage`, or is no file.
    """
    model = _confine(message.get("local_model_path"), storage, "local_model_path")
    given = message.get("local_labelmap_path")
    label = _confine(given, storage, "local_labelmap_path") if given not in (None, "") else ""
    status = (storage / model).stat()
    key = f"local|{model}|{label}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
    identity = Digest.of(key.encode("utf-8", "surrogatepass"))
    return Target(
        kind="local",
        model=CLASSIC_MODEL,
        version=make_local_version(Path(model).parent.name + ".d", identity),
        key=key,
        identity=str(identity),
        model_path=model,
        label_path=label,
    )


def _confine(value: object, storage: Path, what: str) -> str:
    """`value` relative to `storage`, every link in it followed."""
    if not isinstance(value, str) or not value or len(value) > _PATH_MAX_CHARS or "\x00" in value:
        raise RequestInvalid(f"expected {what} as a path below the storage root")
    root = storage.resolve()
    path = (root / value).resolve()
    if Path(value).is_absolute() or ".." in Path(value).parts or not path.is_relative_to(root):
        raise RequestInvalid(f"expected {what} to stay below the storage root, found {value!r:.80}")
    if not path.is_file():
        raise RequestInvalid(f"expected a file at {what}, found none at {value!r:.80}")
    return str(path.relative_to(root))


def plan_artifacts(manifest: Manifest, have: Set[Digest]) -> tuple[Artifact, ...]:
    """The downloads that make `manifest` complete here, each once: its files, then golden inputs that are new.

    Raises:
        ManifestInvalid: a file has no source that this release can decode.
    """
    found: dict[str, Artifact] = {}
    for entry in manifest.files:
        for step in pick_route(entry, have).steps:
            source = step.source
            found.setdefault(
                str(step.target),
                Artifact(
                    kind=source.kind,
                    blob=source.blob,
                    size=source.size,
                    codec=source.codec,
                    memory=source.memory,
                    base=source.base,
                    target=str(step.target),
                    target_size=entry.size,
                ),
            )
    for golden in manifest.golden:
        if Digest.from_str(golden.input) not in have:
            found.setdefault(golden.input, _make_plain(golden.input, golden.size))
    return tuple(found.values())


def _make_plain(blob: str, size: int) -> Artifact:
    return Artifact(blob=blob, size=size, target=blob, target_size=size)


def list_digests(manifest: Manifest) -> frozenset[Digest]:
    """Every blob that `manifest` needs on this device."""
    names = (*(entry.sha256 for entry in manifest.files), *(golden.input for golden in manifest.golden))
    return frozenset(map(Digest.from_str, names))
