"""Conditions: what they read as, what they are on JSON, and that no text does harm."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import RequestInvalid
from edgeferry.twin.expression import (
    NESTING_MAX,
    NODES_MAX,
    And,
    Call,
    Compare,
    Expression,
    In,
    Literal,
    Not,
    Or,
    Path,
    evaluate,
    find_value,
    is_true,
    parse_expression,
)
from edgeferry.twin.functions import FUNCTIONS, STRING_MAX_CHARS, UNDEFINED, get_kind
from edgeferry.twin.tokens import TEXT_MAX_CHARS, Steps

DOCUMENT: dict[str, Any] = {
    "deviceId": "d1",
    "n": 7,
    "one": 1,
    "zero": 0,
    "half": 0.5,
    "yes": True,
    "no": False,
    "nothing": None,
    "text": "Apfelmus",
    "digits": " 12.5 ",
    "list": [10, {"x": "y"}],
    "a": {"b": {"c": 3}, "b c": 4, "in": 5, "it's": 6, "2024": 8, "": 9, "m-n": 10},
    "my-tag": "t",
    "prop name": "p",
    "and": "reserved",
    "$version": 4,
    "ümlaut": 1,
}


def look(text: str) -> Any:
    return evaluate(parse_expression(text), lambda steps: find_value(DOCUMENT, steps))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("FALSE", False),
        ("Null", None),
        ("undefined", UNDEFINED),
        ("'a'", "a"),
        ('"a\'b"', "a'b"),
        ("'it''s'", "it's"),
        ('"say ""x"""', 'say "x"'),
        ("''", ""),
        (r"'it\'s \\ \"'", "it's \\ \""),
        (r"'\u00e4\ud83d\ude00'", "ä😀"),
        ("'/* no comment */'", "/* no comment */"),
        ("12", 12),
        ("-1.5e2", -150.0),
        (".5", 0.5),
        ("0x1F", 31),
        ("123456789012345678901", 123456789012345678901.0),
        ("/* a */ 1 /* b */", 1),
        ("(((1)))", 1),
    ],
)
def test_a_literal_is_its_value(text: str, value: Any) -> None:
    assert look(text) == value
    assert get_kind(look(text)) == get_kind(value)


