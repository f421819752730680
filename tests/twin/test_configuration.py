"""Configurations and deployments: what is read, what is refused, and what several make of one twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import LimitExceeded, NameInvalid, RequestInvalid
from edgeferry.twin.configuration import (
    DESIRED,
    EDGE_AGENT,
    EDGE_HUB,
    Configuration,
    StoredConfiguration,
    choose,
    judge,
    make_desired,
    parse_configuration,
    parse_content,
)
from edgeferry.twin.document import SECTION_MAX_BYTES, STRING_MAX_BYTES, Json, make_patch, merge

X = f"{DESIRED}.x"
KEYS = st.sampled_from("abc")
PLAIN = st.booleans() | st.integers(0, 2) | st.sampled_from([0.5, "", "s"]) | st.lists(st.integers(0, 1), max_size=2)
VALUES = st.recursive(PLAIN | st.none(), lambda below: st.dictionaries(KEYS, below, max_size=3), max_leaves=6)
BODIES = st.dictionaries(
    KEYS, st.recursive(PLAIN, lambda below: st.dictionaries(KEYS, below, max_size=3), max_leaves=6), max_size=3
)
DOTTED = st.lists(KEYS, min_size=1, max_size=3).map(lambda keys: ".".join((DESIRED, *keys)))
PATHS = st.dictionaries(DOTTED, VALUES, min_size=1, max_size=3)
SECTIONS = st.dictionaries(st.just(DESIRED), BODIES, min_size=1) | PATHS
AGENT = st.dictionaries(st.just(EDGE_AGENT), SECTIONS, min_size=1)
CONTENTS = st.one_of(
    st.fixed_dictionaries({"deviceContent": PATHS}),
    st.fixed_dictionaries({"modulesContent": AGENT}),
    st.fixed_dictionaries({"modulesContent": AGENT, "deviceContent": PATHS}),
)


def make(content: Json, priority: int = 0, created_at: float = 1.0, name: str = "c", **more: Any) -> Configuration:
    body = {"id": name, "content": content, "priority": priority, "targetCondition": "*", **more}
    return parse_configuration(StoredConfiguration(name, body, "e", created_at, created_at))


def as_json(value: object) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def make_module(body: Json, matching: Sequence[Configuration], module: str = EDGE_AGENT) -> Json:
    """The desired properties of a module under these configurations."""
    return make_desired(body, [one.content.modules.get(module, {}) for one in choose(matching)])


def make_device(body: Json, matching: Sequence[Configuration]) -> Json:
    return make_desired(body, [one.content.device for one in choose(matching)])


def base(agent: Json, **modules: Any) -> Json:
    """A whole deployment."""
    return {"modulesContent": {EDGE_AGENT: {DESIRED: agent}, **modules}}


def layer(**paths: Any) -> Json:
    """A layered deployment: single modules of `$edgeAgent`."""
    return {"modulesContent": {EDGE_AGENT: {f"{DESIRED}.modules.{name}": value for name, value in paths.items()}}}


@pytest.mark.parametrize(
    ("before", "contributions", "after"),
    [
        ({"own": 1}, [{X: 2}], {"own": 1, "x": 2}),
        ({"x": {"old": 1}}, [{X: {"new": 2}}], {"x": {"new": 2}}),
        ({"x": {"old": 1}}, [{f"{X}.new": 2}], {"x": {"old": 1, "new": 2}}),
        ({"x": 5}, [{f"{X}.y.z": 2}], {"x": {"y": {"z": 2}}}),
        ({"own": 1}, [{DESIRED: {"x": 2}}], {"x": 2}),
        ({}, [{f"{DESIRED}.b": 1, DESIRED: {"a": 1, "b": 2}}], {"a": 1, "b": 1}),
        ({}, [{f"{X}.y": 1, X: {"y": 2, "z": 3}}], {"x": {"y": 1, "z": 3}}),
        ({}, [{X: 1}, {X: 2}], {"x": 2}),
        ({}, [{X: {"a": 1}}, {f"{X}.b": 2}], {"x": {"a": 1, "b": 2}}),
        ({}, [{f"{X}.b": 2}, {X: {"a": 1}}], {"x": {"a": 1}}),
        ({"x": 1, "own": 1}, [{X: None}], {"own": 1}),
        ({"x": {"y": 1, "z": 2}}, [{f"{X}.y": None}], {"x": {"z": 2}}),
        ({}, [{X: {"y": None, "z": 2}}], {"x": {"z": 2}}),
        ({"own": 1}, [{f"{X}.y": None}], {"own": 1, "x": {}}),  # as a merge patch does it
        ({"x": "text"}, [{f"{X}.y": None}], {"x": {}}),
    ],
)
def test_paths_are_written_one_over_the_other(before: Json, contributions: list[Json], after: Json) -> None:
    assert as_json(make_desired(before, contributions)) == as_json(after)


def holds(body: Json, paths: Mapping[str, Any]) -> bool:
    """Whether writing these paths would change nothing."""
    return as_json(make_desired(body, [paths])) == as_json(body)


@pytest.mark.parametrize(
    ("body", "paths", "said"),
    [
        ({"x": 1, "y": 2}, {X: 1}, True),
        ({"x": 2}, {X: 1}, False),
        ({}, {X: 1}, False),
        ({"x": True}, {X: 1}, False),
        ({"x": {"a": 1, "b": 2}}, {f"{X}.a": 1}, True),
        ({"x": {"a": 1, "b": 2}}, {X: {"a": 1}}, False),
        ({}, {X: None}, True),
        ({"x": 1}, {X: None}, False),
        ({"a": 1}, {DESIRED: {"a": 1}}, True),
        ({"a": 1, "b": 1}, {DESIRED: {"a": 1}}, False),
        ({"a": 1}, {}, True),
    ],
)
def test_a_twin_is_as_a_configuration_says_or_is_not(body: Json, paths: Json, said: bool) -> None:
    assert holds(body, paths) is said


@pytest.mark.parametrize(
    ("layers", "agent"),
    [
        ([(1, 1.0, base({"v": 1})), (2, 2.0, base({"v": 2}))], {"v": 2}),
        ([(2, 1.0, base({"v": 1})), (1, 2.0, base({"v": 2}))], {"v": 1}),
        ([(1, 1.0, base({"v": 1})), (1, 2.0, base({"v": 2}))], {"v": 2}),
        ([(1, 1.0, base({"modules": {"a": 1}})), (2, 2.0, layer(b=2))], {"modules": {"a": 1, "b": 2}}),
        ([(1, 1.0, base({"modules": {"a": 1}})), (2, 2.0, layer(a=2))], {"modules": {"a": 2}}),
        ([(5, 1.0, base({"modules": {"a": 1}})), (2, 2.0, layer(b=2))], {"modules": {"a": 1}}),
        (
            [(1, 1.0, base({"modules": {"a": 1}})), (2, 1.0, layer(b=2)), (3, 1.0, base({"modules": {"c": 3}}))],
            {"modules": {"c": 3}},
        ),
        (
            [(1, 1.0, base({"modules": {"a": 1}})), (3, 1.0, layer(b=2)), (2, 1.0, base({"modules": {"c": 3}}))],
            {"modules": {"b": 2, "c": 3}},
        ),
        ([(2, 1.0, layer(b=1)), (3, 1.0, layer(b=2))], {"modules": {"b": 2}}),
        ([(2, 5.0, layer(b=1)), (2, 4.0, layer(b=2))], {"modules": {"b": 1}}),
    ],
)
def test_deployments_are_layered_by_priority_and_age(layers: list[tuple[int, float, Json]], agent: Json) -> None:
    found = [make(content, priority, at, f"c{n}") for n, (priority, at, content) in enumerate(layers)]
    assert make_module({}, found) == agent
    assert make_module({}, found[::-1]) == agent


def test_a_lower_deployment_brings_none_of_its_modules_but_device_content_stays() -> None:
    lower = make(base({"v": 1}, loader={DESIRED: {"from": "lower"}}), 1, 1.0, "lower")
    higher = make(base({"v": 2}, **{EDGE_HUB: {DESIRED: {"routes": {}}}}), 2, 1.0, "higher")
    device = make({"deviceContent": {X: 1}}, 0, 1.0, "device")
    assert make_module({}, [lower, higher, device], "loader") == {}
    assert make_module({}, [lower, higher, device], EDGE_HUB) == {"routes": {}}
    assert make_device({}, [lower, higher, device]) == {"x": 1}


@pytest.mark.parametrize(
    ("body", "ranked", "standing"),
    [
        ({"x": 1}, [{X: 1}], {0: True}),
        ({"x": 2}, [{X: 1}], {}),
        ({"x": 2}, [{X: 1}, {X: 2}], {0: False, 1: True}),
        ({"x": 1}, [{X: 1}, {X: 2}], {0: True}),
        ({"x": 2, "y": 1}, [{X: 1, f"{DESIRED}.y": 1}, {X: 2}], {0: True, 1: True}),
        ({"x": 2, "y": 2}, [{X: 1, f"{DESIRED}.y": 1}, {X: 2}], {1: True}),
        ({"m": {"a": 1, "b": 2}}, [{DESIRED: {"m": {"a": 1}}}, {f"{DESIRED}.m.b": 2}], {0: True, 1: True}),
        ({"x": {"a": 1}}, [{f"{X}.b": 2}, {X: {"a": 1}}], {0: False, 1: True}),
        ({"xy": 1, "x": 2}, [{f"{X}y": 1}, {X: 2}], {0: True, 1: True}),
        ({}, [], {}),
    ],
)
def test_what_is_overwritten_in_part_still_stands(body: Json, ranked: list[Json], standing: dict[int, bool]) -> None:
    assert judge(body, [(str(n), paths) for n, paths in enumerate(ranked)]) == {str(n): b for n, b in standing.items()}


@given(BODIES, st.lists(SECTIONS, min_size=1, max_size=4))
@settings(max_examples=100)
def test_all_that_were_written_stand_and_the_highest_is_seen(body: Json, paths: list[Mapping]) -> None:
    standing = judge(make_desired(body, paths), [(str(n), one) for n, one in enumerate(paths)])
    assert len(standing) == len(paths) and standing[str(len(paths) - 1)]


@given(st.lists(st.tuples(CONTENTS, st.integers(0, 3), st.integers(0, 3)), max_size=6), st.data())
@settings(max_examples=150)
def test_the_outcome_does_not_depend_on_the_order_in_which_configurations_are_found(
    drawn: list[tuple[Json, int, int]], data: st.DataObject
) -> None:
    found = [make(content, priority, at, f"c{n}") for n, (content, priority, at) in enumerate(drawn)]
    shuffled = data.draw(st.permutations(found))
    assert [one.name for one in choose(found)] == [one.name for one in choose(shuffled)]
    assert make_module({"own": 1}, found) == make_module({"own": 1}, shuffled)


@given(BODIES, st.lists(SECTIONS, max_size=4))
@settings(max_examples=200)
def test_applying_twice_is_applying_once_and_changes_nothing_in_place(body: Json, paths: list[Mapping]) -> None:
    kept = as_json([body, paths])
    once = make_desired(body, paths)
    assert as_json(make_desired(once, paths)) == as_json(once)
    assert make_patch(once, make_desired(once, paths)) == {}
    assert as_json([body, paths]) == kept


@given(BODIES, st.lists(SECTIONS, max_size=4))
@settings(max_examples=200)
def test_the_twin_patch_to_the_outcome_makes_the_outcome(body: Json, paths: list[Mapping]) -> None:
    after = make_desired(body, paths)
    assert as_json(merge(body, make_patch(body, after))) == as_json(after)


@given(BODIES, st.lists(SECTIONS, min_size=1, max_size=4))
@settings(max_examples=200)
def test_the_highest_is_always_held(body: Json, paths: list[Mapping]) -> None:
    assert holds(make_desired(body, paths), paths[-1])


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"deviceContent": {}},
        {"modulesContent": {}},
        {"deviceContent": [X]},
        {"deviceContent": {"x": 1}},
        {"deviceContent": {"properties.reported.x": 1}},
        {"deviceContent": {"tags.x": 1}},
        {"deviceContent": {f"{DESIRED}x": 1}},
        {"deviceContent": {f"{DESIRED}.": 1}},
        {"deviceContent": {f"{DESIRED}..x": 1}},
        {"deviceContent": {f"{X}.": 1}},
        {"deviceContent": {f"{DESIRED}.$version": 1}},
        {"deviceContent": {f"{DESIRED}.two words": 1}},
        {"deviceContent": {X: {"$a": 1}}},
        {"modulesContent": {"m": 1}},
        {"modulesContent": {"m": {DESIRED: 1}}},
        {"modulesContent": {"m": {DESIRED: None}}},
        {"modulesContent": {"m": {"properties": {"desired": {}}}}},
        {"modulesContent": {"two words": {X: 1}}},
        {"modulesContent": {"": {X: 1}}},
        {"modulesContent": {"a/b": {X: 1}}},
        {"modulesContent": {EDGE_AGENT: {DESIRED: {"modules": {"a/b": {}}}}}},
        {"moduleContent": {X: 1}, "deviceContent": {X: 1}},
        {"moduleContent": {X: 1}, "modulesContent": {"m": {X: 1}}},
        {"deviceContent": {X: 1}, "somethingElse": {}},
    ],
)
def test_content_that_is_of_no_known_form_is_refused(content: Any) -> None:
    with pytest.raises((RequestInvalid, NameInvalid)):
        parse_content(content)


@pytest.mark.parametrize(
    "value", ["x" * (STRING_MAX_BYTES + 1), 2**60, {"a": [2**60]}, {str(n): "x" * 4000 for n in range(9)}]
)
def test_a_value_that_no_twin_may_hold_is_refused(value: Any) -> None:
    assert SECTION_MAX_BYTES < 9 * 4000
    for content in ({"deviceContent": {X: value}}, {"modulesContent": {"m": {DESIRED: {"x": value}}}}):
        with pytest.raises(LimitExceeded):
            parse_content(content)


def test_a_path_that_is_too_deep_is_refused() -> None:
    parse_content({"deviceContent": {".".join([DESIRED, *"abcdefghij"]): 1}})
    with pytest.raises(LimitExceeded):
        parse_content({"deviceContent": {".".join([DESIRED, *"abcdefghijkl"]): {"m": 1}}})


@pytest.mark.parametrize("name", ["a", "a" * 128, "prod-2_%+:#*?!(),=@;$'"])
def test_a_good_id_is_taken(name: str) -> None:
    assert make({"deviceContent": {X: 1}}, name=name).name == name


@pytest.mark.parametrize(
    "name", ["", "a" * 129, "Prod", "a b", "a&b", "a^", "[a]", "{a}", "a\\", "a|", 'a"', "<a>", "a/b"]
)
def test_an_id_outside_the_documentation_is_refused(name: str) -> None:
    with pytest.raises(RequestInvalid):
        make({"deviceContent": {X: 1}}, name=name)


@pytest.mark.parametrize("priority", [0, 1, 2**31 - 1])
def test_a_good_priority_is_taken(priority: int) -> None:
    assert make({"deviceContent": {X: 1}}, priority).priority == priority


@pytest.mark.parametrize("priority", [-1, 2**31, True, 1.5, "1", [1]])
def test_a_priority_outside_its_bounds_is_refused(priority: Any) -> None:
    with pytest.raises(RequestInvalid):
        make({"deviceContent": {X: 1}}, priority)


@pytest.mark.parametrize(
    ("content", "condition"),
    [
        ({"deviceContent": {X: 1}}, "tags.a ="),
        ({"deviceContent": {X: 1}}, 7),
        ({"deviceContent": {X: 1}}, "FROM devices.modules WHERE moduleId = 'm'"),
        ({"modulesContent": {"m": {X: 1}}}, "FROM devices.modules WHERE moduleId = 'm'"),
        ({"moduleContent": {X: 1}}, "*"),
        ({"moduleContent": {X: 1}}, "tags.a = 1"),
    ],
)
def test_a_target_condition_must_be_readable_and_fit_the_content(content: Json, condition: Any) -> None:
    with pytest.raises(RequestInvalid):
        make(content, targetCondition=condition)


def test_content_for_modules_wants_a_condition_on_modules_or_none() -> None:
    wanted = "FROM devices.modules WHERE moduleId = 'm'"
    assert make({"moduleContent": {X: 1}}, targetCondition=wanted).target.source == "devices.modules"
    assert make({"moduleContent": {X: 1}}, targetCondition="").target_condition == ""


@pytest.mark.parametrize("field", ["labels", "metrics"])
@pytest.mark.parametrize("value", [7, [], {"queries": 7}, {"queries": {"n": 7}}, {"n": 7}])
def test_labels_and_metrics_are_texts_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestInvalid):
        make(
            {"deviceContent": {X: 1}},
            **{field: value, **({"metrics": {"queries": value}} if field == "metrics" else {})},
        )


@pytest.mark.parametrize("value", [7, [], [1], "x", False])
def test_metrics_that_are_no_object_are_refused(value: Any) -> None:
    with pytest.raises(RequestInvalid):
        make({"deviceContent": {X: 1}}, metrics=value)


def test_what_is_null_is_as_if_it_were_not_there() -> None:
    content = {"deviceContent": {X: 1}, "moduleContent": None, "modulesContent": None}
    made = make(content, labels=None, metrics={"queries": None, "results": None}, targetCondition=None)
    assert (made.labels, made.metrics, made.target_condition) == ({}, {}, "")
    assert make(content, metrics=None).metrics == {}


def test_a_metric_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(RequestInvalid):
        make({"deviceContent": {X: 1}}, metrics={"queries": {"n": "SELECT FROM"}})
