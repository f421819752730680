"""`edgeferry demo`: the whole story on one machine, and `--up`: the same site left running."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgeferry.app.demo import DEFAULT_LINK_BPS, DemoFigures, run_demo, run_up
from edgeferry.cli.exit_codes import FAILED, OK
from edgeferry.errors import ConfigInvalid

_CHECKOUT_MODELS = Path(__file__).resolve().parents[3] / "models"


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/demo"),
    show_default=True,
    help="Folder for everything it makes.",
)
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    default=_CHECKOUT_MODELS,
    help="The demo models (a checkout's models/).",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file.")
@click.option(
    "--link-bps", type=click.IntRange(min=8000), default=DEFAULT_LINK_BPS, show_default=True, help="The thin link."
)
@click.option("--up", is_flag=True, help="Leave a hub and one device with the demo model running.")
def demo(out: Path, models: Path, json_path: Path | None, link_bps: int, up: bool) -> None:
    """Tells the whole story on this machine, in three minutes.

    With real processes: publishes, deploys, updates over a thin link under requests, refuses a bad version.
    """
    if not (models / "detector").is_dir():
        raise ConfigInvalid(f"expected the demo models under {models}: run from a checkout, or give --models")
    console = Console(highlight=False, soft_wrap=True)
    if up:
        asyncio.run(run_up(out, models, say=console.print))
        return
    figures = _run(console, out, models, link_bps)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
    _print_figures(console, figures)
    sys.exit(OK if all(figures.claims.values()) else FAILED)


def _run(console: Console, out: Path, models: Path, link_bps: int) -> DemoFigures:
    columns = (TextColumn("  1.1.0"), BarColumn(30), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("", total=1.0, visible=False)
        last = [-1]

        def show(share: float, words: str) -> None:
            bar.update(task, completed=share, description=words, visible=console.is_terminal)
            tenth = int(share * 10)
            if not console.is_terminal and tenth != last[0]:
                last[0] = tenth
                console.print(f"  1.1.0 {share:4.0%}  {words}")

        return asyncio.run(run_demo(out, models, link_bps=link_bps, say=bar.console.print, progress=show))


def _print_figures(console: Console, figures: DemoFigures) -> None:
    table = Table(title="The update 1.0.0 -> 1.1.0", title_justify="left", show_header=False)
    saved = 1 - figures.update_wire_bytes / figures.guide_zip_bytes
    rows = [
        ("bytes on the link, all told (above TCP)", f"{figures.update_wire_bytes:,}"),
        ("of them the model, by patch", f"{figures.patch_bytes:,}  (full file: {figures.full_bytes:,})"),
        ("the guide's ZIP alone", f"{figures.guide_zip_bytes:,}  (ours saves {saved:.1%})"),
        ("time on the link", f"{figures.update_s} s at {figures.link_bps // 1000} kbit/s"),
        ("requests answered meanwhile", f"{figures.requests_during_update}"),
        ("requests failed", f"{figures.failed} of {figures.requests}"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    for claim, held in figures.claims.items():
        console.print(f"  {'held  ' if held else 'BROKEN'}  {claim}")
    console.print(f"Pictures with answers: {Path(figures.pictures[0]).parent}   ({figures.total_s} s in all)")
