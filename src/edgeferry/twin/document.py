"""The twin document: merge patch, versions, metadata, limits. Pure; the clock is an argument.

Who may write, where it is kept and who is told are the hub's business. The service REST's shapes stand in
wire/service_api.py.

Rules:
- A write never changes a value in place: it returns a new TwinDocument.
- `$version` of a section rises by one with every accepted write of it. The etag changes with every write of tags or
  desired.
- null deletes a key in a merge; in a replacement it is the same as absence. A section never holds a null key.
- A replacement (PUT) is told to the device as a twin patch with nulls for the keys that went.
- `$version` and `$metadata` at the top of what comes in are dropped: SDKs send back what they read.

Limits: docs/formats/iothub.md section 2 (Azure IoT Hub's documented ones); sizes count bytes of keys and values, 8 for
a number, 4 for a boolean.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from edgeferry.errors import LimitExceeded, RequestInvalid

SECTION_MAX_BYTES = 32 * 1024
TAGS_MAX_BYTES = 8 * 1024
DEPTH_MAX = 10
JSON_DEPTH_MAX = 100  # of a body in all; sections have their own limit
KEY_MAX_BYTES = 1024
STRING_MAX_BYTES = 4 * 1024
INTEGER_MIN, INTEGER_MAX = -4503599627370496, 4503599627370495
KEYS_MAX = 4096  # ours: empty values count as nothing, and each key has metadata of its own
BODY_MAX_BYTES = 4 * SECTION_MAX_BYTES  # JSON text of a section at its limit, escapes included
_FORBIDDEN_IN_KEY = re.compile(r"[\x00-\x1f\x7f-\x9f.$ ]")
_SERVER_KEYS = ("$version", "$metadata")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """Desired or reported: what it holds, how often it was written, and when each key was."""

    body: Json = field(default_factory=dict)
    version: int = 1
    metadata: Json = field(default_factory=dict)

    def to_dict(self, *, metadata: bool = False) -> Json:
        """The body with `$version`, and `$metadata` where the service asks for it."""
        return {**self.body, **({"$metadata": self.metadata} if metadata else {}), "$version": self.version}


@dataclass(frozen=True, slots=True)
class TwinDocument:
    """One twin. `revision` counts the writes of tags and desired and is what the etag says."""

    tags: Json = field(default_factory=dict)
    desired: Section = field(default_factory=Section)
    reported: Section = field(default_factory=Section)
    revision: int = 1

    @property
    def etag(self) -> str:
        """Base64 of the revision as eight bytes, without quotes, as Azure's look."""
        return base64.b64encode(self.revision.to_bytes(8, "big")).decode("ascii")

    @property
    def version(self) -> int:
        """Rises with every write of any section."""
        return self.revision + self.reported.version - 1

    def to_device_view(self) -> Json:
        """What GET twin over MQTT answers: both sections, no `properties` wrapper, no metadata."""
        return {"desired": self.desired.to_dict(), "reported": self.reported.to_dict()}


def make_twin(now: float) -> TwinDocument:
    """An empty twin as of `now` (Unix seconds)."""
    stamp = {"$lastUpdated": format_time(now)}
    return TwinDocument(desired=Section(metadata=stamp), reported=Section(metadata=dict(stamp)))


def parse_object(data: bytes, *, limit_bytes: int = BODY_MAX_BYTES) -> Json:
    """JSON bytes that must be one object.

    Raises:
        LimitExceeded: longer than `limit_bytes`.
        RequestInvalid: not JSON, or not an object.
    """
    if len(data) > limit_bytes:
        raise LimitExceeded(f"expected at most {limit_bytes} bytes of JSON, found {len(data)}", size_bytes=len(data))
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RequestInvalid("the body is not JSON") from error
    _require_depth(data, value)
    return _require_object(value, "the body")


def patch_reported(twin: TwinDocument, patch: Json, *, now: float) -> TwinDocument:
    """Merges what the device reports.

    Raises:
        LimitExceeded: the patch or the outcome passes a limit.
        RequestInvalid: a key or value is not allowed.
    """
    cleaned = drop_server_keys(patch)
    return replace(twin, reported=_merge_section(twin.reported, cleaned, now=now, versioned=False))


def write_twin(
    twin: TwinDocument, *, tags: Json | None, desired: Json | None, now: float, replace_all: bool = False
) -> tuple[TwinDocument, Json | None]:
    """A write of the service: merges (PATCH), or replaces with `replace_all` (PUT; a section that is None stays).

    Returns:
        The new twin, and the twin patch to send to the device (nulls and `$version` included), None when desired stays.

    Raises:
        LimitExceeded: a section passes a limit.
        RequestInvalid: a key or value is not allowed.
    """
    new_tags = twin.tags if tags is None else _write_tags(twin.tags, tags, replace_all=replace_all)
    section, patch = twin.desired, None
    if desired is not None:
        patch = drop_server_keys(desired)
        if replace_all:
            check_values(patch)
            patch = make_patch(section.body, merge({}, patch))
        section = _merge_section(section, patch, now=now, versioned=True)
        patch = {**patch, "$version": section.version}
    return replace(twin, tags=new_tags, desired=section, revision=twin.revision + 1), patch


