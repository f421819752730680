"""Desired and reported properties: the three classic fields and our section `edgeferry`, as plain mappings.

What this file leaves to others: transport of twins, what a device does about them (`agent/plan.py`).

Rules:
- Reading never raises on what a cloud may send: a wrong type becomes a Problem, and the part it stands in is ignored.
- Absent, null and wrong are three things: absent and null mean "not asked for", wrong is reported.
- Secrets (the query of a URL, `sas`) are kept out of Problems.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from edgeferry.errors import EdgeferryError, NameInvalid, TwinInvalid
from edgeferry.model.digest import Digest
from edgeferry.names import require_file_name, require_model_name, require_version

SECTION = "edgeferry"
CLASSIC_MODEL = "default"
"""Classic updates name no model: they fill the one of this name."""
REPORTED_RECORD_MAX_BYTES = 512
_MODELS_MAX = 64
_URL_MAX_CHARS = 4096  # string values of a twin end at 4 KB (docs: device twins, limits)
_MD5_BYTES = 16
_LABEL_OF_PLACE = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True, slots=True)
class ClassicDesired:
    """`FileName`, `DownloadUrl`, `ContentMD5` of the guide. `content_md5` is "" where the twin names none."""

    file_name: str
    download_url: str
    content_md5: str = ""

    @property
    def url_without_query(self) -> str:
        """The URL as an identity: a renewed SAS is the same object."""
        parts = urlsplit(self.download_url)
        return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


@dataclass(frozen=True, slots=True)
class ModelDesired:
    """One model of our section. `try_` gives a version that ended badly another go; a higher `priority` goes first."""

    model: str
    version: str
    manifest: Digest
    try_: int = 1
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """A desired property that cannot be followed. `place` is a path like `edgeferry.models.detector`."""

    place: str
    error: EdgeferryError


@dataclass(frozen=True, slots=True)
class Desired:
    """What the twin asks of this device. `version` is the section's `$version`."""

    version: int = 0
    classic: ClassicDesired | None = None
    repo: str = ""
    sas: str = ""
    models: tuple[ModelDesired, ...] = ()
    link: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def read_desired(desired: Mapping[str, Any]) -> Desired:
    """Reads a full desired document as the hub sent it; never raises."""
    problems: list[Problem] = []
    version = desired.get("$version", 0)
    section = _take_mapping(desired, SECTION, SECTION, problems)
    repo = _take_url(section, "repo", f"{SECTION}.repo", problems)
    models = _read_models(_take_mapping(section, "models", f"{SECTION}.models", problems), problems)
    if models and not repo:
        problems.append(_wrong(f"{SECTION}.repo", "expected the URL of the published repository, found none"))
        models = ()
    return Desired(
        version=version if isinstance(version, int) else 0,
        classic=_read_classic(desired, problems),
        repo=repo.rstrip("/"),
        sas=_take_str(section, "sas", f"{SECTION}.sas", problems).lstrip("?"),
        models=models,
        link=_take_mapping(section, "link", f"{SECTION}.link", problems),
        policy=_take_mapping(section, "policy", f"{SECTION}.policy", problems),
        problems=tuple(problems),
    )


def make_desired_patch(*, repo: str, sas: str | None, models: tuple[ModelDesired, ...]) -> dict[str, Any]:
    """The twin patch that asks for `models` from `repo`; `sas` None leaves a SAS in the twin alone, "" takes it out."""
    section: dict[str, Any] = {"repo": repo, "models": {entry.model: _make_model(entry) for entry in models}}
    if sas is not None:
        section["sas"] = sas or None
    return {SECTION: section}


def make_sas_patch(sas: str) -> dict[str, Any]:
    """The twin patch that renews the SAS and nothing else."""
    return {SECTION: {"sas": sas}}


def make_classic_patch(classic: ClassicDesired) -> dict[str, Any]:
    """The twin patch that sets the guide's three fields; an absent MD5 takes out an old one."""
    return {
        "FileName": classic.file_name,
        "DownloadUrl": classic.download_url,
        "ContentMD5": classic.content_md5 or None,
    }


def _make_model(entry: ModelDesired) -> dict[str, Any]:
    return {
        "version": entry.version,
        "manifest": str(entry.manifest),
        "try": entry.try_,
        "priority": entry.priority,
    }


def _read_models(models: Mapping[str, Any], problems: list[Problem]) -> tuple[ModelDesired, ...]:
    if len(models) > _MODELS_MAX:
        problems.append(_wrong(f"{SECTION}.models", f"expected at most {_MODELS_MAX} models, found {len(models)}"))
        return ()
    found = []
    for name, value in models.items():
        place = f"{SECTION}.models.{_LABEL_OF_PLACE.sub('?', str(name))[:63]}"
        if value is None:
            continue
        try:
            found.append(_read_model(name, value))
        except EdgeferryError as error:
            problems.append(_wrong(place, error.message))
    return tuple(found)


def _read_model(name: str, value: object) -> ModelDesired:
    if not isinstance(value, Mapping):
        raise TwinInvalid(f"expected an object with version and manifest, found {type(value).__name__}")
    return ModelDesired(
        model=require_model_name(name),
        version=require_version(value.get("version", "")),
        manifest=Digest.from_str(value.get("manifest", "")),
        try_=_require_int(value, "try", default=1, lowest=1),
        priority=_require_int(value, "priority", default=0, lowest=-1000),
    )


def _require_int(value: Mapping[str, Any], key: str, *, default: int, lowest: int) -> int:
    number = value.get(key, default)
    if not isinstance(number, int) or isinstance(number, bool) or number < lowest:
        raise TwinInvalid(f"expected {key} as a whole number from {lowest}, found {number!r:.40}")
    return number


def _read_classic(desired: Mapping[str, Any], problems: list[Problem]) -> ClassicDesired | None:
    if desired.get("FileName") is None or desired.get("DownloadUrl") is None:
        return None  # each may be absent from a twin; without both there is nothing to fetch
    before = len(problems)
    name = _take_str(desired, "FileName", "FileName", problems)
    url = _take_url(desired, "DownloadUrl", "DownloadUrl", problems)
    md5 = _take_str(desired, "ContentMD5", "ContentMD5", problems)
    if md5 and not _is_md5(md5):
        problems.append(_wrong("ContentMD5", "expected the base64 of 16 bytes, found something else"))
    try:
        require_file_name(name)
    except NameInvalid as error:
        problems.append(_wrong("FileName", error.message))
    return ClassicDesired(name, url, md5) if len(problems) == before else None


def _is_md5(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == _MD5_BYTES
    except (binascii.Error, ValueError):
        return False


def _take_mapping(source: Mapping[str, Any], key: str, place: str, problems: list[Problem]) -> Mapping[str, Any]:
    value = source.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        problems.append(_wrong(place, f"expected an object, found {type(value).__name__}"))
        return {}
    return value


def _take_str(source: Mapping[str, Any], key: str, place: str, problems: list[Problem]) -> str:
    value = source.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        problems.append(_wrong(place, f"expected a text, found {type(value).__name__}"))
        return ""
    return value


def _take_url(source: Mapping[str, Any], key: str, place: str, problems: list[Problem]) -> str:
    url = _take_str(source, key, place, problems)
    if url and not _is_http_url(url):
        problems.append(_wrong(place, f"expected an http or https URL of at most {_URL_MAX_CHARS} characters"))
        return ""
    return url


def _is_http_url(url: str) -> bool:
    if len(url) > _URL_MAX_CHARS or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _wrong(place: str, message: str) -> Problem:
    return Problem(place, TwinInvalid(f"{place}: {message}", place=place))
