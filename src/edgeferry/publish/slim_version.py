"""A slim version of what an operator is about to publish, found and described, for the operator to take or leave.

published already? -> the base that most devices hold -> the operator's version asked -> search, gate -> Proposal

Searching is `slim.py`'s, asking models `examiner.py`'s; publishing what comes out is `publisher.py`'s, unchanged.

Rules:
- An evaluation set that cannot tell the allowed loss is refused before anything is searched.
- The base is the first that patches would be made from: the one asked for, else what most devices run, else the newest.
  One whose file cannot be read is passed over, and that is said.
- A version that is published is not searched again: it is that version, or a Conflict.
- A level whose golden truth a device would not find is not proposed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec

from edgeferry.errors import Conflict, DeltaError, ManifestInvalid
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import FileEntry, Manifest
from edgeferry.publish.examiner import Examiner, read_eval_set
from edgeferry.publish.golden_gate import GoldenGate
from edgeferry.publish.patches import list_model_files, pick_bases, read_manifest, read_old
from edgeferry.publish.publisher import Request, Say, find_golden, list_earlier, make_content
from edgeferry.publish.slim import SlimSearch, count_telling, require_enough, search_slim
from edgeferry.storage.files import make_folder
from edgeferry.trust.draft import Draft, Listed, ObjectReader, open_draft
from edgeferry.trust.signer import Desk


@dataclass(frozen=True, slots=True)
class Terms:
    """The most that may be lost, in points, and everything in the folder of pictures, by name."""

    max_loss: float
    eval_files: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A slim version and what is known of it.

    Attributes:
        request: to publish it; the operator's own where `search.taken` is 0.
        search: the levels that were tried.
        metric: what the loss is measured by. score: of the operator's version, in points; None for disagreement.
        pictures, outcomes: that were looked at, and objects or classes in them.
        telling: outcomes of equal weight that tell as much: what standard errors are counted with.
        base: the version that the numbers lie around; "" for none.
        published: this very version is there already; nothing was searched.
    """

    request: Request
    search: SlimSearch
    metric: str
    score: float | None
    pictures: int
    outcomes: int
    telling: int
    max_loss: float
    base: str
    published: bool = False


def propose_slim(request: Request, desk: Desk, terms: Terms, *, folder: Path, say: Say) -> Proposal:
    """Looks for the shortest version that loses no more than it may.

    Args:
        request: what the operator would publish.
        desk: where earlier versions stand.
        terms: how much may be lost, and what shows it.
        folder: an empty folder to work in.
        say: told what is done.

    Raises:
        Conflict: the version is published with other content.
        ConfigInvalid: the pictures cannot tell, or are not as they must be.
        ModelUnreadable, ModelUnsupported, ToolMissing: the engine does not take the file.
        SpecIncomplete, MetadataUntrusted, StoreRefused, LinkDown: as `publisher.publish`.
    """
    made, files = make_content(request)
    spec = made.spec
    draft = open_draft(desk.store, desk.keys)
    published = _find_published(request, draft, store=desk.store, max_loss=terms.max_loss)
    if published is not None:
        return published
    earlier = list_earlier(request, draft)
    base, base_version = _read_base(request, earlier, store=desk.store, say=say)
    golden, _ = find_golden(request, read_manifest(desk.store, earlier[-1]) if earlier else None)
    eval_set = read_eval_set(terms.eval_files)
    say(f"asking {request.model} {request.version} about {len(eval_set.pictures)} pictures")
    examiner = Examiner(spec, files, eval_set, folder=make_folder(folder / "eval"))
    gate = GoldenGate(spec, files, golden, store=desk.store, folder=make_folder(folder / "gate"))
    require_enough(examiner.outcomes, len(eval_set.pictures), max_loss=terms.max_loss, by_label=examiner.by_label)
    search = search_slim(
        base,
        request.model_data,
        examiner,
        max_loss=terms.max_loss,
        say=say,
        find_fault=partial(gate.find_fault, request.model_file),
    )
    found = Proposal(
        request=request,
        search=search,
        metric=examiner.metric,
        score=examiner.score,
        pictures=len(eval_set.pictures),
        outcomes=examiner.outcomes,
        telling=count_telling(examiner.outcomes, examiner.by_label),
        max_loss=terms.max_loss,
        base=base_version,
    )
    return _take(found) if search.taken else found


def _find_published(request: Request, draft: Draft, *, store: ObjectReader, max_loss: float) -> Proposal | None:
    """What is published of the given file under this version: itself, or a slim version that loses no more."""
    listed = draft.find_version(request.model, request.version)
    if listed is None:
        return None
    manifest, given = read_manifest(store, listed), str(Digest.of(request.model_data))
    entry, slim = manifest.find_file(request.model_file), manifest.slim
    if entry is not None and entry.sha256 == given and slim is None:
        return _make_published(request, max_loss)
    if entry is None or slim is None or slim.get("of") != given or float(slim.get("loss", math.inf)) > max_loss:
        raise Conflict(f"{request.model} {request.version} is published with other content; choose a new version")
    again = msgspec.structs.replace(request, model_data=read_old(store, entry), slim=dict(slim))
    return _make_published(again, max_loss)


def _make_published(request: Request, max_loss: float) -> Proposal:
    search = SlimSearch(request.model_data, (), 0)
    return Proposal(
        request=request,
        search=search,
        metric="",
        score=None,
        pictures=0,
        outcomes=0,
        telling=0,
        max_loss=max_loss,
        base="",
        published=True,
    )


def _read_base(request: Request, earlier: Sequence[Listed], *, store: ObjectReader, say: Say) -> tuple[bytes, str]:
    """The first base that can be read, and its version; both empty where there is none."""
    for base in pick_bases(earlier, asked=request.bases, running=request.running):
        entry = _find_old(request, read_manifest(store, base))
        try:
            if entry is not None:
                return read_old(store, entry), base.version
        except (DeltaError, ManifestInvalid) as error:
            say(f"{base.version} is no base: {error.message}")
    return b"", ""


def _find_old(request: Request, manifest: Manifest) -> FileEntry | None:
    entry, models = manifest.find_file(request.model_file), list_model_files(manifest)
    return manifest.find_file(next(iter(models))) if entry is None and len(models) == 1 else entry


def _take(found: Proposal) -> Proposal:
    """The proposal with the request to publish what was found."""
    facts: dict[str, str | float] = {
        "of": str(Digest.of(found.request.model_data)),
        "metric": found.metric,
        "loss": round(found.search.levels[found.search.taken].loss, 4),
        "max_loss": found.max_loss,
        "pictures": float(found.pictures),
    }
    return replace(found, request=msgspec.structs.replace(found.request, model_data=found.search.data, slim=facts))