@pytest.mark.parametrize(
    ("text", "steps", "value"),
    [
        ("deviceId", ("deviceId",), "d1"),
        ("a.b.c", ("a", "b", "c"), 3),
        ("a['b c']", ("a", "b c"), 4),
        ('a["it\'s"]', ("a", "it's"), 6),
        ("a.in", ("a", "in"), 5),
        ("a.2024", ("a", "2024"), 8),
        ("a['']", ("a", ""), 9),
        ("a.[[m-n]]", ("a", "m-n"), 10),
        ("a[[b c]]", ("a", "b c"), 4),
        ("list[1].x", ("list", 1, "x"), "y"),
        ("my-tag", ("my-tag",), "t"),
        ("{prop name}", ("prop name",), "p"),
        ("[[prop name]]", ("prop name",), "p"),
        ("{and}", ("and",), "reserved"),
        ("{$version}", ("$version",), 4),
        ("$version", ("$version",), 4),
        ("ümlaut", ("ümlaut",), 1),
        ("DeviceID", ("DeviceID",), UNDEFINED),
        ("a.x.y.z", ("a", "x", "y", "z"), UNDEFINED),
        ("list[2]", ("list", 2), UNDEFINED),
        ("list.x", ("list", "x"), UNDEFINED),
        ("a[0]", ("a", 0), UNDEFINED),
        ("text[0]", ("text", 0), UNDEFINED),
    ],
)
def test_a_path_leads_to_what_stands_there(text: str, steps: Steps, value: Any) -> None:
    assert parse_expression(text) == Path(steps)
    assert look(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n = 7", True),
        ("n = 7.0", True),
        ("n != 7", False),
        ("n <> 8", True),
        ("n<8 and n>6", True),
        ("n <= 7 AND n >= 7", True),
        ("deviceId = 'd1'", True),
        ("deviceId < 'd2'", True),
        ("'Z' < 'a'", True),
        ("deviceId = 'D1'", False),
        ("a.b.c = list[0]", False),
        ("yes = true", True),
        ("yes = 1", UNDEFINED),
        ("one = true", UNDEFINED),
        ("zero = false", UNDEFINED),
        ("n = '7'", UNDEFINED),
        ("nothing = null", True),
        ("nothing != null", False),
        ("n = null", UNDEFINED),
        ("nothing < null", UNDEFINED),
        ("gone = null", UNDEFINED),
        ("gone = undefined", UNDEFINED),
        ("gone != 1", UNDEFINED),
        ("a = a", UNDEFINED),
        ("list != list", UNDEFINED),
        ("(n = 7) = true", True),
        ("n IN [1, 7]", True),
        ("n in[1,2]", False),
        ("n IN ['7', 7]", True),
        ("n IN ['7', 8]", UNDEFINED),
        ("gone IN [1]", UNDEFINED),
        ("nothing IN [null]", True),
        ("n NOT IN [1, 2]", True),
        ("n NIN [1, 7]", False),
        ("gone NIN [1]", UNDEFINED),
        ("yes", True),
        ("NOT no", True),
        ("not not yes", True),
        ("NOT gone", UNDEFINED),
        ("NOT n", UNDEFINED),
        ("NOT nothing", UNDEFINED),
        ("NOT n = 8", True),
        ("yes OR no AND no", True),
        ("(yes OR no) AND no", False),
        ("NOT yes OR yes", True),
        ("NOT (yes OR yes)", False),
        ("gone OR yes", True),
        ("gone AND no", False),
        ("gone OR no", UNDEFINED),
        ("gone AND yes", UNDEFINED),
        ("n AND yes", UNDEFINED),
        ("'true' OR no", UNDEFINED),
    ],
)
def test_operators_know_three_truths(text: str, value: Any) -> None:
    assert look(text) is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("is_defined(n)", True),
        ("IS_DEFINED(nothing)", True),
        ("is_defined(gone)", False),
        ("is_defined(a.b)", True),
        ("is_null(nothing)", True),
        ("is_null(gone)", False),
        ("is_bool(no)", True),
        ("is_bool(one)", False),
        ("is_number(half)", True),
        ("is_number(yes)", False),
        ("is_string(text)", True),
        ("is_object(a)", True),
        ("is_array(list)", True),
        ("is_array(text)", False),
        ("is_primitive(nothing)", True),
        ("is_primitive(a)", False),
        ("is_primitive(gone)", False),
        ("as_number(digits)", 12.5),
        ("as_number(n)", 7),
        ("as_number(text)", UNDEFINED),
        ("as_number('nan')", UNDEFINED),
        ("as_number('inf')", UNDEFINED),
        ("as_number('1_0')", UNDEFINED),
        (f"as_number('1{'0' * 63}')", 1e63),
        (f"as_number('1{'0' * 64}')", UNDEFINED),
        ("as_number(gone)", UNDEFINED),
        ("startswith(text, 'Apf')", True),
        ("STARTS_WITH(text, 'pf')", False),
        ("endswith(text, 'mus')", True),
        ("ENDS_WITH(text, 'Mus')", False),
        ("contains(text, 'felm')", True),
        ("contains(text, 7)", UNDEFINED),
        ("contains(gone, 'x')", UNDEFINED),
        ("index_of(text, 'f')", 2),
        ("index_of(text, 'x')", -1),
        ("length(text)", 8),
        ("length(list)", UNDEFINED),
        ("lower(text)", "apfelmus"),
        ("upper(text)", "APFELMUS"),
        ("concat(deviceId, '-', text)", "d1-Apfelmus"),
        ("substring(text, 5)", "mus"),
        ("substring(text, 0, 5)", "Apfel"),
        ("substring(text, 99)", ""),
        ("substring(text, -1)", UNDEFINED),
        ("substring(text, yes)", UNDEFINED),
        ("substring(n, 1)", UNDEFINED),
        ("abs(-3)", 3),
        ("abs(yes)", UNDEFINED),
        ("ceiling(half)", 1),
        ("floor(half)", 0),
        ("sign(-2)", -1),
        ("square(3)", 9),
        ("sqrt(9)", 3),
        ("sqrt(-1)", UNDEFINED),
        ("power(2, 10)", 1024),
        ("power(0, -1)", UNDEFINED),
        ("power(9, 99999)", UNDEFINED),
        ("exp(0)", 1),
        ("exp(9999)", UNDEFINED),
    ],
)
def test_functions_answer(text: str, value: Any) -> None:
    assert look(text) == value
    assert get_kind(look(text)) == get_kind(value)


