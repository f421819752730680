"""Labels: the lines of a label file, and the one line that names a class.

Where labels come from is the spec's (`model/spec.py: LabelSpec`); how many a model needs is `model/families/`'s.

Rules:
- UTF-8 with or without a byte order mark; line ends are LF, CRLF or CR and nothing else (a form feed or U+2028 inside a
  label must not shift those below it).
- Order and placeholder lines (`???`, blank ones between others) are kept: the label of a class is the line at
  `class + offset` of the unfiltered list. Only blank lines at the end are dropped.
- Bounded: bytes, lines, characters in a line.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeferry.errors import BundleTooLarge, BundleUnreadable

LABELS_MAX_BYTES = 4 << 20
LABELS_MAX_LINES = 100_000
LABEL_MAX_CHARS = 1_000

_PLACEHOLDERS = frozenset({"???", "background", "__background__", "_background_", "unlabeled", "none", "n/a"})


def read_labels(data: bytes | bytearray | memoryview) -> tuple[str, ...]:
    """Reads a label file.

    Returns:
        One label a line, in order, blanks around each taken off; blank lines at the end dropped.

    Raises:
        BundleTooLarge: more bytes, lines or characters than any label file has.
        BundleUnreadable: not UTF-8, or NUL bytes in it: not a text file.
    """
    if len(data) > LABELS_MAX_BYTES:
        raise BundleTooLarge(f"expected a label file of at most {LABELS_MAX_BYTES} bytes, found {len(data)}")
    try:
        text = bytes(data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BundleUnreadable(f"expected a label file in UTF-8: {error.reason} at byte {error.start}") from error
    if "\x00" in text:
        raise BundleUnreadable("expected a label file, found NUL bytes: not a text")
    return _check_labels(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))


def _check_labels(lines: Sequence[str]) -> tuple[str, ...]:
    labels = [line.strip() for line in lines]
    while labels and not labels[-1]:
        labels.pop()
    if len(labels) > LABELS_MAX_LINES:
        raise BundleTooLarge(f"expected at most {LABELS_MAX_LINES} labels, found {len(labels)}")
    longest = max(map(len, labels), default=0)
    if longest > LABEL_MAX_CHARS:
        raise BundleTooLarge(f"expected labels of at most {LABEL_MAX_CHARS} characters, found one of {longest}")
    return tuple(labels)


def find_label(labels: Sequence[str], class_index: int, offset: int = 0) -> str:
    """The label of a class: the line at `class_index + offset`, or the number itself when there is no such line."""
    line = class_index + offset
    if 0 <= line < len(labels) and labels[line]:
        return labels[line]
    return str(class_index)


def is_placeholder(label: str) -> bool:
    """Whether a first line stands for "nothing" (`???`, `background`, ...) rather than for a class one could see."""
    return label.lower() in _PLACEHOLDERS
