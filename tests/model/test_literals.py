"""Python itself is the oracle: what it reads as a literal of the same kind, ours reads, and nothing else."""

from __future__ import annotations

import ast
import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.model.literals import LITERAL_MAX_CHARS, read_literal

PLAIN = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.integers(-(10**15) + 1, 10**15 - 1),
    st.floats(-1e6, 1e6),
    st.booleans(),
    st.none(),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(0, 99), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES)
@settings(max_examples=150)
def test_what_python_writes_comes_back(value: object) -> None:
    text = str(value) if isinstance(value, (list, dict)) else repr(value)
    with contextlib.suppress(ValueError):  # escapes that no metadata has, and more than eight levels
        assert read_literal(text) == value


@pytest.mark.parametrize(
    "value",
    [
        {0: "person", 1: "driver's cab", 2: 'a "b" \\ \t \xad \u2028 \U0001f600'},
        {"imgsz": [640, 640], "args": {"nms": True, "opset": None, "half": False, "iou": 0.7}, "stride": -32},
        ["a", "b"],
        [],
        {},
        1e-07,
    ],
)
def test_metadata_as_it_is_written_comes_back(value: object) -> None:
    assert read_literal(repr(value)) == value


@given(st.text("{}[]()'\"\\:, .+-_01eaxnuTrueNone\n#", max_size=40))
@settings(max_examples=200)
def test_any_text_is_what_python_reads_or_an_error(text: str) -> None:
    try:
        value = read_literal(text)
    except ValueError:
        return
    assert ast.literal_eval(text.strip()) == value


BAD = [
    "", " ", "{", "}", "[1", "[,]", "[1,,]", "[1 2]", "{1}", "{1:}", "{1: 2, 1: 3}", "{[]: 1}", "{1.5: 1}",
    "01", "1_0", "--1", "nan", "inf", "1 + 1", "9" * 16, "1e9999", "(1,)", "{1, 2}", "[1] # one", "[1][0]",
    "'a' 'b'", "b'a'", "f'a'", "r'a'", "'a\nb'", "'\\q'", "'\\x0'", "'\\U00110000'", "[" * 10 + "]" * 10,
    "__import__('os').system('id')", "[x for x in y]",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_any_other_notation_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|chr"):
        read_literal(text)


def test_long_and_deep_texts_end_soon() -> None:
    started = time.process_time()
    for text in (
        "[" * LITERAL_MAX_CHARS,
        "'" + "\\" * (LITERAL_MAX_CHARS - 1),
        "1," * (LITERAL_MAX_CHARS // 2),
        "a" * 2**24,
    ):
        with pytest.raises(ValueError, match="expected"):
            read_literal(text)
    assert time.process_time() - started < 5
