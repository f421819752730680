"""Automatic configurations: what one says, which twins it is for, and what their desired properties become. Pure.

Where configurations are kept, and when they are applied, is the hub's (hub/configurations.py).

Rules:
- A configuration holds: as long as it is there, the twins it matches have what it says, whoever writes otherwise.
- Of two that say something of the same path, the higher priority wins; of equal ones, the newer.
- Of two IoT Edge deployments that bring a whole `$edgeAgent`, the higher one counts alone; layers above it stay.
- One that is overwritten in part is applied all the same; one of which nothing is left to see is not.
- A configuration that is deleted, or matches no more, takes nothing back: what it wrote stays until another write.

Source: docs/formats/query.md, and the documentation of IoT Hub's automatic device management.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from edgeferry.errors import LimitExceeded, NameInvalid, RequestInvalid
from edgeferry.names import require_hub_id
from edgeferry.twin.document import (
    Json,
    check_values,
    drop_server_keys,
    format_time,
    make_patch,
    make_twin,
    merge,
    write_twin,
)
from edgeferry.twin.query import Query, parse_query, parse_target_condition

EDGE_AGENT, EDGE_HUB = "$edgeAgent", "$edgeHub"
DESIRED = "properties.desired"
METRICS_MAX = 20
LABELS_MAX = 20
CONFIGURATIONS_MAX = 100  # in one hub, as IoT Hub's standard tiers
_CONTENTS = frozenset({"deviceContent", "moduleContent", "modulesContent"})
PRIORITY_MAX = 2**31 - 1
NAME_PATTERN = r"[a-z0-9\-:+%_#*?!(),=@;$']{1,128}"
_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Content:
    """What a configuration writes, as path below a twin -> value: to the device, a matching module, named modules."""

    device: Mapping[str, Any] = field(default_factory=dict)
    module: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def get_paths(self, module: str | None) -> Mapping[str, Any]:
        """What it says of the device (None), or of one of its modules."""
        return self.device if module is None else self.module or self.modules.get(module, {})

    @property
    def is_edge_base(self) -> bool:
        """Whether it is a whole IoT Edge deployment, not a layer."""
        return DESIRED in self.modules.get(EDGE_AGENT, {})

    def get_declared_modules(self) -> list[str]:
        """Modules that an IoT Edge device would start: they need an identity."""
        desired = make_desired({}, [self.modules.get(EDGE_AGENT, {})])
        declared = desired.get("modules")
        system = [name for name in (EDGE_AGENT, EDGE_HUB) if name in self.modules]
        return [*system, *(declared if isinstance(declared, dict) else {})]


@dataclass(frozen=True, slots=True)
class Configuration:
    """One configuration. Times are Unix seconds; `metrics` are queries by name; `raw` is the content as it was sent."""

    name: str
    content: Content
    target: Query
    target_condition: str
    priority: int
    metrics: Mapping[str, str]
    labels: Mapping[str, str]
    raw: Json
    etag: str
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class StoredConfiguration:
    """A configuration as it is kept: `body` is what the service sent last."""

    name: str
    body: Json
    etag: str
    created_at: float
    updated_at: float


def parse_configuration(stored: StoredConfiguration) -> Configuration:
    """Reads what the service sent.

    Raises:
        RequestInvalid: something in it is not of the form that IoT Hub documents; the message says what.
        LimitExceeded: too many metrics or labels.
    """
    body = stored.body
    require_configuration_name(stored.name)
    if body.get("id", stored.name) != stored.name:
        raise RequestInvalid(f"the body speaks of another configuration: {body.get('id')!r:.80}")
    with _coded("InvalidConfigurationContent"):
        content = parse_content(body.get("content"))
    condition = "" if body.get("targetCondition") is None else body["targetCondition"]
    if not isinstance(condition, str):
        raise RequestInvalid("expected 'targetCondition' to be a text")
    with _coded("InvalidConfigurationTargetCondition"):
        target = parse_target_condition(condition) if condition.strip() else _NOBODY
    if bool(content.module) != (target.source == "devices.modules") and target is not _NOBODY:
        raise RequestInvalid(
            "'moduleContent' goes with a target condition 'FROM devices.modules WHERE ...', no other does"
        )
    queries = _require_object(_get(body, "metrics"), "metrics")
    metrics = _parse_texts(_get(queries, "queries"), "metrics.queries", METRICS_MAX)
    with _coded("InvalidConfigurationCustomMetricsQuery"):
        for text in metrics.values():
            parse_query(text)
    labels = _parse_texts(_get(body, "labels"), "labels", LABELS_MAX)
    return Configuration(
        stored.name,
        content,
        target,
        condition,
        _parse_priority(body.get("priority", 0)),
        metrics,
        labels,
        body.get("content") or {},
        stored.etag,
        stored.created_at,
        stored.updated_at,
    )


def require_configuration_name(name: str) -> str:
    """Returns `name` when it may name a configuration; raises RequestInvalid otherwise."""
    if not _NAME.fullmatch(name):
        raise RequestInvalid(
            "expected a configuration's id of 1 to 128 lower-case letters, digits or -:+%_#*?!(),=@;$'"
        )
    return name


def require_same_content(before: Configuration, after: Configuration) -> None:
    """Raises RequestInvalid when a change of a configuration would change its content, as IoT Hub does."""
    if before.content != after.content:
        code = "CannotModifyImmutableConfigurationContent"
        raise RequestInvalid("the content of a configuration stays as it was made: make another one", service_code=code)


@contextmanager
def _coded(service_code: str) -> Iterator[None]:
    """What cannot be read is refused under IoT Hub's code for the part that it stands in."""
    try:
        yield
    except (RequestInvalid, NameInvalid) as error:
        raise RequestInvalid(error.message, service_code=service_code) from error


