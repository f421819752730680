"""The documents hold against the code: every command that a page shows exists, with every option it is given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edgeferry.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?edgeferry ((?:[^\n\\]|\\\n)+)$", re.M)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def list_commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", page.read_text(), re.S)
        for words in COMMAND.findall("\n".join(blocks)):
            yield page.name, re.sub(r"\$\([^)]*\)", "X", words.replace("\\\n", " ")).split(" #")[0].rstrip(" &")


@pytest.mark.parametrize(("page", "words"), list(list_commands()))
def test_a_command_that_a_page_shows_exists_with_its_options(page: str, words: str) -> None:
    context = click.Context(cli, info_name="edgeferry")
    command: click.Command = cli
    rest = shlex.split(words)
    while isinstance(command, click.Group) and rest:
        found = command.get_command(context, rest[0])
        assert found is not None, f"{page}: no command {rest[0]!r} in {words!r}"
        command, rest = found, rest[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    assert given <= known | {"--help"}, f"{page}: {given - known} in {words!r}"


def test_there_are_commands_to_check() -> None:
    assert len(list(list_commands())) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


CITATION = re.compile(r"\b(docs/[\w./-]+\.md)(?: section (\d+))?")


def test_pages_and_sections_that_the_source_cites_exist() -> None:
    files = [path for folder in ("src", "tests", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    cited = {found for path in files for found in CITATION.findall(path.read_text())}
    assert len(cited) >= 8
    for page, section in sorted(cited):
        assert (ROOT / page).is_file(), page
        assert not section or f"\n## {section}. " in (ROOT / page).read_text(), f"{page} section {section}"