def test_concat_does_not_let_a_text_grow_without_bound() -> None:
    long = "x" * (STRING_MAX_CHARS // 2)
    assert evaluate(parse_expression("length(concat(p, p))"), lambda _: long) == STRING_MAX_CHARS
    assert evaluate(parse_expression("concat(p, p, 'x')"), lambda _: long) is UNDEFINED


def test_every_function_of_the_table_is_tried_above() -> None:
    marks = [mark for mark in test_functions_answer.pytestmark if mark.name == "parametrize"]
    tried = {text.partition("(")[0].lower() for text, _ in marks[0].args[1]}
    assert tried == set(FUNCTIONS)


@pytest.mark.parametrize("text", ["1", "'true'", "null", "undefined", "n", "text", "a", "gone", "no", "gone = 1"])
def test_only_true_selects(text: str) -> None:
    assert not is_true(parse_expression(text), lambda steps: find_value(DOCUMENT, steps))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a path, a literal, a function or '(', found the end at character 1"),
        ("a = ", "found the end at character 5"),
        ("a == 1", "found '=' at character 4"),
        ("a = 1 2", "expected an operator or the end, found '2' at character 7"),
        ("a = 1 = 2", "expected an operator or the end, found '=' at character 7"),
        ("a AND", "found the end at character 6"),
        ("a AND OR b", "found 'OR' at character 7"),
        ("a NOT 1", "expected IN after NOT, found '1' at character 7"),
        ("a IN 1", "expected '[', found '1' at character 6"),
        ("a IN []", "expected a literal, found ']' at character 7"),
        ("a IN [b]", "expected a literal, found 'b' at character 7"),
        ("a IN [1", "expected ']', found the end at character 8"),
        ("(a", "expected ')', found the end at character 3"),
        ("a)", "expected an operator or the end, found ')' at character 2"),
        ("a + 1", "expected a name, a literal or an operator, found '+ 1' at character 3"),
        ("a || b", "at character 3"),
        ("a; DROP", "found '; DROP' at character 2"),
        ("a.", "expected a name after '.', found the end at character 3"),
        ("a..b", "expected a name after '.', found '.b' at character 3"),
        ("a[b]", "expected a position or a quoted name after '[', found 'b]' at character 3"),
        ("a['b'", "expected ']', found the end at character 6"),
        ("a[-1]", "at character 3"),
        ("a[12345678901]", "at character 3"),
        ("{a", "expected '}' after '{', found the end at character 3"),
        ("{}", "expected a name, found '}' at character 2"),
        ("{$a b}", "expected '}', found ' b}' at character 4"),
        ("[[a", "expected ']]' after '[['"),
        ("'a", "expected a closing ', found the end at character 3"),
        ("'a''", "expected a closing '"),
        (r"'\n'", 'after a backslash, found "n\'" at character 3'),
        (r"'\u12'", "after a backslash"),
        ("'\\", "after a backslash, found the end at character 3"),
        (r"x = '\ud83d'", "expected whole characters, found half a pair after character 5"),
        ("a = 1e999", "expected a smaller number, found '1e999' at character 5"),
        ("a /* b", "expected '*/' after a comment"),
        ("nope(a)", "found 'nope' at character 1"),
        ("length()", "found ')' at character 8"),
        ("length(a, b)", "expected 1 argument(s) of length, 2 are given, found ')' at character 12"),
        ("length a", "found 'a' at character 8"),
        ("true(a)", "at character 5"),
        ("a\x00", "at character 2"),
        ("a = \u00a01", "at character 5"),
    ],
)
def test_what_is_no_condition_is_refused_at_its_character(text: str, said: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        parse_expression(text)
    assert said in str(caught.value)


def test_every_bound_holds_at_its_edge_and_not_beyond() -> None:
    inside = [
        "(" * NESTING_MAX + "a" + ")" * NESTING_MAX,
        "NOT " * NESTING_MAX + "a",
        "lower(" * NESTING_MAX + "a" + ")" * NESTING_MAX,
        "a IN [" + ",".join("1" * (NODES_MAX - 2)) + "]",
        "a" * TEXT_MAX_CHARS,
    ]
    beyond = [
        "(" * (NESTING_MAX + 1) + "a" + ")" * (NESTING_MAX + 1),
        "NOT " * (NESTING_MAX + 1) + "a",
        "lower(" * (NESTING_MAX + 1) + "a" + ")" * (NESTING_MAX + 1),
        "a IN [" + ",".join("1" * (NODES_MAX - 1)) + "]",
        "a" * (TEXT_MAX_CHARS + 1),
    ]
    for text in inside:
        assert parse_expression(text)
    for text in beyond:
        with pytest.raises(RequestInvalid, match="at most"):
            parse_expression(text)


@pytest.mark.parametrize(
    "piece",
    [
        *("(", ")", "[", "[[", "{", "'", '"', "''", "\\", "NOT ", "a.", "a AND ", "a[0]", "a['x']", " ", "/*", "/**/"),
        *("1", ".1", "-", "é", "0x", "1e", "a=a OR ", "f(", "a IN ", "\x00", "\ud800", "'\\u"),
    ],
)
def test_long_nonsense_ends_soon(piece: str) -> None:
    text = (piece * TEXT_MAX_CHARS)[:TEXT_MAX_CHARS]
    started = time.process_time()
    try:
        parse_expression(text)
    except RequestInvalid as error:
        assert len(str(error)) < 1000
    assert time.process_time() - started < 1.0


# --- properties -------------------------------------------------------------------------------------------------------
truths = st.sampled_from([True, False, UNDEFINED])
operands = st.sampled_from(["p", "q", "NOT p", "p AND q", "p OR NOT q"])
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
literals = st.builds(
    Literal,
    st.one_of(
        plain,
        st.integers(-(10**17), 10**17),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from([True, False, None, UNDEFINED]),
    ),
)


def _is_writable(name: str) -> bool:
    return ("}" not in name and not name.startswith("$")) or not (name + "]]").find("]]") < len(name)


paths = st.builds(
    lambda first, later: Path((first, *later)),
    names.filter(_is_writable),
    st.lists(plain | st.integers(0, 10**9 - 1), max_size=3),
)


def _extend(below: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    many = st.lists(below, min_size=2, max_size=3).map(tuple)
    return st.one_of(
        st.builds(Compare, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), below, below),
        st.builds(In, below, st.lists(literals, min_size=1, max_size=3).map(tuple)),
        st.builds(Not, below),
        st.builds(And, many),
        st.builds(Or, many),
        st.builds(lambda each: Call("is_defined", (each,)), below),
    )


expressions = st.recursive(st.one_of(literals, paths), _extend, max_leaves=8)


@given(expressions)
def test_an_expression_is_written_and_read_back(expression: Expression) -> None:
    assert parse_expression(str(expression)) == expression


@given(p=truths, q=truths, left=operands, right=operands)
def test_de_morgan_holds_with_three_truths(p: Any, q: Any, left: str, right: str) -> None:
    values = {("p",): p, ("q",): q}

    def judge(text: str) -> Any:
        return evaluate(parse_expression(text), values.__getitem__)

    assert judge(f"NOT (({left}) AND ({right}))") is judge(f"NOT ({left}) OR NOT ({right})")
    assert judge(f"NOT (({left}) OR ({right}))") is judge(f"NOT ({left}) AND NOT ({right})")


@given(p=truths, q=truths, r=truths)
def test_and_binds_tighter_than_or(p: Any, q: Any, r: Any) -> None:
    values = {("p",): p, ("q",): q, ("r",): r}
    loose, bound = (parse_expression(text) for text in ("p OR q AND r", "p OR (q AND r)"))
    assert evaluate(loose, values.__getitem__) is evaluate(bound, values.__getitem__)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=6,
)