def merge(target: Mapping[str, Any], patch: Mapping[str, Any]) -> Json:
    """JSON merge patch (RFC 7396) of two objects: null deletes, objects merge, all else replaces."""
    merged = dict(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def make_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Json:
    """The merge patch that turns `before` into `after`, with nulls for the keys that went."""
    patch: Json = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            below = make_patch(old, value)
            patch.update({key: below} if below else {})
        elif key not in before or not _is_same(old, value):
            patch[key] = value
    return patch


def drop_server_keys(section: Json) -> Json:
    """Without the keys that the hub itself writes."""
    return {key: value for key, value in section.items() if key not in _SERVER_KEYS}


def check_values(section: Json) -> None:
    """Checks depth, keys, strings and numbers of a section or a twin patch.

    Raises:
        LimitExceeded: too deep, a key or string too long, an integer too large.
        RequestInvalid: a key holds a forbidden sign, or a value is no JSON.
    """
    _check_value(section, depth=0)


def get_size_bytes(value: Any) -> int:
    """Bytes as the limits count them."""
    if isinstance(value, dict):
        return sum(len(key.encode("utf-8", "replace")) + get_size_bytes(below) for key, below in value.items())
    if isinstance(value, list):
        return sum(map(get_size_bytes, value))
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    return 4 if isinstance(value, bool) else 0 if value is None else 8


def format_time(now: float) -> str:
    """Unix seconds as the `$lastUpdated` of a twin: UTC, milliseconds."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _merge_section(section: Section, patch: Json, *, now: float, versioned: bool) -> Section:
    check_values(patch)
    body = merge(section.body, patch)
    _require_size(body, SECTION_MAX_BYTES)
    version = section.version + 1
    stamp: Json = {"$lastUpdated": format_time(now)}
    if versioned:
        stamp["$lastUpdatedVersion"] = version
    return Section(body, version, _stamp(section.metadata, patch, stamp))


def _write_tags(old: Json, tags: Json, *, replace_all: bool) -> Json:
    check_values(tags)
    merged = merge({} if replace_all else old, tags)
    _require_size(merged, TAGS_MAX_BYTES)
    return merged


def _stamp(metadata: Json, patch: Json, stamp: Json) -> Json:
    """The `$metadata` tree mirrors the body; every key that a write touched carries its time."""
    stamped = {**metadata, **stamp}
    for key, value in patch.items():
        if value is None:
            stamped.pop(key, None)
        elif isinstance(value, dict):
            stamped[key] = _stamp(stamped.get(key, {}), value, stamp)
        else:
            stamped[key] = dict(stamp)
    return stamped


def _check_value(value: Any, *, depth: int) -> None:
    if isinstance(value, dict | list) and depth > DEPTH_MAX:
        raise LimitExceeded(f"a twin section is at most {DEPTH_MAX} levels deep")
    if isinstance(value, dict):
        for key, below in value.items():
            _check_key(key)
            _check_value(below, depth=depth + 1)
    elif isinstance(value, list):
        for below in value:
            _check_value(below, depth=depth + 1)
    else:
        _check_plain(value)


def _check_key(key: str) -> None:
    if not key or _FORBIDDEN_IN_KEY.search(key):
        raise RequestInvalid(f"a twin key has no control characters, '.', '$' or blanks: {key!r:.80}")
    if len(key.encode("utf-8", "replace")) > KEY_MAX_BYTES:
        raise LimitExceeded(f"a twin key has at most {KEY_MAX_BYTES} bytes")


def _check_plain(value: Any) -> None:
    if isinstance(value, str):
        if len(value.encode("utf-8", "replace")) > STRING_MAX_BYTES:
            raise LimitExceeded(f"a string in a twin has at most {STRING_MAX_BYTES} bytes", size_bytes=len(value))
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RequestInvalid("a number in a twin is finite")
    elif isinstance(value, int):
        if not INTEGER_MIN <= value <= INTEGER_MAX:
            raise LimitExceeded(f"an integer in a twin lies between {INTEGER_MIN} and {INTEGER_MAX}")
    elif value is not None:
        raise RequestInvalid(f"a twin holds JSON values only, found {type(value).__name__}")


def _require_depth(data: bytes, value: Any) -> None:
    """Refuses what is nested so deep that writing it out again may fail; only a text of many brackets is looked at."""
    if data.count(b"{") + data.count(b"[") <= JSON_DEPTH_MAX:
        return
    level = [value]
    for _ in range(JSON_DEPTH_MAX):
        level = [below for one in level if isinstance(one, dict | list) for below in _iterate(one)]
    if any(isinstance(one, dict | list) for one in level):
        raise RequestInvalid(f"expected JSON of at most {JSON_DEPTH_MAX} levels")


def _iterate(value: Json | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _require_size(body: Json, limit_bytes: int) -> None:
    size = get_size_bytes(body)
    if size > limit_bytes:
        raise LimitExceeded(f"expected at most {limit_bytes} bytes in this section, found {size}", size_bytes=size)
    keys = _count_keys(body)
    if keys > KEYS_MAX:
        raise LimitExceeded(f"expected at most {KEYS_MAX} keys in this section, found {keys}")
    text_bytes = len(msgspec.json.encode(body))
    if text_bytes > BODY_MAX_BYTES:  # nulls, empty lists and empty strings count as nothing above
        raise LimitExceeded(f"expected a section of at most {BODY_MAX_BYTES} bytes of JSON, found {text_bytes}")


def _count_keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_count_keys, value.values()))
    return sum(map(_count_keys, value)) if isinstance(value, list) else 0


def _require_object(value: Any, what: str) -> Json:
    if not isinstance(value, dict):
        raise RequestInvalid(f"expected {what} to be a JSON object, found {type(value).__name__}")
    return value


def _is_same(old: Any, new: Any) -> bool:
    """Equal as JSON: Python holds True == 1 == 1.0, JSON does not hold the first."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_is_same, old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_is_same(old[key], new[key]) for key in old)
    return isinstance(old, bool) == isinstance(new, bool) and bool(old == new)
