from __future__ import annotations

import re

import pytest

from edgeferry import errors
from edgeferry.errors import EdgeferryError, NoSpace, find_leaves

LEAVES = sorted(find_leaves(), key=lambda leaf: leaf.code)


def test_there_are_leaves_and_branches_are_not_among_them() -> None:
    names = {leaf.__name__ for leaf in LEAVES}
    assert len(names) > 40
    assert not names & {branch.__name__ for branch in EdgeferryError.__subclasses__()}


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_a_leaf_has_a_code_and_one_sentence_of_advice(leaf: type[EdgeferryError]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]{2,39}", leaf.code)
    assert re.fullmatch(r"[A-Z].{10,160}\.", leaf.advice), leaf.advice


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_the_code_is_the_name_of_the_class(leaf: type[EdgeferryError]) -> None:
    assert leaf.code == re.sub(r"(?<!^)(?=[A-Z])", "_", leaf.__name__).lower()


def test_codes_are_unique() -> None:
    assert len({leaf.code for leaf in LEAVES}) == len(LEAVES)


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_a_leaf_stands_two_below_the_root_in_the_one_file(leaf: type[EdgeferryError]) -> None:
    assert leaf.__mro__[2] is EdgeferryError
    assert getattr(errors, leaf.__name__) is leaf


def test_an_error_tells_code_message_and_advice_and_keeps_plain_values() -> None:
    error = NoSpace("expected 5 MB free, found 1 MB", free_bytes=1_000_000)
    assert error.to_dict() == {
        "code": "no_space",
        "message": "expected 5 MB free, found 1 MB",
        "advice": NoSpace.advice,
    }
    assert error.values == {"free_bytes": 1_000_000}
    assert str(error) == error.message
