"""Bodies of `multipart/form-data` (RFC 7578) as parts, for pictures that come inside a form.

What this file leaves to others: reading the body within its limits (`serve/body.py`), what a field means
(`serve/form.py`).

Rules:
- The body is whole and bounded already. Parts are views into it: nothing is copied, however large the picture.
- At most `PARTS_MAX` parts, `HEAD_MAX_BYTES` of header each. Lines end with CRLF; a form without its last delimiter was
  cut on its way and is refused.
- A part is what its bytes are: no Content-Transfer-Encoding but the three that change nothing (RFC 7578, 4.7).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeferry.errors import RequestInvalid

PARTS_MAX = 16
HEAD_MAX_BYTES = 4 << 10
_CRLF = b"\r\n"
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
"""RFC 2046, 5.1.1."""
_PARAMETER = re.compile(r';[ \t]*([0-9A-Za-z_*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^;" \t]*))[ \t]*')
_UNCHANGED = frozenset({"7bit", "8bit", "binary"})


@dataclass(frozen=True, slots=True)
class Part:
    """One field: `name` empty where the sender gave none, `content` a view into the body."""

    name: str
    content: memoryview


def read_parts(body: bytes, content_type: str) -> tuple[Part, ...]:
    """The parts of `body` in their order, by the boundary that `content_type` names; raises RequestInvalid."""
    delimiter = b"--" + _read_boundary(content_type)
    start = len(_CRLF) if body.startswith(_CRLF) else 0
    if not body.startswith(delimiter, start):
        raise RequestInvalid("expected a form that begins with its boundary, found something else")
    at, parts = start + len(delimiter), list[Part]()
    while not body.startswith(b"--", at):
        if len(parts) == PARTS_MAX:
            raise RequestInvalid(f"expected a form of at most {PARTS_MAX} parts, found more")
        part, at = _read_part(body, at, _CRLF + delimiter)
        parts.append(part)
    return tuple(parts)


def _read_part(body: bytes, at: int, delimiter: bytes) -> tuple[Part, int]:
    """The part whose header follows the delimiter that ends at `at`, and where the next delimiter ends."""
    head_end = body.find(_CRLF * 2, at, at + HEAD_MAX_BYTES)
    if head_end < 0 or not body.startswith(_CRLF, at):
        raise RequestInvalid(f"expected a part with a header of at most {HEAD_MAX_BYTES} bytes, found none")
    begin = head_end + 2 * len(_CRLF)
    end = body.find(delimiter, begin)
    if end < 0:
        raise RequestInvalid("expected the boundary after the last part, found the end of the body")
    name = _read_name(body[at + len(_CRLF) : head_end])
    return Part(name, memoryview(body)[begin:end]), end + len(delimiter)


def _read_boundary(content_type: str) -> bytes:
    boundary = _read_parameters(content_type).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise RequestInvalid("expected multipart/form-data with a boundary of 1 to 70 characters, found none")
    return boundary.encode()


def _read_name(head: bytes) -> str:
    try:
        lines = [line.partition(":") for line in head.decode("utf-8").split("\r\n")]
    except UnicodeDecodeError as error:
        raise RequestInvalid("expected headers of a part in UTF-8, found other bytes") from error
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    coding = headers.get("content-transfer-encoding", "binary").lower()
    if coding not in _UNCHANGED:
        raise RequestInvalid(f"expected a part without Content-Transfer-Encoding, found {coding!r:.40}")
    return _read_parameters(headers.get("content-disposition", "")).get("name", "")


def _read_parameters(header: str) -> dict[str, str]:
    """The `; name=value` of a header, values without their quotes; what is none is passed over."""
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(header):
        quoted, plain = match[2], match[3]
        found.setdefault(match[1].lower(), plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
    return found
