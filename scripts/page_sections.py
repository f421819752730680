"""One page that several benches write: each owns a marked section and leaves the others alone."""

from __future__ import annotations

from pathlib import Path

HEAD = "# Measurements\n"


def write_section(page: Path, command: str, text: str) -> None:
    """Puts `text` (Markdown) into the section of `command`: where that stands, else at the end."""
    whole = page.read_text(encoding="utf-8") if page.is_file() else HEAD
    page.write_text(replace_section(whole, command, text), encoding="utf-8")


def replace_section(whole: str, command: str, text: str) -> str:
    """The page with the section of `command` holding `text` and all else as it was."""
    begin, end = f"<!-- {command} begins -->", f"<!-- {command} ends -->"
    section = f"{begin}\nWritten by `{command}`.\n\n{text.strip()}\n{end}\n"
    before, found, rest = whole.partition(f"{begin}\n")
    if not found:
        return f"{whole.rstrip()}\n\n{section}"
    _, found, after = rest.partition(f"{end}\n")
    if not found:
        raise SystemExit(f"the section of {command} has no end: expected the line {end}")
    return before + section + after
