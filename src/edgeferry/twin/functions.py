"""The functions of the query language in one table, and the kinds of values that they tell apart.

Rules:
- An argument of a kind that a function does not take makes its answer undefined; so does a number that has no answer.
- Names are in small letters here and compare without case. IoT Hub documents `starts_with`, and shows
  `startswith` too.

Source: docs/formats/query.md section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

ARGUMENTS_MAX = 99
NUMBER_MAX_CHARS = 64
STRING_MAX_CHARS = 256 * 1024  # of what `concat` makes: one message cannot grow into many


class Undefined(Enum):
    """The type of what is not there."""

    UNDEFINED = "undefined"


UNDEFINED = Undefined.UNDEFINED

_KINDS: Mapping[type, str] = MappingProxyType(
    {
        bool: "bool",
        int: "number",
        float: "number",
        str: "string",
        type(None): "null",
        dict: "object",
        list: "array",
    }
)


class Function(NamedTuple):
    """One function. `kinds`: what every argument must be, else the answer is undefined (empty: whatever comes).

    `arity` is the least and the most arguments.
    """

    arity: tuple[int, int]
    call: Callable[..., Any]
    kinds: tuple[str, ...] = ()


def get_kind(value: Any) -> str:
    """The JSON type of a value; what is no JSON is undefined."""
    return _KINDS.get(type(value), "undefined")


def call_function(function: Function, arguments: Sequence[Any]) -> Any:
    """The answer, UNDEFINED for arguments that it has none for; never raises."""
    if function.kinds and any(get_kind(each) not in function.kinds for each in arguments):
        return UNDEFINED
    try:
        return function.call(*arguments)
    except (ArithmeticError, ValueError):  # a root of -1, a power too large
        return UNDEFINED


def _is_kind(*kinds: str) -> Function:
    return Function((1, 1), lambda value: get_kind(value) in kinds)


def _on_strings(call: Callable[..., Any], *arity: int) -> Function:
    return Function((arity[0], arity[-1]), call, ("string",))


def _on_numbers(call: Callable[..., Any], arity: int = 1) -> Function:
    return Function((arity, arity), call, ("number",))


def _concat(*texts: str) -> str | Undefined:
    return "".join(texts) if sum(map(len, texts)) <= STRING_MAX_CHARS else UNDEFINED


def _as_number(value: Any) -> Any:
    if get_kind(value) != "string":
        return value if get_kind(value) == "number" else UNDEFINED
    try:
        number = float(value) if len(value) <= NUMBER_MAX_CHARS and value.isascii() and "_" not in value else math.nan
    except ValueError:
        return UNDEFINED
    return number if math.isfinite(number) else UNDEFINED


def _substring(text: Any, start: Any, length: Any = None) -> Any:
    if get_kind(text) != "string" or any(type(each) is not int or each < 0 for each in (start, length or 0)):
        return UNDEFINED
    return text[start:] if length is None else text[start : start + length]


FUNCTIONS: Mapping[str, Function] = MappingProxyType(
    {
        "is_defined": Function((1, 1), lambda value: value is not UNDEFINED),
        "is_null": _is_kind("null"),
        "is_bool": _is_kind("bool"),
        "is_number": _is_kind("number"),
        "is_string": _is_kind("string"),
        "is_object": _is_kind("object"),
        "is_array": _is_kind("array"),
        "is_primitive": _is_kind("null", "bool", "number", "string"),
        "as_number": Function((1, 1), _as_number),
        "startswith": _on_strings(str.startswith, 2),
        "starts_with": _on_strings(str.startswith, 2),
        "endswith": _on_strings(str.endswith, 2),
        "ends_with": _on_strings(str.endswith, 2),
        "contains": _on_strings(str.__contains__, 2),
        "index_of": _on_strings(str.find, 2),
        "length": _on_strings(len, 1),
        "lower": _on_strings(str.lower, 1),
        "upper": _on_strings(str.upper, 1),
        "concat": _on_strings(_concat, 2, ARGUMENTS_MAX),
        "substring": Function((2, 3), _substring),
        "abs": _on_numbers(abs),
        "ceiling": _on_numbers(math.ceil),
        "floor": _on_numbers(math.floor),
        "sign": _on_numbers(lambda number: (number > 0) - (number < 0)),
        "square": _on_numbers(lambda number: math.pow(number, 2)),
        "sqrt": _on_numbers(math.sqrt),
        "power": _on_numbers(math.pow, 2),
        "exp": _on_numbers(math.exp),
    }
)
