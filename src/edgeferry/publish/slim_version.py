"""A slim version of what an operator is about to publish, found and described, for the operator to take or leave.

the spec -> the base that most devices hold -> the operator's version asked about all pictures -> search -> Proposal

Searching is `slim.py`'s, asking models `examiner.py`'s; publishing what comes out is `publisher.py`'s, unchanged.

Rules:
- An evaluation set that cannot tell the allowed loss is refused before anything is searched.
- The base is the first that patches would be made from: the one asked for, else what most devices run, else the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from edgeferry.model.digest import Digest
from edgeferry.publish.examiner import Examiner, read_eval_set
from edgeferry.publish.patches import list_model_files, pick_bases, read_manifest, read_old
from edgeferry.publish.publisher import Request, Say, list_earlier, make_content
from edgeferry.publish.slim import SlimSearch, require_enough, search_slim
from edgeferry.trust.draft import open_draft
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
        base: the version that the numbers lie around; "" for none.
    """

    request: Request
    search: SlimSearch
    metric: str
    score: float | None
    pictures: int
    outcomes: int
    max_loss: float
    base: str


def propose_slim(request: Request, desk: Desk, terms: Terms, *, folder: Path, say: Say) -> Proposal:
    """Looks for the shortest version that loses no more than it may.

    Args:
        request: what the operator would publish.
        desk: where earlier versions stand.
        terms: how much may be lost, and what shows it.
        folder: an empty folder to work in.
        say: told what is done.

    Raises:
        ConfigInvalid: the pictures cannot tell, or are not as they must be.
        ModelUnreadable, ModelUnsupported, ToolMissing: the engine does not take the file.
        SpecIncomplete, MetadataUntrusted, StoreRefused, LinkDown: as `publisher.publish`.
    """
    _, spec, files = make_content(request)
    base, base_version = _read_base(request, desk)
    eval_set = read_eval_set(terms.eval_files)
    say(f"asking {request.model} {request.version} about {len(eval_set.pictures)} pictures")
    examiner = Examiner(spec, files, eval_set, folder=folder)
    require_enough(examiner.outcomes, len(eval_set.pictures), max_loss=terms.max_loss)
    search = search_slim(base, request.model_data, examiner, max_loss=terms.max_loss, say=say)
    found = Proposal(
        request=request,
        search=search,
        metric=examiner.metric,
        score=examiner.score,
        pictures=len(eval_set.pictures),
        outcomes=examiner.outcomes,
        max_loss=terms.max_loss,
        base=base_version,
    )
    return _take(found) if search.taken else found


def _read_base(request: Request, desk: Desk) -> tuple[bytes, str]:
    draft = open_draft(desk.store, desk.keys)
    bases = pick_bases(list_earlier(request, draft), asked=request.bases, running=request.running)
    if not bases:
        return b"", ""
    manifest = read_manifest(desk.store, bases[0])
    entry = manifest.find_file(request.model_file)
    models = list_model_files(manifest)
    if entry is None and len(models) == 1:
        entry = manifest.find_file(next(iter(models)))
    return (read_old(desk.store, entry), manifest.version) if entry else (b"", "")


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