def parse_content(content: Any) -> Content:
    """Reads `deviceContent`, `moduleContent` and `modulesContent`.

    Raises:
        RequestInvalid: none of them, something else, a path that is not below `properties.desired`.
        NameInvalid: a module's name cannot be one.
        LimitExceeded: a value, or all for one twin together, passes a limit of twins.
    """
    fields = _require_object(content, "content")
    if not fields.keys() <= _CONTENTS:
        raise RequestInvalid(f"expected {', '.join(sorted(_CONTENTS))} only, found {sorted(fields)!r:.200}")
    modules = _require_object(_get(fields, "modulesContent"), "modulesContent")
    parsed = Content(
        _parse_paths(_get(fields, "deviceContent"), "deviceContent"),
        _parse_paths(_get(fields, "moduleContent"), "moduleContent"),
        {name: _parse_paths(paths, f"modulesContent.{name}") for name, paths in modules.items()},
    )
    if not (parsed.device or parsed.module or parsed.modules):
        raise RequestInvalid("expected 'deviceContent', 'moduleContent' or 'modulesContent' with something in it")
    if parsed.module and (parsed.device or parsed.modules):
        raise RequestInvalid("'moduleContent' stands alone")
    for name in (*parsed.modules, *parsed.get_declared_modules()):
        require_hub_id(name)
    return parsed


def make_desired(body: Json, contributions: Iterable[Mapping[str, Any]]) -> Json:
    """The desired properties after each contribution was written over those before; `body` is not changed."""
    desired = body
    for paths in contributions:
        for path in sorted(paths, key=len):  # the whole section first, then what stands inside it
            steps = path.removeprefix(DESIRED).removeprefix(".").split(".")
            value = merge({}, paths[path]) if isinstance(paths[path], dict) else paths[path]
            desired = value if steps == [""] else _assign(desired, steps, value)
    return desired


def judge(body: Json, ranked: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, bool]:
    """Which of several contributions, the last one the highest, stand in these desired properties.

    Returns:
        By name, for those that stand: whether something of it is to be seen beneath those above.
    """
    standing: dict[str, bool] = {}
    above: list[Mapping[str, Any]] = []
    for name, paths in reversed(ranked):
        if not make_patch(body, make_desired(body, [paths, *above])):
            standing[name] = not all(any(_covers(one, path) for one in above) for path in paths)
            above.insert(0, paths)
    return standing


