"""Queries over twins: `SELECT ... FROM devices | devices.modules [WHERE condition]`, and target conditions.

Which documents are there, pages and continuation are the hub's. A document is a twin as the service REST shows it
(wire/service_api.py).

Rules:
- The hub's own names (`deviceId`, `connectionState`, `properties.desired`, ...) compare without case; names that a user
  chose, with case.
- What is not there is left out of a row. A column without AS is named by the last step of its path.
- Nothing that is asked for is ignored: what we do not do is refused by its name.

Source: docs/formats/query.md section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NoReturn, cast

from edgeferry.errors import RequestInvalid
from edgeferry.twin.document import Json
from edgeferry.twin.expression import Expression, find_value, is_true, read_expression
from edgeferry.twin.functions import UNDEFINED
from edgeferry.twin.tokens import Step, Steps, TokenReader, read_tokens

Source = Literal["devices", "devices.modules"]
_SOURCES = ("devices", "devices.modules")
_NOT_DONE = ("group", "order", "having", "join", "top", "distinct", "avg", "sum", "min", "max")
_COUNT_NAME = "count"
_TOP_NAMES = (
    "deviceId moduleId etag deviceEtag status statusUpdateTime connectionState lastActivityTime "
    "cloudToDeviceMessageCount authenticationType x509Thumbprint modelId version tags properties capabilities "
    "configurations"
)
_OWN_NAMES: Mapping[Steps, str] = MappingProxyType(
    {
        **{(name.lower(),): name for name in _TOP_NAMES.split()},
        ("properties", "desired"): "desired",
        ("properties", "reported"): "reported",
        ("capabilities", "iotedge"): "iotEdge",
    }
)


@dataclass(frozen=True, slots=True)
class Column:
    """One value of a row; `steps` is empty for COUNT()."""

    steps: Steps
    name: str


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a collection. No columns stand for `*`; a count has one."""

    source: Source
    columns: tuple[Column, ...] = ()
    is_count: bool = False
    condition: Expression | None = None

    def selects(self, document: Json) -> bool:
        """Whether this document of the source meets the condition."""
        if self.condition is None:
            return True
        return is_true(self.condition, lambda steps: find_value(document, _get_own_steps(steps)))

    def project(self, document: Json) -> Json:
        """The row of a document that is selected: the document itself for `*`."""
        if not self.columns:
            return document
        found = {column.name: find_value(document, column.steps) for column in self.columns}
        return {name: value for name, value in found.items() if value is not UNDEFINED}

    def make_count(self, number: int) -> Json:
        """The one row that answers a count of `number` selected documents."""
        return {self.columns[0].name: number}


def parse_query(text: str) -> Query:
    """Reads a query.

    Raises:
        RequestInvalid: what was expected, found, and at which character.
    """
    reader = read_tokens(text)
    if not reader.take_word("select"):
        reader.refuse("SELECT")
    columns, is_count = _read_columns(reader)
    if not reader.has_word("from"):
        _refuse(reader, "',' or FROM")
    source, condition = _read_source(reader)
    return Query(source, columns, is_count, condition)


def parse_target_condition(text: str) -> Query:
    """Reads the target condition of a configuration: `*`, a condition on devices, or `FROM source [WHERE condition]`.

    Raises:
        RequestInvalid: what was expected, found, and at which character; an empty text too.
    """
    reader = read_tokens(text)
    if reader.has_word("from"):
        source, condition = _read_source(reader)
        return Query(source, condition=condition)
    condition = None if reader.take_sign("*") else read_expression(reader)
    _require_end(reader)
    return Query("devices", condition=condition)


def _read_columns(reader: TokenReader) -> tuple[tuple[Column, ...], bool]:
    if reader.take_sign("*"):
        return (), False
    if reader.has_word("count") and reader.tokens[reader.position + 1].text == "(":
        reader.take()
        reader.require_sign("(")
        reader.require_sign(")")
        return (Column((), _read_alias(reader) or _COUNT_NAME),), True
    columns = [_read_column(reader)]
    while reader.take_sign(","):
        columns.append(_read_column(reader))
    if len({column.name for column in columns}) < len(columns):
        raise RequestInvalid("expected columns of different names: tell them apart with AS")
    return tuple(columns), False


def _read_column(reader: TokenReader) -> Column:
    if reader.has_word(*_NOT_DONE, "from", "count") or reader.next.kind not in ("word", "path"):
        _refuse(reader, "a path")
    steps = _get_own_steps(reader.take().value)
    return Column(steps, _read_alias(reader) or str(steps[-1]))


def _read_alias(reader: TokenReader) -> str | None:
    if not reader.take_word("as"):
        return None
    if reader.next.kind != "word":
        reader.refuse("a name after AS")
    return reader.take().text


def _read_source(reader: TokenReader) -> tuple[Source, Expression | None]:
    """From FROM to the end."""
    reader.take()
    token = reader.next
    source = token.text.lower()
    if token.kind not in ("word", "path") or source not in _SOURCES:
        reader.refuse("the source devices or devices.modules" + (" (jobs are not kept)" if "jobs" in source else ""))
    reader.take()
    condition = read_expression(reader) if reader.take_word("where") else None
    _require_end(reader)
    return cast(Source, source), condition


def _require_end(reader: TokenReader, expected: str = "an operator, WHERE or the end") -> None:
    if reader.next.kind != "end":
        _refuse(reader, expected)


def _refuse(reader: TokenReader, expected: str) -> NoReturn:
    if reader.has_word(*_NOT_DONE):
        expected += f" ({reader.next.text.upper()} is not supported)"
    reader.refuse(expected)


def _get_own_steps(steps: Steps) -> Steps:
    """With the hub's own names as it writes them."""
    first = _OWN_NAMES.get((_lower(steps[0]),), steps[0])
    if len(steps) == 1:
        return (first,)
    return first, _OWN_NAMES.get((first, _lower(steps[1])), steps[1]), *steps[2:]


def _lower(step: Step) -> Step:
    return step.lower() if isinstance(step, str) else step
