"""`edgeferry rehearse`: an update played on this machine over a thin link, before a fleet takes it."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from edgeferry.app.logging import configure_logging
from edgeferry.app.rehearsal import Figures, Progress, find_error, rehearse, require_short
from edgeferry.app.rehearsal_plan import Source, read_plan
from edgeferry.app.rehearsal_stage import Rehearsal
from edgeferry.cli.exit_codes import OK, ends_with_exit_code, get_exit_code
from edgeferry.errors import ConfigInvalid
from edgeferry.link.forecast import PROFILES, LinkRate
from edgeferry.storage.files import read_bounded

_CA_MAX_BYTES = 1 << 20


@click.command("rehearse")
@click.argument("model")
@click.option("--repo", required=True, envvar="EDGEFERRY_TO", help="The published repository: a folder or a URL.")
@click.option("--to", "version", default="", help="The version to update to. Default: the newest.")
@click.option("--from", "base", default="", help="The version that runs before, or 'none'. Default: the one before.")
@click.option(
    "--link",
    "profile",
    type=click.Choice(sorted(PROFILES)),
    default="certus-100",
    show_default=True,
    help="A link as it is sold.",
)
@click.option("--bps", type=click.IntRange(min=1000), help="Bits per second, instead of the link's.")
@click.option("--rtt", "rtt_s", type=click.FloatRange(0, 60), help="Round trip in seconds, instead of the link's.")
@click.option("--loss", type=click.FloatRange(0, 0.5), help="Share of packets that are lost, instead of the link's.")
@click.option("--cut", "cuts", multiple=True, metavar="AT,FOR", help="No link from second AT for FOR seconds; again.")
@click.option("--role", type=click.Choice(["both", "loader"]), default="both", show_default=True, help="The device's.")
@click.option("--anyway", is_flag=True, help="Also when it takes more than half an hour.")
@click.option("--sas", default="", envvar="EDGEFERRY_SAS", help="The query that opens the repository's URL.")
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM certificates to trust, for a server of one's own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@ends_with_exit_code
def rehearse_command(as_json: bool, **given: Any) -> None:
    """Plays an update of MODEL on this machine, in real time, over a link such as yours.

    With a real device on a temporary folder, asked for answers all the while. Nothing of yours is changed.
    """
    configure_logging(as_json=False, level="error")
    figures = asyncio.run(_run(Console(highlight=False, soft_wrap=True, stderr=True), given))
    if as_json:
        click.echo(msgspec.json.encode(figures).decode())
    else:
        _print_figures(Console(highlight=False, soft_wrap=True), figures)
    error = find_error(figures)
    sys.exit(OK if error is None else get_exit_code(error))


async def _run(console: Console, given: dict[str, Any]) -> Figures:
    with tempfile.TemporaryDirectory(prefix="edgeferry-copy-") as copy_to:
        ca_pem = read_bounded(given["ca_file"], _CA_MAX_BYTES) if given["ca_file"] else None
        source = Source(given["repo"], os.environ, given["sas"], ca_pem)
        plan = await read_plan(
            source, given["model"], version=given["version"], base=given["base"], copy_to=Path(copy_to)
        )
        link = _make_link(given)
        rehearsal = Rehearsal(plan, link, given["role"], tuple(_read_cut(text) for text in given["cuts"]))
        _print_forecast(console, given["profile"], rehearsal)
        if not given["anyway"]:
            require_short(rehearsal)
        columns = (BarColumn(30), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
        shown = TextColumn("{task.description}")
        with Bar(*columns, shown, console=console, disable=not console.is_terminal) as bar:
            return await rehearse(rehearsal, say=bar.console.print, progress=_make_progress(console, bar))


def _make_link(given: dict[str, Any]) -> LinkRate:
    told = {name: given[name] for name in ("bps", "rtt_s", "loss") if given[name] is not None}
    return replace(PROFILES[given["profile"]], **told)


def _read_cut(text: str) -> tuple[float, float]:
    at, _, lasts = text.partition(",")
    try:
        cut = float(at), float(lasts)
    except ValueError:
        cut = (-1.0, -1.0)
    if not (0 <= cut[0] <= 86_400 and 0 < cut[1] <= 86_400):
        raise ConfigInvalid(f"expected --cut AT,FOR in seconds, such as 10,30, found {text!r:.40}")
    return cut


def _make_progress(console: Console, bar: Bar) -> Progress:
    """A bar on a terminal, a line for each tenth and each state elsewhere."""
    task = bar.add_task("", total=1.0, visible=False)
    told: set[tuple[int, str]] = set()

    def show(share: float, words: str) -> None:
        bar.update(task, completed=share, description=words, visible=console.is_terminal)
        tenth = (int(share * 10), words.partition(",")[0])
        if not console.is_terminal and tenth not in told:
            told.add(tenth)
            console.print(f"  {share:4.0%}  {words}")

    return show


def _print_forecast(console: Console, profile: str, rehearsal: Rehearsal) -> None:
    plan, link, forecast = rehearsal.plan, rehearsal.link, rehearsal.forecast()
    before = f"{plan.base} -> " if plan.base else "a device with nothing -> "
    console.print(f"{plan.model} {before}{plan.version} over {_describe_link(profile, link)}")
    console.print(
        f"forecast: {plan.route}, {forecast.payload_bytes:,} bytes of payload, {forecast.wire_bytes:,} on the wire,"
        f" about {forecast.transfer_s + rehearsal.cut_s:,.0f} s"
    )


def _describe_link(profile: str, link: LinkRate) -> str:
    own = "" if link == PROFILES[profile] else ", changed"
    loss = f", {link.loss:.1%} lost: TCP makes {link.tcp_bps / 1000:,.0f} kbit/s of it" if link.loss else ""
    return f"{profile}{own}: {link.bps / 1000:,g} kbit/s, round trip {link.rtt_s:g} s{loss}"


def _print_figures(console: Console, figures: Figures) -> None:
    table = Table("", "forecast", "rehearsed", "off by")
    for column in table.columns[1:]:
        column.justify = "right"
    said = figures.forecast
    table.add_row("payload, bytes", *_compare(said.payload_bytes, figures.payload_bytes))
    table.add_row("on the wire, bytes", *_compare(said.wire_bytes, figures.wire_bytes))
    table.add_row("transfer, seconds", *_compare(said.transfer_s, figures.transfer_s))
    console.print(table)
    console.print(f"route: {figures.route}; {figures.stream_bytes:,} bytes above TCP, both ways")
    share = figures.goodput_bps / figures.tcp_bps
    console.print(f"goodput: {figures.goodput_bps / 1000:,.1f} kbit/s, {share:.0%} of what the link gives")
    console.print(f"requests meanwhile: {figures.requests} asked, {figures.failed} failed")
    console.print(f"{figures.model} {figures.version} is {figures.state} after {figures.active_s:,.1f} s")
    if figures.error is not None:
        console.print(f"  {figures.error['code']}: {figures.error['message']}\n  {figures.error['advice']}")


def _compare(said: float, found: float) -> tuple[str, str, str]:
    off = f"{(found - said) / said:+.1%}" if said else ""
    return f"{said:,}", f"{found:,}", off
