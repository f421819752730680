"""What an operator may say of the shadow: the twin over the file, and nothing of what cannot be followed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.twin.shadow import ShadowPolicy, read_shadow_policy


def test_nothing_said_and_null_are_no_shadow() -> None:
    assert read_shadow_policy(None) == (None, "")
    assert read_shadow_policy(None, ShadowPolicy()) == (None, "")


def test_an_empty_section_asks_for_the_defaults() -> None:
    assert read_shadow_policy({}) == (ShadowPolicy(), "")


def test_the_twin_goes_before_the_file_key_by_key() -> None:
    base = ShadowPolicy(share=0.5, pictures=7)
    assert read_shadow_policy({"share": 1}, base) == (ShadowPolicy(share=1, pictures=7), "")


@pytest.mark.parametrize(
    "section",
    [
        [],
        "yes",
        True,
        {"share": 0},
        {"share": 1.1},
        {"share": "half"},
        {"share": True},
        {"share": None},
        {"share": float("nan")},
        {"cpu": -1},
        {"pictures": 0},
        {"pictures": 1.5},
        {"pictures": 10**9},
        {"for_s": 0},
        {"agreement": 2},
        {"agreements": 0.9},
        {7: 7},
    ],
)
def test_what_cannot_be_followed_is_told_and_nothing_of_it_followed(section: object) -> None:
    policy, problem = read_shadow_policy(section, ShadowPolicy())
    assert policy is None
    assert problem.startswith("expected ")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), st.lists, max_leaves=3))
def test_reading_never_raises(value: object) -> None:
    for section in (value, {"share": value}, {"pictures": value}, {str(value): 1}):
        policy, problem = read_shadow_policy(section)
        assert policy is None or not problem
