"""`edgeferry patch make|apply|info`: patches between two files, on a command line.

What this file leaves to others: everything but words; the wiring is `app/patch_files.py`'s.

Rules:
- Every command takes `--json`: results on stdout, progress on stderr.
- What comes out of a patch or a model is shown without control characters.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeferry.app import patch_files
from edgeferry.app.patch_files import Made
from edgeferry.cli.byte_progress import open_byte_progress
from edgeferry.cli.exit_codes import ends_with_exit_code
from edgeferry.cli.plain_text import clean_name
from edgeferry.delta.container import DIGEST_BYTES
from edgeferry.delta.explain import Explanation, Part

Command = TypeVar("Command", bound=Callable[..., Any])
PLAIN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _out_option(command: Command) -> Command:
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option("-o", "--out", "out", type=kind, required=True, help="Where to write it.")(command)


@click.group("patch")
def patch_group() -> None:
    """Makes, applies and explains patches between two files."""


# --- make -------------------------------------------------------------------------------------------------------------
@patch_group.command("make")
@click.argument("base", type=_FILE)
@click.argument("target", type=_FILE)
@_out_option
@click.option("--full-digests", is_flag=True, help="Carry whole digests, for a patch that travels without a manifest.")
@_json_option
@ends_with_exit_code
def patch_make(base: Path, target: Path, out: Path, full_digests: bool, as_json: bool) -> None:
    """Writes the shortest patch that turns BASE into TARGET. It is applied again and compared before it is written."""
    with open_byte_progress("patching", "patched") as progress:
        made = patch_files.make_patch_file(base, target, out, full_digests=full_digests, progress=progress)
    if as_json:
        _print_json(made)
    else:
        _print_made(made)


def _print_made(made: Made) -> None:
    share = f"{made.patch_bytes / made.target_bytes:.2%} of the target" if made.target_bytes else "the target is empty"
    click.echo(f"{made.patch} {made.patch_bytes:,} bytes, {share} ({made.target_bytes:,} bytes)")
    for way, size_bytes in sorted(made.sizes_by_way.items(), key=lambda each: (each[1], each[0])):
        mark = "won" if way == made.way else ""
        click.echo(f"  {way:<28} {size_bytes:>13,} bytes  {mark}".rstrip())
    click.echo(f"  applying takes {made.memory_bytes:,} bytes of memory")
    click.echo(f"  made in {made.cpu_s:.1f} CPU seconds, {made.elapsed_s:.1f} seconds")


# --- apply ------------------------------------------------------------------------------------------------------------
@patch_group.command("apply")
@click.argument("base", type=_FILE)
@click.argument("patch", type=_FILE)
@_out_option
@_json_option
@ends_with_exit_code
def patch_apply(base: Path, patch: Path, out: Path, as_json: bool) -> None:
    """Writes what PATCH makes of BASE, in a process of its own that may take no more memory than the patch states."""
    applied = asyncio.run(patch_files.apply_patch_file(base, patch, out))
    if as_json:
        _print_json(applied)
        return
    checked = "digest checked" if applied.whole_digest else "first bytes of its digest checked"
    click.echo(f"{applied.target} {applied.target_bytes:,} bytes, {applied.sha256}, {checked}")
    click.echo(f"  applied in {applied.cpu_s:.1f} CPU seconds, within {applied.memory_bytes:,} bytes of memory")


# --- info -------------------------------------------------------------------------------------------------------------
@patch_group.command("info")
@click.argument("patch", type=_FILE)
@click.option("--base", type=_FILE, help="The base: then what each tensor costs can be told.")
@_json_option
@ends_with_exit_code
def patch_info(patch: Path, base: Path | None, as_json: bool) -> None:
    """Shows what a patch is made of: sections, tensors and what each is expected from, bytes by cause."""
    found = asyncio.run(patch_files.explain_patch_file(patch, base))
    if as_json:
        _print_json(found)
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    _print_head(found)
    tables = [_make_sections(found), *_list_tables(found), _make_causes(found)]
    for table in tables:
        if table.row_count:
            console.print()
            console.print(table)
    if any(cause.patch_bytes is None for cause in found.causes):
        click.echo("\nwhat each tensor costs is told with --base BASE")


def _list_tables(found: Explanation) -> Iterator[Table]:
    """Of the tensors; in an archive, of its files and of the tensors of each."""
    yield _make_parts("tensors", found)
    yield _make_members(found)
    for member in found.members:
        if member.explanation:
            yield _make_parts(f"tensors in {clean_name(member.name) or member.start}", member.explanation)


def _print_head(found: Explanation) -> None:
    what = f"patch from {_show_digest(found.base)} to" if found.has_base else "coded full file of"
    click.echo(f"{what} {_show_digest(found.target)}")
    click.echo(
        f"  {found.patch_bytes:,} bytes for {found.target_bytes:,}; takes {found.memory_bytes:,} bytes of memory"
    )


def _show_digest(digits: str) -> str:
    return digits if len(digits) == 2 * DIGEST_BYTES else f"{digits}..."


def _make_table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _make_sections(found: Explanation) -> Table:
    table = _make_table("sections", ("section", "method"), ("bytes", "stand for"))
    for section in found.sections:
        stands_for = f"{section.stands_for_bytes:,}" if section.stands_for_bytes else ""
        table.add_row(section.name, section.method, f"{section.size_bytes:,}", stands_for)
    return table


def _make_members(found: Explanation) -> Table:
    table = _make_table("files", ("range", "packed", "from", "name"), ("bytes", "unpacked", "in the patch"))
    for member in found.members:
        packed = f"deflated, level {member.level}" if member.level else "as it is"
        row = (f"{member.start}-{member.end}", packed, member.origin, clean_name(member.name))
        sizes = (member.end - member.start, member.size_bytes, member.patch_bytes)
        table.add_row(*map(Text, row), *(f"{size:,}" for size in sizes))
    return table


def _make_parts(title: str, found: Explanation) -> Table:
    table = _make_table(
        title, ("range", "numbers", "expected as", "from", "name"), ("bytes", "in the patch", "bits each")
    )
    for part in sorted(found.parts, key=lambda each: (-(each.patch_bytes or 0), each.start)):
        expected = ", ".join((part.cause, *part.details))
        numbers = f"{part.kind} {part.rows}x{part.columns}"
        row = (f"{part.start}-{part.end}", numbers, expected, part.origin, clean_name(part.name))
        table.add_row(*map(Text, row), f"{part.end - part.start:,}", *_show_costs(part))
    return table


def _show_costs(part: Part) -> tuple[str, str]:
    if part.patch_bytes is None:
        return "?", "?"
    return f"{part.patch_bytes:,.1f}", f"{8 * part.patch_bytes / (part.rows * part.columns):.3f}"


def _make_causes(found: Explanation) -> Table:
    table = _make_table("bytes by cause", ("cause",), ("ranges", "bytes", "in the patch", "share"))
    for cause in found.causes:
        known = cause.patch_bytes is not None
        bytes_text = f"{cause.patch_bytes:,.1f}" if known else "?"
        share = f"{(cause.patch_bytes or 0) / found.patch_bytes:.1%}" if known else "?"
        table.add_row(cause.name, str(cause.count or ""), f"{cause.target_bytes:,}", bytes_text, share)
    return table


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.encode(value).decode())
