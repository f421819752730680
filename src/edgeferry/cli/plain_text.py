"""Plain text: names that came out of a file, as a terminal may show them."""

from __future__ import annotations

_NAME_MAX_CHARS = 60


def clean_name(name: str) -> str:
    """A name from a file as a terminal may show it: printable, and not endless."""
    shown = "".join(char if char.isprintable() else "?" for char in name)
    return shown if len(shown) <= _NAME_MAX_CHARS else f"{shown[: _NAME_MAX_CHARS - 3]}..."
