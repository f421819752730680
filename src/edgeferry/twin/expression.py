"""Conditions on JSON: parsed into frozen values, judged with three truths (true, false, undefined).

Tokens are cut in tokens.py, functions stand in functions.py; what a path means (a twin, a message) is the caller's, who
passes `lookup`.

Rules:
- Only true selects. What is not there is undefined; so is every comparison with it or between two types.
- true is not 1. Objects and arrays are not compared.
- `parse_expression(str(expression)) == expression`.
- Bounded: nesting 32, 500 nodes, text as in tokens.py; judging visits each node at most once.

Source: docs/formats/query.md sections 1 and 2.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from edgeferry.twin.functions import FUNCTIONS, UNDEFINED, Undefined, call_function, get_kind
from edgeferry.twin.tokens import RESERVED, Steps, TokenReader, format_steps, format_string, read_tokens

NESTING_MAX = 32
NODES_MAX = 500


Lookup = Callable[[Steps], Any]


# --- what a condition is ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Literal:
    """A string, number, boolean, null or `undefined`; the kind keeps true apart from 1."""

    value: str | float | bool | Undefined | None
    kind: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", get_kind(self.value))

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return format_string(self.value)
        return self.kind if self.kind in ("null", "undefined") else str(self.value).lower()


@dataclass(frozen=True, slots=True)
class Path:
    """Where a value stands: names and positions."""

    steps: Steps

    def __str__(self) -> str:
        return format_steps(self.steps)


@dataclass(frozen=True, slots=True)
class Call:
    """A function of the table and its arguments."""

    name: str
    arguments: tuple[Expression, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True, slots=True)
class Compare:
    """`left sign right`; the sign is one of `= != < <= > >=`."""

    sign: str
    left: Expression
    right: Expression

    def __str__(self) -> str:
        return f"{_wrap(self.left, 4)} {self.sign} {_wrap(self.right, 4)}"


@dataclass(frozen=True, slots=True)
class In:
    """Whether the operand equals one of the values."""

    operand: Expression
    values: tuple[Literal, ...]

    def __str__(self) -> str:
        return self.format("IN")

    def format(self, words: str) -> str:
        """With IN or NOT IN."""
        return f"{_wrap(self.operand, 4)} {words} [{', '.join(map(str, self.values))}]"


@dataclass(frozen=True, slots=True)
class Not:
    """true for false, false for true, else undefined."""

    operand: Expression

    def __str__(self) -> str:
        return self.operand.format("NOT IN") if isinstance(self.operand, In) else f"NOT {_wrap(self.operand, 2)}"


@dataclass(frozen=True, slots=True)
class And:
    """Two operands or more."""

    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        return " AND ".join(_wrap(each, 2) for each in self.operands)


@dataclass(frozen=True, slots=True)
class Or:
    """Two operands or more."""

    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        return " OR ".join(_wrap(each, 1) for each in self.operands)


Expression = Literal | Path | Call | Compare | In | Not | And | Or
_BINDING: Mapping[type, int] = MappingProxyType({Or: 0, And: 1, Not: 2, Compare: 3, In: 3})


def _wrap(expression: Expression, binding: int) -> str:
    return str(expression) if _BINDING.get(type(expression), 4) >= binding else f"({expression})"


_Node = TypeVar("_Node", bound=Expression)


# --- reading ----------------------------------------------------------------------------------------------------------
_CONSTANTS: Mapping[str, bool | Undefined | None] = MappingProxyType(
    {"true": True, "false": False, "null": None, "undefined": UNDEFINED}
)
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {
        "=": operator.eq,
        "!=": operator.ne,
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
    }
)


def parse_expression(text: str) -> Expression:
    """Reads a whole condition.

    Raises:
        RequestInvalid: what was expected, found, and at which character.
    """
    reader = read_tokens(text)
    expression = read_expression(reader)
    if reader.next.kind != "end":
        reader.refuse("an operator or the end")
    return expression


def read_expression(reader: TokenReader) -> Expression:
    """Reads as much as belongs to one condition; raises RequestInvalid."""
    return _Parser(reader).read_or()


@dataclass(slots=True)
class _Parser:
    reader: TokenReader
    nesting: int = 0
    nodes: int = 0

    def read_or(self) -> Expression:
        operands = [self.read_and()]
        while self.reader.take_word("or"):
            operands.append(self.read_and())
        return operands[0] if len(operands) == 1 else self.count(Or(tuple(operands)))

    def read_and(self) -> Expression:
        operands = [self.read_not()]
        while self.reader.take_word("and"):
            operands.append(self.read_not())
        return operands[0] if len(operands) == 1 else self.count(And(tuple(operands)))

    def read_not(self) -> Expression:
        if not self.reader.take_word("not"):
            return self.read_comparison()
        return self.count(Not(self.nest(self.read_not)))

    def read_comparison(self) -> Expression:
        left = self.read_operand()
        if sign := self.reader.take_sign("<>", *_COMPARISONS):
            return self.count(Compare("!=" if sign == "<>" else sign, left, self.read_operand()))
        word = self.reader.take_word("in", "nin", "not")
        if word is None:
            return left
        if word == "not" and not self.reader.take_word("in"):
            self.reader.refuse("IN after NOT")
        found = self.count(In(left, self.read_values()))
        return found if word == "in" else self.count(Not(found))

    def read_values(self) -> tuple[Literal, ...]:
        self.reader.require_sign("[")
        values = [self.read_literal() or self.reader.refuse("a literal")]
        while self.reader.take_sign(","):
            values.append(self.read_literal() or self.reader.refuse("a literal"))
        self.reader.require_sign("]")
        return tuple(values)

    def read_literal(self) -> Literal | None:
        if self.reader.next.kind in ("string", "number"):
            return self.count(Literal(self.reader.take().value))
        word = self.reader.take_word(*_CONSTANTS)
        return None if word is None else self.count(Literal(_CONSTANTS[word]))

    def read_operand(self) -> Expression:
        if literal := self.read_literal():
            return literal
        if self.reader.take_sign("("):
            inner = self.nest(self.read_or)
            self.reader.require_sign(")")
            return inner
        token = self.reader.next
        if token.kind not in ("word", "path") or (token.kind == "word" and token.text.lower() in RESERVED):
            self.reader.refuse("a path, a literal, a function or '('")
        self.reader.take()
        if token.kind == "word" and self.reader.take_sign("("):
            return self.nest(lambda: self.read_call(token.text))
        return self.count(Path(token.value))

    def read_call(self, spelled: str) -> Expression:
        function = FUNCTIONS.get(spelled.lower())
        if function is None:
            self.reader.position -= 2
            self.reader.refuse(f"a function ({', '.join(FUNCTIONS)})")
        arguments: list[Expression] = []
        while not arguments or self.reader.take_sign(","):
            arguments.append(self.read_or())
        least, most = function.arity
        if not least <= len(arguments) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            self.reader.refuse(f"{wanted} argument(s) of {spelled:.20}, {len(arguments)} are given")
        self.reader.require_sign(")")
        return self.count(Call(spelled.lower(), tuple(arguments)))

    def nest(self, read: Callable[[], Expression]) -> Expression:
        if self.nesting == NESTING_MAX:
            self.reader.refuse(f"nesting of at most {NESTING_MAX}")
        self.nesting += 1
        inner = read()
        self.nesting -= 1
        return inner

    def count(self, node: _Node) -> _Node:
        if self.nodes == NODES_MAX:
            self.reader.refuse(f"at most {NODES_MAX} paths, literals and operators")
        self.nodes += 1
        return node


# --- judging ----------------------------------------------------------------------------------------------------------
def is_true(expression: Expression, lookup: Lookup) -> bool:
    """Whether the condition holds; `lookup` gives what stands at a path, or UNDEFINED."""
    return evaluate(expression, lookup) is True


def evaluate(expression: Expression, lookup: Lookup) -> Any:
    """The value of an expression: JSON or UNDEFINED. Never raises, unless `lookup` does."""
    match expression:
        case Literal():
            return expression.value
        case Path():
            return lookup(expression.steps)
        case Call():
            return call_function(FUNCTIONS[expression.name], [evaluate(each, lookup) for each in expression.arguments])
        case Compare():
            return _compare(expression.sign, evaluate(expression.left, lookup), evaluate(expression.right, lookup))
        case In():
            value = evaluate(expression.operand, lookup)
            return _decide(True, (_compare("=", value, each.value) for each in expression.values))
        case Not():
            value = evaluate(expression.operand, lookup)
            return not value if isinstance(value, bool) else UNDEFINED
        case And():
            return _decide(False, (evaluate(each, lookup) for each in expression.operands))
        case Or():
            return _decide(True, (evaluate(each, lookup) for each in expression.operands))


def find_value(document: Any, steps: Steps) -> Any:
    """What stands at a path of a JSON document, UNDEFINED where nothing does."""
    value = document
    for step in steps:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and step < len(value) else UNDEFINED
        else:
            value = value.get(step, UNDEFINED) if isinstance(value, dict) else UNDEFINED
    return value


def get_nodes(expression: Expression) -> Iterator[Expression]:
    """The expression and all below it."""
    yield expression
    match expression:
        case Call(arguments=below) | And(operands=below) | Or(operands=below):
            pass
        case Compare(left=left, right=right):
            below = (left, right)
        case In(operand=operand) | Not(operand=operand):
            below = (operand,)
        case _:
            below = ()
    for each in below:
        yield from get_nodes(each)


def _decide(verdict: bool, values: Iterable[object]) -> bool | Undefined:
    """`verdict` as soon as one value is it, its opposite when all values are that, else undefined."""
    is_certain = True
    for value in values:
        if value is verdict:
            return verdict
        is_certain = is_certain and isinstance(value, bool)
    return not verdict if is_certain else UNDEFINED


def _compare(sign: str, left: Any, right: Any) -> bool | Undefined:
    kind = get_kind(left)
    if kind != get_kind(right) or kind in ("object", "array", "undefined"):
        return UNDEFINED
    if kind == "null" and sign not in ("=", "!="):
        return UNDEFINED
    return bool(_COMPARISONS[sign](left, right))
