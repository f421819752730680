"""What shall run here, and what has to be fetched for it: decisions, without I/O.

What this file leaves to others: reading the twin (`twin/contract.py`), fetching (`fetch.py`), doing (`steps.py`).

Rules:
- A full desired document in, all targets out: what a twin no longer names is no longer a target.
- Where our section names a model, the three classic fields are not followed, and that is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from edgeferry.agent.record import (
    Artifact,
    Target,
    make_classic_key,
    make_local_version,
    make_signed_key,
)
from edgeferry.errors import ClassicRefused, EdgeferryError, NameInvalid, TwinInvalid
from edgeferry.link.policy import LinkPolicy, read_link_policy
from edgeferry.link.route import Step, plan_steps
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest
from edgeferry.names import get_stem, require_file_name
from edgeferry.twin.contract import CLASSIC_MODEL, SECTION, ClassicDesired, Desired, Problem
from edgeferry.twin.shadow import ShadowPolicy, read_shadow_policy

_OURS = re.compile(r"\.?edgeferry", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the twin asks for, by model, and what of it cannot be followed."""

    targets: Mapping[str, Target] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    link: LinkPolicy = field(default_factory=LinkPolicy)
    default_model: str | None = None
    shadow: ShadowPolicy | None = None


def make_wanted(
    desired: Desired, link: LinkPolicy, *, accept_classic: bool, shadow: ShadowPolicy | None = None
) -> Wanted:
    """Turns a full desired document into what this device shall do; never raises on what a cloud may send.

    `link` and `shadow` are what this device's own settings say; the twin goes before them.
    """
    targets, problems = _make_targets(desired, accept_classic=accept_classic)
    link, wrong = read_link_policy(desired.link, link)
    model = desired.policy.get("default_model")
    problems += tuple(_make_problem(f"{SECTION}.link.{one.key}", one.message) for one in wrong)
    if model is not None and not isinstance(model, str):
        problems += (_make_problem(f"{SECTION}.policy.default_model", "expected the name of a model"),)
    if "shadow" in desired.policy:
        shadow, wrong_shadow = read_shadow_policy(desired.policy["shadow"], shadow)
        problems += (_make_problem(f"{SECTION}.policy.shadow", wrong_shadow),) if wrong_shadow else ()
    return Wanted(targets, problems, link, model if isinstance(model, str) else None, shadow)


def _make_problem(place: str, message: str) -> Problem:
    return Problem(place, TwinInvalid(f"{place}: {message}", place=place))


def _make_targets(desired: Desired, *, accept_classic: bool) -> tuple[dict[str, Target], tuple[Problem, ...]]:
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
        return targets, desired.problems
    try:
        _require_classic(desired, accept_classic=accept_classic)
        return {CLASSIC_MODEL: _make_classic(desired.classic)}, desired.problems
    except EdgeferryError as error:
        return targets, (*desired.problems, Problem("FileName", error))


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


def plan_artifacts(
    manifest: Manifest,
    have: Set[Digest],
    *,
    others: Iterable[Manifest] = (),
    whole: bool = False,
    damaged: Set[Digest] = frozenset(),
) -> tuple[Artifact, ...]:
    """What `plan_steps` finds, as the journal holds it; raises what it does."""
    return tuple(map(_make_artifact, plan_steps(manifest, have, others=others, whole=whole, damaged=damaged)))


def _make_artifact(step: Step) -> Artifact:
    source = step.source
    return Artifact(
        kind=source.kind,
        blob=source.blob,
        size=source.size,
        codec=source.codec,
        memory=source.memory,
        base=source.base,
        target=str(step.target),
        target_size=step.size,
        chunks=source.chunks,
    )
