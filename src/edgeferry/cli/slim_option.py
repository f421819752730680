"""`--slim` of `publish`: its options, the table and plot of bytes against loss, and the question whether to go on.

What this file leaves to others: everything but words; the wiring is `app/slim.py`'s.

Rules:
- Nothing is lost without a yes: on the terminal, or by `--yes`. With `--json` nobody is asked: then `--yes` must stand.
- Table, plot and question go to stderr: stdout is the result's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeferry.app.operator import Place
from edgeferry.app.slim import SlimTerms, propose
from edgeferry.errors import ConfigInvalid
from edgeferry.publish.publisher import Request, Say
from edgeferry.publish.slim import Level, get_standard_error
from edgeferry.publish.slim_version import Proposal

Command = TypeVar("Command", bound=Callable[..., Any])
PLOT_COLUMNS, PLOT_ROWS = 60, 10
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class SlimOptions:
    """What was typed; `yes`: the answer is given already."""

    terms: SlimTerms
    yes: bool


def slim_options(command: Command) -> Command:
    """Adds `--slim`, `--max-loss`, `--eval` and `--yes`."""
    options = (
        click.option("--slim", is_flag=True, help="Look for a version of far fewer bytes that is a little worse."),
        click.option(
            "--max-loss", type=float, metavar="POINTS", help="With --slim: the most that may be lost, of 100."
        ),
        click.option(
            "--eval",
            "eval_folder",
            type=_FOLDER,
            help="With --slim: folder of pictures that show the loss, with .json truths as --golden has them, or none.",
        ),
        click.option("--yes", is_flag=True, help="With --slim: publish what was found without asking."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def take_slim_options(given: dict[str, Any], *, as_json: bool) -> SlimOptions | None:
    """Takes its options out of what was given; None without `--slim`. Raises ConfigInvalid where they do not fit."""
    slim, max_loss, folder, yes = (given.pop(name) for name in ("slim", "max_loss", "eval_folder", "yes"))
    if not slim:
        if max_loss is not None or folder is not None or yes:
            raise ConfigInvalid("expected --slim with --max-loss, --eval or --yes")
        return None
    if max_loss is None or folder is None:
        raise ConfigInvalid("expected --max-loss and --eval with --slim: how much may be lost, and what shows it")
    if as_json and not yes:
        raise ConfigInvalid("expected --yes with --slim and --json: nobody can be asked")
    return SlimOptions(SlimTerms(max_loss, folder), yes)


def ask_for_slim(request: Request, place: Place, options: SlimOptions, *, say: Say) -> Request:
    """Searches, shows, asks; returns what to publish. Raises click.Abort on a no."""
    found = propose(request, place, options.terms, say=say)
    if found.published:
        return found.request
    for line in (*draw_table(found), "", *draw_plot(found.search.levels, found.search.taken, max_loss=found.max_loss)):
        click.echo(line, err=True)
    if found.search.taken:
        question = f"Publish the version that loses {found.search.levels[found.search.taken].loss:.2f} points?"
    else:
        question = "Nothing shorter loses as little. Publish the version as it is?"
    if not options.yes:
        click.confirm(question, abort=True, err=True)
    return found.request


# --- table ------------------------------------------------------------------------------------------------------------
def draw_table(found: Proposal) -> Iterator[str]:
    """Bytes against loss, a line for each level; `~` before bytes that are estimated."""
    request, levels = found.request, found.search.levels
    origin = f"a patch from {found.base}" if found.base else "a full download"
    score = "" if found.score is None else f" of {found.score:.2f}"
    yield (
        f"{request.model} {request.version}, {request.model_file}: bytes of {origin} against loss of {found.metric}"
        f"{score}, in points ({found.pictures} pictures, {found.outcomes} objects or classes)"
    )
    yield f"{'bytes':>14} {'of lossless':>12} {'bits/number':>12} {'loss':>8}"
    for at, level in enumerate(levels):
        share = f"{100 * level.size_bytes / levels[0].size_bytes:.1f} %"
        yield f"{_format_bytes(level):>14} {share:>12} {_format_loss(level, at, found)}".rstrip()


def _format_bytes(level: Level) -> str:
    return f"{'' if level.exact else '~ '}{level.size_bytes:,}"


def _format_loss(level: Level, at: int, found: Proposal) -> str:
    if at == 0:
        return f"{'':>12} {0:>8.2f}         lossless"
    error = get_standard_error(level.loss, found.telling)
    remark = "taken" if at == found.search.taken else "too much" if level.loss > found.max_loss else ""
    remark = "fails golden truth" if level.refused else remark
    return f"{level.bits_per_number:>12.2f} {level.loss:>8.2f} ± {error:.2f}  {remark}"


# --- plot -------------------------------------------------------------------------------------------------------------
def draw_plot(levels: Sequence[Level], taken: int, *, max_loss: float) -> Iterator[str]:
    """Loss upwards, to twice what is allowed, over the logarithm of bytes; `@` is the level that is taken."""
    logs = [math.log(max(1, level.size_bytes)) for level in levels]
    low, span = min(logs), max(max(logs) - min(logs), 1e-9)
    rows = [[" "] * PLOT_COLUMNS for _ in range(PLOT_ROWS + 1)]
    rows[PLOT_ROWS // 2] = ["-"] * PLOT_COLUMNS
    for at, (level, log) in enumerate(zip(levels, logs, strict=True)):
        height = round(PLOT_ROWS * min(max(level.loss / (2 * max_loss), 0.0), 1.0))
        row = rows[PLOT_ROWS - height]
        column = round((PLOT_COLUMNS - 1) * (log - low) / span)
        row[column] = "@" if at == taken else row[column] if row[column] == "@" else "o"
    marks = {0: f">{2 * max_loss:.2f}", PLOT_ROWS // 2: f"{max_loss:.2f}", PLOT_ROWS: "0.00"}
    for number, row in enumerate(rows):
        yield f"{marks.get(number, ''):>8} |{''.join(row)}".rstrip()
    least, most = (f"{round(math.exp(log)):,}" for log in (low, low + span))
    yield f"{'':>8} +{'-' * PLOT_COLUMNS}"
    yield f"{'':>9} {least}{most:>{PLOT_COLUMNS - len(least)}} bytes"
