"""The text of a query or condition, cut into tokens; expression.py, query.py and routes.py say what they mean.

Rules:
- One pass over at most 8,192 characters; no pattern can match the same stretch in two ways.
- A path is one token: `a.b`, `a['b c']`, `a[0]`, `a.[[b-c]]`, `{b c}`. A reserved word never begins one.
- Whoever refuses names what was expected, what was found, and the character (counted from 1).

Source: docs/formats/query.md section 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

from edgeferry.errors import RequestInvalid

TEXT_MAX_CHARS = 8192  # IoT Hub's own limit of a query
RESERVED = frozenset(("and", "or", "not", "in", "nin", "true", "false", "null", "undefined"))
Step = str | int
Steps = tuple[Step, ...]

_BLANK = re.compile(r"[ \t\r\n]*")
_SIGN = re.compile(r"<=|>=|!=|<>|[=<>()\[\],*]")
_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]{1,14}|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_FIRST_NAME = re.compile(r"(?:[^\W\d]|\$)[\w$-]*")
_LATER_NAME = re.compile(r"[\w$-]+")
_INDEX = re.compile(r"\[([0-9]{1,9})\]")
_PLAIN = {"'": re.compile(r"[^'\\]*"), '"': re.compile(r'[^"\\]*')}
_UNICODE = re.compile(r"u([0-9a-fA-F]{4})")
_SURROGATE = re.compile("[\ud800-\udfff]")
_INT_MAX_DIGITS = 18


class Token(NamedTuple):
    """A piece of text. `at` is its first character, from 0; `value` the string, number or steps that it stands for.

    A `word` is a lone name: a key word, a function or a path of one step, as its place decides.
    """

    kind: Literal["word", "path", "string", "number", "sign", "end"]
    text: str
    at: int
    value: Any = None


@dataclass(slots=True)
class TokenReader:
    """Where a parser stands in its tokens."""

    tokens: tuple[Token, ...]
    position: int = 0

    @property
    def next(self) -> Token:
        """The token that would be taken."""
        return self.tokens[self.position]

    def take(self) -> Token:
        """The next token; the end is never passed."""
        token = self.next
        self.position += token.kind != "end"
        return token

    def has_word(self, *words: str) -> bool:
        """Whether one of these (small letters) is next."""
        return self.next.kind == "word" and self.next.text.lower() in words

    def take_word(self, *words: str) -> str | None:
        """Takes one of these words and says which, in small letters."""
        return self.take().text.lower() if self.has_word(*words) else None

    def take_sign(self, *signs: str) -> str | None:
        """Takes one of these signs and says which."""
        return self.take().text if self.next.kind == "sign" and self.next.text in signs else None

    def require_sign(self, sign: str) -> None:
        """Takes this sign; raises RequestInvalid."""
        if not self.take_sign(sign):
            self.refuse(f"'{sign}'")

    def refuse(self, expected: str) -> NoReturn:
        """Raises RequestInvalid at the next token."""
        found = "the end" if self.next.kind == "end" else f"{self.next.text!r:.80}"
        raise RequestInvalid(f"expected {expected}, found {found} at character {self.next.at + 1}")


def read_tokens(text: str) -> TokenReader:
    """Cuts the text.

    Raises:
        RequestInvalid: too long, or a piece that is no token.
    """
    if len(text) > TEXT_MAX_CHARS:
        raise RequestInvalid(f"expected at most {TEXT_MAX_CHARS} characters, found {len(text)}")
    tokens = []
    at = _skip_blank(text, 0)
    while at < len(text):
        token, end = _scan_token(text, at)
        tokens.append(token)
        at = _skip_blank(text, end)
    return TokenReader((*tokens, Token("end", "", len(text))))


def format_string(value: str) -> str:
    """A string as a literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def format_steps(steps: Steps) -> str:
    """A path as text that reads back as the same steps."""
    first, *later = steps
    return _format_first(str(first)) + "".join(map(_format_later, later))


def _format_first(name: str) -> str:
    if _FIRST_NAME.fullmatch(name) and name.lower() not in RESERVED:
        return name
    return f"[[{name}]]" if f"{name}]]".find("]]") == len(name) else f"{{{name}}}"


def _format_later(step: Step) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _LATER_NAME.fullmatch(step) else f"[{format_string(step)}]"


def _skip_blank(text: str, at: int) -> int:
    while True:
        at = _BLANK.match(text, at).end()  # type: ignore[union-attr]  # it matches "" too
        if not text.startswith("/*", at):
            return at
        at = _find(text, "*/", at + 2, opened="a comment") + 2