def choose(matching: Sequence[Configuration]) -> list[Configuration]:
    """Those that count for one device, in the order in which they write: the last one wins."""
    ordered = sorted(matching, key=lambda one: (one.priority, one.created_at, one.name))
    bases = [index for index, one in enumerate(ordered) if one.content.is_edge_base]
    lowest = bases[-1] if bases else 0
    return [one for index, one in enumerate(ordered) if index >= lowest or not one.content.modules]


def make_configuration_body(
    configuration: Configuration, *, counts: Mapping[str, int], results: Mapping[str, int]
) -> Json:
    """As the service shows it; `counts` are targetedCount and appliedCount, `results` those of its metrics."""
    return {
        "id": configuration.name,
        "schemaVersion": "1.0",
        "labels": dict(configuration.labels),
        "content": configuration.raw,
        "contentType": "assignment",
        "targetCondition": configuration.target_condition,
        "createdTimeUtc": format_time(configuration.created_at),
        "lastUpdatedTimeUtc": format_time(configuration.updated_at),
        "priority": configuration.priority,
        "systemMetrics": {"results": dict(counts), "queries": {}},
        "metrics": {"results": dict(results), "queries": dict(configuration.metrics)},
        "etag": configuration.etag,
    }


_EMPTY = make_twin(0.0)
_NOBODY = parse_target_condition("deviceId = ''")


def _assign(body: Json, steps: Sequence[str], value: Any) -> Json:
    """`body` with `value` at a path of keys; what stood there is replaced, null deletes."""
    first, *rest = steps
    below = body.get(first)
    inner = _assign(below if isinstance(below, dict) else {}, rest, value) if rest else value
    if inner is None:
        return {key: one for key, one in body.items() if key != first}
    return {**body, first: inner}


def _covers(above: Mapping[str, Any], path: str) -> bool:
    return any(path == one or path.startswith(f"{one}.") for one in above)


def _parse_paths(paths: Any, what: str) -> dict[str, Any]:
    fields = _require_object(paths, what)
    for path, value in fields.items():
        if path != DESIRED and not re.fullmatch(r"properties\.desired(\.[^.\s]+)+", path):
            raise RequestInvalid(f"expected paths like 'properties.desired.x' in '{what}', found {path!r:.120}")
        if path == DESIRED:
            _require_object(value, f"{what}.{path}")
        check_values(_nest(path, value))
    parsed = {path: drop_server_keys(value) if path == DESIRED else value for path, value in fields.items()}
    write_twin(_EMPTY, tags=None, desired=make_desired({}, [parsed]), now=0.0)  # all of it must fit into one twin
    return parsed


def _nest(path: str, value: Any) -> Json:
    """The section that a path and its value make, for the limits of twins."""
    keys = path.removeprefix(DESIRED).split(".")[1:]
    section = drop_server_keys(value) if not keys else value
    for key in reversed(keys):
        section = {key: section}
    return dict(section)


def _parse_texts(value: Any, what: str, most: int) -> dict[str, str]:
    fields = _require_object(value, what)
    if len(fields) > most:
        raise LimitExceeded(f"expected at most {most} entries in '{what}', found {len(fields)}")
    if not all(isinstance(text, str) and len(text) <= 4096 for text in fields.values()):
        raise RequestInvalid(f"expected texts of at most 4,096 characters in '{what}'")
    return fields


def _parse_priority(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= PRIORITY_MAX:
        raise RequestInvalid("expected 'priority' to be a whole number from 0 to 2147483647")
    return value


def _get(fields: Json, name: str) -> Any:
    """A section, empty where it is not there or null."""
    return {} if fields.get(name) is None else fields[name]


def _require_object(value: Any, what: str) -> Json:
    if not isinstance(value, dict):
        raise RequestInvalid(f"expected '{what}' to be an object, found {type(value).__name__}")
    return value
