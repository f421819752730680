"""The twin contract: what is asked is read, what is wrong is named, and nothing a cloud sends raises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.model.digest import Digest
from edgeferry.twin.contract import (
    ClassicDesired,
    ModelDesired,
    make_classic_patch,
    make_desired_patch,
    make_sas_patch,
    read_desired,
)

DIGEST = "sha256:" + "ab" * 32
CLASSIC = {
    "FileName": "tensorflow001.zip",
    "DownloadUrl": "https://store/x/tensorflow001.zip?sig=secret",
    "ContentMD5": "wPJ4M5M4BVAkuk6fdJYODg==",
}


def make_section(**model: Any) -> dict[str, Any]:
    return {"edgeferry": {"repo": "https://hub/files", "models": {"detector": model}}, "$version": 4}


def test_the_three_classic_fields_are_read_alone() -> None:
    found = read_desired({**CLASSIC, "$version": 7})
    assert found.version == 7
    assert found.classic == ClassicDesired(*CLASSIC.values())
    assert found.classic.url_without_query == "https://store/x/tensorflow001.zip"
    assert not found.models
    assert not found.problems


def test_the_md5_may_be_absent() -> None:
    found = read_desired({key: value for key, value in CLASSIC.items() if key != "ContentMD5"})
    assert found.classic is not None
    assert found.classic.content_md5 == ""


@pytest.mark.parametrize("gone", ["FileName", "DownloadUrl"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_a_twin_without_name_or_url_asks_for_nothing(gone: str, how: str) -> None:
    twin: dict[str, Any] = dict(CLASSIC)
    if how == "null":
        twin[gone] = None
    else:
        del twin[gone]
    found = read_desired(twin)
    assert found.classic is None
    assert not found.problems


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("FileName", "../etc/passwd", "FileName"),
        ("FileName", "a/b.zip", "FileName"),
        ("FileName", "a\\b.zip", "FileName"),
        ("FileName", "..", "FileName"),
        ("FileName", "a\x00.zip", "FileName"),
        ("FileName", 7, "FileName"),
        ("FileName", "x" * 300, "FileName"),
        ("DownloadUrl", "ftp://a/b", "DownloadUrl"),
        ("DownloadUrl", "file:///etc/passwd", "DownloadUrl"),
        ("DownloadUrl", "https://", "DownloadUrl"),
        ("DownloadUrl", "https://a:b/c", "DownloadUrl"),
        ("DownloadUrl", "https://a/ b", "DownloadUrl"),
        ("DownloadUrl", ["https://a/b"], "DownloadUrl"),
        ("DownloadUrl", "https://a/" + "b" * 4096, "DownloadUrl"),
        ("ContentMD5", "not base64!", "ContentMD5"),
        ("ContentMD5", "AAAA", "ContentMD5"),
        ("ContentMD5", True, "ContentMD5"),
    ],
)
def test_a_wrong_classic_field_is_named_and_nothing_is_fetched(key: str, value: Any, names: str) -> None:
    found = read_desired({**CLASSIC, key: value})
    assert found.classic is None
    assert names in [problem.place for problem in found.problems]
    assert all(problem.error.code == "twin_invalid" for problem in found.problems)
    assert "secret" not in str([problem.error.message for problem in found.problems])


def test_our_section_is_read() -> None:
    found = read_desired(make_section(version="1.1.0", manifest=DIGEST, **{"try": 2, "priority": 5}))
    assert found.models == (ModelDesired("detector", "1.1.0", Digest.from_str(DIGEST), 2, 5),)
    assert found.repo == "https://hub/files"
    assert found.version == 4


@pytest.mark.parametrize(
    "model",
    [
        {"version": "1.1.0"},
        {"manifest": DIGEST},
        {"version": "../1", "manifest": DIGEST},
        {"version": 1, "manifest": DIGEST},
        {"version": "1.1.0", "manifest": "sha256:xyz"},
        {"version": "1.1.0", "manifest": DIGEST, "try": "2"},
        {"version": "1.1.0", "manifest": DIGEST, "try": True},
        {"version": "1.1.0", "manifest": DIGEST, "try": 0},
        {"version": "1.1.0", "manifest": DIGEST, "priority": 1.5},
    ],
)
def test_a_wrong_model_entry_is_named_and_the_others_stand(model: dict[str, Any]) -> None:
    twin = make_section(**model)
    twin["edgeferry"]["models"]["gauge"] = {"version": "1.0.0", "manifest": DIGEST}
    found = read_desired(twin)
    assert [entry.model for entry in found.models] == ["gauge"]
    assert [problem.place for problem in found.problems] == ["edgeferry.models.detector"]


def test_a_model_set_to_null_is_not_asked_for() -> None:
    found = read_desired({"edgeferry": {"repo": "https://a", "models": {"detector": None}}})
    assert not found.models
    assert not found.problems


def test_models_without_a_repository_are_a_problem() -> None:
    found = read_desired({"edgeferry": {"models": {"detector": {"version": "1", "manifest": DIGEST}}}})
    assert not found.models
    assert [problem.place for problem in found.problems] == ["edgeferry.repo"]


def test_what_the_operator_writes_the_device_reads() -> None:
    entry = ModelDesired("detector", "1.1.0", Digest.from_str(DIGEST), 3, -1)
    found = read_desired(make_desired_patch(repo="https://a/b", sas="sv=1&sig=x", models=(entry,)))
    assert (found.models, found.sas, found.repo) == ((entry,), "sv=1&sig=x", "https://a/b")
    assert read_desired(make_sas_patch("sv=2")).sas == "sv=2"
    classic = ClassicDesired("a.zip", "https://a/a.zip", "")
    assert read_desired(make_classic_patch(classic)).classic == classic


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=10,
)
keys = st.sampled_from(["FileName", "DownloadUrl", "ContentMD5", "edgeferry", "$version"])


@given(st.dictionaries(keys, json_values | st.fixed_dictionaries({"models": json_values, "repo": json_values})))
def test_no_twin_makes_reading_raise(twin: dict[str, Any]) -> None:
    found = read_desired(twin)
    assert found.classic is None or found.classic.file_name == twin["FileName"]