def _scan_token(text: str, at: int) -> tuple[Token, int]:
    if text[at] in _PLAIN:
        value, end = _scan_string(text, at)
        return Token("string", text[at:end], at, value), end
    if number := _NUMBER.match(text, at):
        amount = _make_number(number[0])
        if abs(amount) == float("inf"):
            _refuse("a smaller number", text, at)
        return Token("number", number[0], at, amount), number.end()
    if text[at] in "{$" or text.startswith("[[", at) or _FIRST_NAME.match(text, at):
        return _scan_path(text, at)
    if sign := _SIGN.match(text, at):
        return Token("sign", sign[0], at), sign.end()
    return _refuse("a name, a literal or an operator", text, at)


def _scan_path(text: str, at: int) -> tuple[Token, int]:
    plain = _FIRST_NAME.match(text, at)
    if plain and plain[0].lower() in RESERVED:
        return Token("word", plain[0], at, (plain[0],)), plain.end()
    steps, end = ((plain[0],), plain.end()) if plain else _scan_escaped(text, at)
    later, end = _scan_later_steps(text, end)
    is_word = plain is not None and not later
    return Token("word" if is_word else "path", text[at:end], at, (*steps, *later)), end


def _scan_escaped(text: str, at: int) -> tuple[Steps, int]:
    """`[[name]]` and `{name}`; `{$a.b}` is the path inside."""
    opened, closed = ("[[", "]]") if text[at] == "[" else ("{", "}")
    end = _find(text, closed, at + len(opened), opened=f"'{opened}'")
    name = text[at + len(opened) : end]
    if not name:
        _refuse("a name", text, end)
    if opened == "{" and (system := _FIRST_NAME.match(name)) and name.startswith("$"):
        later, stop = _scan_later_steps(name, system.end())
        if stop != len(name):
            _refuse("'}'", text, at + 1 + stop)
        return (system[0], *later), end + 1
    return (name,), end + len(closed)


def _scan_later_steps(text: str, at: int) -> tuple[Steps, int]:
    steps: list[Step] = []
    while text.startswith((".", "["), at):
        step, at = _scan_later_step(text, at)
        steps.append(step)
    return tuple(steps), at


def _scan_later_step(text: str, at: int) -> tuple[Step, int]:
    after = at + (text[at] == ".")
    if text.startswith("[[", after):
        (name,), end = _scan_escaped(text, after)
        return name, end
    if text[at] == ".":
        match = _LATER_NAME.match(text, after) or _refuse("a name after '.'", text, after)
        return match[0], match.end()
    if index := _INDEX.match(text, at):
        return int(index[1]), index.end()
    if text[at + 1 : at + 2] not in _PLAIN:
        _refuse("a position or a quoted name after '['", text, at + 1)
    name, end = _scan_string(text, at + 1)
    return name, end + 1 if text.startswith("]", end) else _refuse("']'", text, end)


def _scan_string(text: str, at: int) -> tuple[str, int]:
    """The string that begins at this quote, and where it ends. A doubled quote is one quote."""
    quote, position, parts = text[at], at + 1, [""]
    while True:
        plain: re.Match[str] = _PLAIN[quote].match(text, position)  # type: ignore[assignment]  # it matches "" too
        parts.append(plain[0])
        position = plain.end()
        if text.startswith(quote * 2, position):
            parts.append(quote)
            position += 2
        elif text.startswith(quote, position):
            return _join_surrogates("".join(parts), at), position + 1
        elif position == len(text):
            _refuse(f"a closing {quote}", text, position)
        else:
            sign, position = _scan_escape(text, position + 1)
            parts.append(sign)


def _scan_escape(text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] and text[at] in "'\"\\":
        return text[at], at + 1
    code = _UNICODE.match(text, at) or _refuse("one of ' \" \\ uXXXX after a backslash", text, at)
    return chr(int(code[1], 16)), code.end()


def _join_surrogates(value: str, at: int) -> str:
    if not _SURROGATE.search(value):
        return value
    try:
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise RequestInvalid(f"expected whole characters, found half a pair after character {at + 1}") from error


def _make_number(text: str) -> int | float:
    digits = text.removeprefix("-").lower()
    if digits.startswith("0x"):
        return int(text, 16)
    if digits.isdecimal() and len(digits) <= _INT_MAX_DIGITS:
        return int(text)
    return float(text)


def _find(text: str, closed: str, at: int, *, opened: str) -> int:
    end = text.find(closed, at)
    return end if end >= 0 else _refuse(f"'{closed}' after {opened}", text, len(text))


def _refuse(expected: str, text: str, at: int) -> NoReturn:
    found = f"{text[at : at + 20]!r}" if at < len(text) else "the end"
    raise RequestInvalid(f"expected {expected}, found {found} at character {at + 1}")
