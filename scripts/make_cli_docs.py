"""Writes docs/cli.md from the commands' own help and docs/states.md from the update machine's table.

`--check` writes nothing and fails when a page is not what the code says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from edgeferry.agent.machine import make_diagram
from edgeferry.cli.main import VERBS, cli

DOCS = Path(__file__).resolve().parent.parent / "docs"
CLI_HEAD = """# The command line

Written by `make docs` from the commands themselves. Exit codes: 0 ok, 1 our failure, 2 usage or settings, 3 link,
4 refused (trust, bad bundle, bad model), 5 nothing to do where that matters.
"""
STATES_HEAD = """# The update machine

Written by `make docs` from the table in `agent/machine.py`.
"""


def walk(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yields (words, help text) for a command and all below it."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield from walk(below, click.Context(below, info_name=name, parent=context, terminal_width=100))


def make_cli_page() -> str:
    """docs/cli.md as it should be."""
    root = click.Context(cli, info_name="edgeferry", terminal_width=100)
    parts = [CLI_HEAD]
    for verb in VERBS:
        command = cli.get_command(root, verb)
        if command is None:
            raise SystemExit(f"expected a command for the verb {verb}")
        context = click.Context(command, info_name=verb, parent=root, terminal_width=100)
        for words, text in walk(command, context):
            parts.append(f"## {words}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def main(check: bool) -> int:
    """Writes the pages, or with `check` compares them; returns the exit code."""
    pages = {
        DOCS / "cli.md": make_cli_page(),
        DOCS / "states.md": f"{STATES_HEAD}\n```mermaid\n{make_diagram()}\n```\n",
    }
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text() != text]
    if check:
        for path in stale:
            print(f"{path.relative_to(DOCS.parent)} is not what the code says: run make docs")
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages[path])
        print(f"wrote {path.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
