"""The twin document: merging, versions, etag, replacement, limits."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeferry.errors import LimitExceeded, RequestInvalid
from edgeferry.twin import document
from edgeferry.twin.document import make_patch, make_twin, merge, parse_object, patch_reported, write_twin

CASES = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first draw is slow on a busy core
NOW = 1_800_000_000.0
KEYS = st.text("abc_-é", min_size=1, max_size=3)
PLAIN = st.booleans() | st.integers(-5, 5) | st.sampled_from([0.5, -1.25]) | st.text(max_size=3)
VALUES = st.recursive(
    PLAIN, lambda below: st.dictionaries(KEYS, below, max_size=3) | st.lists(PLAIN, max_size=2), max_leaves=8
)
BODIES = st.dictionaries(KEYS, VALUES, max_size=4)
PATCHES = st.dictionaries(KEYS, VALUES | st.none() | st.dictionaries(KEYS, VALUES | st.none(), max_size=3), max_size=4)


def as_json(value: object) -> bytes:
    import msgspec

    return msgspec.json.encode(value, order="sorted")


@given(BODIES, BODIES)
@settings(CASES, max_examples=150)
def test_the_patch_between_two_bodies_turns_one_into_the_other(before: dict, after: dict) -> None:
    assert as_json(merge(before, make_patch(before, after))) == as_json(after)


@given(BODIES)
@settings(CASES, max_examples=50)
def test_the_patch_between_equal_bodies_is_empty(body: dict) -> None:
    assert make_patch(body, body) == {}


@given(BODIES, PATCHES)
@settings(CASES, max_examples=100)
def test_merging_twice_is_merging_once_and_changes_nothing_in_place(body: dict, patch: dict) -> None:
    kept = as_json(body)
    once = merge(body, patch)
    assert as_json(merge(once, patch)) == as_json(once)
    assert as_json(body) == kept


def test_true_is_not_the_number_one() -> None:
    assert make_patch({"a": 1, "b": [1]}, {"a": True, "b": [True]}) == {"a": True, "b": [True]}


def test_null_deletes_also_below_a_new_object() -> None:
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": None}, "n": {"x": None, "y": 1}}) == {
        "a": {"c": 2},
        "n": {"y": 1},
    }


def test_a_write_raises_the_version_and_the_etag_and_tells_the_device() -> None:
    twin = make_twin(NOW)
    first, patch = write_twin(twin, tags=None, desired={"a": 1, "$version": 99, "$metadata": {}}, now=NOW)
    assert patch == {"a": 1, "$version": 2}
    assert first.desired.version == 2 and first.etag != twin.etag
    second, patch = write_twin(first, tags=None, desired={"a": None}, now=NOW)
    assert patch == {"a": None, "$version": 3} and second.desired.body == {}


def test_tags_change_the_etag_but_not_the_desired_version() -> None:
    twin, patch = write_twin(make_twin(NOW), tags={"site": "north"}, desired=None, now=NOW)
    assert patch is None and twin.desired.version == 1 and twin.tags == {"site": "north"}
    assert twin.etag != make_twin(NOW).etag


def test_reported_leaves_the_etag_alone() -> None:
    twin = patch_reported(make_twin(NOW), {"x": {"y": 1}}, now=NOW)
    assert twin.etag == make_twin(NOW).etag and twin.reported.version == 2 and twin.version == 2
    assert twin.to_device_view() == {"desired": {"$version": 1}, "reported": {"x": {"y": 1}, "$version": 2}}


def test_a_replacement_sends_nulls_for_what_went() -> None:
    twin, _ = write_twin(make_twin(NOW), tags={"a": 1}, desired={"old": 1, "same": {"k": 1, "l": 2}}, now=NOW)
    twin, patch = write_twin(twin, tags={"b": 2}, desired={"same": {"k": 1}, "new": None}, now=NOW, replace_all=True)
    assert patch == {"old": None, "same": {"l": None}, "$version": 3}
    assert twin.desired.body == {"same": {"k": 1}} and twin.tags == {"b": 2}


def test_metadata_mirrors_the_body() -> None:
    twin, _ = write_twin(make_twin(NOW), tags=None, desired={"a": {"b": 1}, "c": 2}, now=NOW)
    twin, _ = write_twin(twin, tags=None, desired={"a": {"b": 3}, "c": None}, now=NOW + 60)
    stamp = {"$lastUpdated": "2027-01-15T08:01:00.000Z", "$lastUpdatedVersion": 3}
    assert twin.desired.metadata == {**stamp, "a": {**stamp, "b": stamp}}


@pytest.mark.parametrize("key", ["a.b", "$x", "a b", "", "a\n", "a\x85"])
def test_a_forbidden_key_is_refused(key: str) -> None:
    with pytest.raises(RequestInvalid):
        write_twin(make_twin(NOW), tags=None, desired={"ok": {key: 1}}, now=NOW)


def nested(levels: int) -> dict:
    body: dict = {"leaf": 1}
    for _ in range(levels - 1):
        body = {"k": body}
    return body


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"s": "x" * 4096}, {"s": "x" * 4097}),
        ({"i": document.INTEGER_MAX}, {"i": document.INTEGER_MAX + 1}),
        ({"i": document.INTEGER_MIN}, {"i": document.INTEGER_MIN - 1}),
        (nested(11), nested(12)),
        ({"k" * 1024: 1}, {"k" * 1025: 1}),
        ({f"k{n}": "x" * 4094 for n in range(8)}, {f"k{n}": "x" * 4095 for n in range(8)}),
    ],
)
def test_a_limit_holds_exactly(good: dict, bad: dict) -> None:
    patch_reported(make_twin(NOW), good, now=NOW)
    with pytest.raises(LimitExceeded):
        patch_reported(make_twin(NOW), bad, now=NOW)


def test_many_small_patches_cannot_pass_the_size_limit() -> None:
    twin = make_twin(NOW)
    with pytest.raises(LimitExceeded):
        for n in range(20):
            twin = patch_reported(twin, {f"k{n}": "x" * 4000}, now=NOW)
    assert len(twin.reported.body) == 8


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_what_counts_as_nothing_cannot_grow_a_twin_without_bounds(nothing: object) -> None:
    twin = make_twin(NOW)
    with pytest.raises(LimitExceeded):
        for n in range(20):
            twin = patch_reported(twin, {f"k{n}": [nothing] * 20_000}, now=NOW)
    assert len(twin.reported.body) < 4


def test_tags_have_a_limit_of_their_own() -> None:
    with pytest.raises(LimitExceeded):
        write_twin(make_twin(NOW), tags={f"k{n}": "x" * 4000 for n in range(3)}, desired=None, now=NOW)


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b"nul", b'"x"', b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(RequestInvalid):
        parse_object(data)


def test_too_many_bytes_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(LimitExceeded):
        parse_object(b"{" + b" " * document.BODY_MAX_BYTES + b"}")
