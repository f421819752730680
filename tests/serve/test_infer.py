"""Which model answers a request."""

from __future__ import annotations

import pytest

from edgeferry.errors import EdgeferryError, ModelAmbiguous, ModelNotFound, ModelNotReady
from edgeferry.serve.infer import pick_model


@pytest.mark.parametrize(
    ("wanted", "active", "default", "found"),
    [
        ("", ["a"], "", "a"),
        ("", ["a", "b"], "b", "b"),
        ("a", ["a", "b"], "b", "a"),
        ("a@1.0", ["a", "b"], "", "a@1.0"),
        ("", [], "", ModelNotReady),
        ("a", [], "", ModelNotReady),
        ("", ["a", "b"], "", ModelAmbiguous),
        ("", ["a"], "b", ModelNotReady),
        ("c", ["a"], "a", ModelNotFound),
        ("@1.0", ["a"], "a", ModelNotFound),
    ],
)
def test_named_first_then_the_default_then_the_only_one(
    wanted: str, active: list[str], default: str, found: str | type[EdgeferryError]
) -> None:
    if isinstance(found, str):
        assert pick_model(wanted, active, default) == found
    else:
        with pytest.raises(found):
            pick_model(wanted, active, default)


def test_names_in_messages_are_cut() -> None:
    with pytest.raises(ModelNotFound) as error:
        pick_model("x" * 10_000, ["a"], "")
    assert len(error.value.message) < 200