@given(expressions, json_values)
def test_judging_never_raises_and_gives_json_or_nothing(expression: Expression, document: Any) -> None:
    value = evaluate(expression, lambda steps: find_value(document, steps))
    assert value is UNDEFINED or get_kind(value) != "undefined"


@given(left=json_values, right=json_values)
def test_not_equal_is_the_opposite_of_equal(left: Any, right: Any) -> None:
    values = {("l",): left, ("r",): right}
    equal, opposite = (evaluate(parse_expression(f"l {sign} r"), values.__getitem__) for sign in ("=", "!="))
    assert (equal is UNDEFINED and opposite is UNDEFINED) or equal is not opposite
    assert evaluate(parse_expression("NOT l = r"), values.__getitem__) is opposite


pieces = st.sampled_from(
    [
        *(
            "a",
            "b.c",
            "[",
            "]",
            "[[",
            "]]",
            "{",
            "}",
            "(",
            ")",
            "'",
            '"',
            "''",
            "\\",
            ",",
            ".",
            "=",
            "<>",
            "<=",
            "1",
            ".5",
        ),
        *("NOT", "AND", "OR", "IN", "NIN", "null", "true", "0x", "$body", "is_defined(", "/*", "*/"),
    ]
)


@settings(max_examples=500)
@given(st.text(max_size=200) | st.lists(pieces, max_size=40).map(" ".join) | st.lists(pieces, max_size=40).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        expression = parse_expression(text)
    except RequestInvalid:
        return
    assert parse_expression(str(expression)) == expression
