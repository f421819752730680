"""Literals: text in Python's notation, as `str(value)` writes it, -> plain values. Nothing is evaluated.

Model files carry such text as metadata (`{0: 'person', 1: 'car'}`), and any bytes may stand there.

Rules:
- Strings, numbers, True, False, None, lists and dicts of them; every other notation is a ValueError.
- Bounded: characters and depth. Keys are strings or whole numbers, each once.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

LITERAL_MAX_CHARS = 1 << 20
_DEPTH_MAX = 8

_TOKEN = re.compile(r"""\s*([][{}:,]|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|[-+.\w]+)""")
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,14})")
_BROKEN = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{0,20}(?:e[-+]?[0-9]{1,3})?|e[-+]?[0-9]{1,3})")
_WORDS: dict[str, object] = {"True": True, "False": False, "None": None}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}


def read_literal(text: str) -> object:
    """The value that `text` writes; ValueError for anything else."""
    if len(text) > LITERAL_MAX_CHARS:
        raise ValueError(f"expected at most {LITERAL_MAX_CHARS} characters of a literal, found {len(text)}")
    tokens = deque(_split(text.strip()))
    value = _read_value(tokens, 0)
    if tokens:
        raise ValueError("expected one literal, found more")
    return value


def _split(text: str) -> Iterator[str]:
    place = 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            raise ValueError(f"expected a literal, found {text[place : place + 20]!r}")
        yield token[1]
        place = token.end()


def _read_value(tokens: deque[str], depth: int) -> object:
    word = tokens.popleft() if tokens and depth <= _DEPTH_MAX else ""
    if word == "[":
        return _read_list(tokens, depth)
    if word == "{":
        return _read_dict(tokens, depth)
    if word[:1] in ("'", '"'):
        return _ESCAPE.sub(_unescape, word[1:-1])
    if word in _WORDS:
        return _WORDS[word]
    if _WHOLE.fullmatch(word):
        return int(word)
    if _BROKEN.fullmatch(word):
        return float(word)
    raise ValueError(f"expected a literal, found {word!r:.20}")


def _read_list(tokens: deque[str], depth: int) -> list[object]:
    values: list[object] = []
    while not _ends(tokens, "]", first=not values):
        values.append(_read_value(tokens, depth + 1))
    return values


def _read_dict(tokens: deque[str], depth: int) -> dict[str | int, object]:
    values: dict[str | int, object] = {}
    while not _ends(tokens, "}", first=not values):
        key = _read_value(tokens, depth + 1)
        if not isinstance(key, (str, int)) or key in values or not tokens or tokens.popleft() != ":":
            raise ValueError(f"expected a key and its value in a literal, found {key!r:.20}")
        values[key] = _read_value(tokens, depth + 1)
    return values


def _ends(tokens: deque[str], end: str, *, first: bool) -> bool:
    """Takes the end of a list or dict, or the comma before its next item; one comma may stand before the end."""
    comma = not first and bool(tokens) and tokens[0] == ","
    if comma:
        tokens.popleft()
    if tokens and tokens[0] == end:
        tokens.popleft()
        return True
    if not tokens or not (first or comma):
        raise ValueError(f"expected {end!r} in a literal")
    return False


def _unescape(found: re.Match[str]) -> str:
    what = found[1]
    if len(what) > 1:
        return chr(int(what[1:], 16))
    if what not in _ESCAPED:
        raise ValueError(f"expected an escape of a string, found {what!r}")
    return _ESCAPED[what]
