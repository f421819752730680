"""`edgeferry forecast` and `deploy`: what a deployment will take, and telling devices to run it.

What this file leaves to others: the table (`forecast_view.py`); the wiring is `app/operator.py`'s.

Rules:
- Both take `--json`: results on stdout. What a budget refuses is told by the forecast itself, then by the error.
- Connection strings and SAS come from an option, a file or the environment, and are never printed.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from edgeferry.app import operator
from edgeferry.app.operator import Check, DeployTerms
from edgeferry.cli.exit_codes import NOTHING_TO_DO, ends_with_exit_code
from edgeferry.cli.forecast_view import print_forecast
from edgeferry.errors import ConfigInvalid, EdgeferryError
from edgeferry.link.forecast import PROFILES
from edgeferry.publish.deploy import Outcome
from edgeferry.publish.forecast import FleetForecast, Ways
from edgeferry.publish.spending import read_spending, require_within

Command = TypeVar("Command", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _add(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator that adds all of them, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_place_options = _add(
    click.option("--sas", default="", envvar="EDGEFERRY_SAS", help="A SAS to use instead of one made here."),
    click.option(
        "--hub",
        required=True,
        envvar="EDGEFERRY_HUB",
        help="Service connection string of the hub, or a file that holds it (or EDGEFERRY_HUB).",
    ),
    click.option("--repo", default="", envvar="EDGEFERRY_REPO", help="URL of the repository as devices reach it."),
    click.option("--site", default="", help="The repository as it is reached from here, where that differs."),
    click.option("--ca-file", type=_FILE, help="PEM certificates to trust, for a hub or server of one's own."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)
_link_options = _add(
    click.option("--link", "profile", type=click.Choice(sorted(PROFILES)), help="A link by its name."),
    click.option("--bps", type=click.IntRange(0, 1 << 40), default=0, help="Its rate in bits per second."),
    click.option("--rtt", "rtt_s", type=click.FloatRange(0, 60), default=0.0, help="Its round trip in seconds."),
    click.option("--interface", default="", help="The interface that devices use, where the policy tells them apart."),
)
"""For devices whose twins do not tell; what a twin tells comes first."""


# --- forecast ---------------------------------------------------------------------------------------------------------
@click.command("forecast")
@click.option("--model", required=True, help="Name of the model.")
@click.option("--version", required=True, help="The version to run.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="D[/MODULE]",
    help="May be given again. Default: all that report some version of the model.",
)
@_link_options
@_place_options
@ends_with_exit_code
def forecast(profile: str | None, bps: int, rtt_s: float, interface: str, as_json: bool, **given: Any) -> None:
    """Tells what a deployment will take: bytes, minutes and money by device and in all. Nothing is sent.

    Ends with 5 when no device needs anything.
    """
    terms = _make_terms(given)
    found = asyncio.run(operator.forecast_version(terms, Ways(profile or "", bps, rtt_s, interface)))
    _print_found(found, as_json=as_json)
    refused = _find_refused(found)
    if refused is not None:
        raise refused
    if not found.updates:
        raise SystemExit(NOTHING_TO_DO)


def _find_refused(found: FleetForecast) -> EdgeferryError | None:
    """The first device that could not be asked, as an error: all others have been told of."""
    errors = [f"{one.device}: {one.error['message']}" for one in found.devices if one.error]
    return ConfigInvalid(errors[0]) if errors else None


def _print_found(found: FleetForecast, *, as_json: bool) -> None:
    if as_json:
        _print_json(found)
    else:
        print_forecast(found)


# --- deploy -----------------------------------------------------------------------------------------------------------
@click.command("deploy")
@click.option("--model", default="", help="Name of the model.")
@click.option("--version", default="", help="The version to run.")
@click.option("--device", "devices", multiple=True, required=True, metavar="D[/MODULE]", help="May be given again.")
@click.option("--classic", is_flag=True, help="Set FileName, DownloadUrl and ContentMD5 instead of our section.")
@click.option("--again", is_flag=True, help="Give a version that was refused or rolled back another try.")
@click.option("--renew-sas", is_flag=True, help="Renew the SAS in the twins and change nothing else.")
@click.option("--sas-expires", default="90d", show_default=True, help="How long a new SAS lasts: 90d, 12h, 30m.")
@click.option(
    "--budget",
    default="",
    metavar="BYTES|MONEY",
    help="What all devices together may take, like 5MB or '3 EUR'; more is refused, and nobody is told anything.",
)
@click.option("--anyway", is_flag=True, help="Deploy, whatever the budget says of the forecast.")
@_place_options
@ends_with_exit_code
def deploy(renew_sas: bool, budget: str, anyway: bool, as_json: bool, **given: Any) -> None:
    """Tells devices, through the hub, which version to run."""
    given["sas_life_s"] = parse_life(given.pop("sas_expires"))
    check = _make_check(budget, anyway=anyway, as_json=as_json) if budget else None
    if check is not None and (renew_sas or given["classic"]):
        raise ConfigInvalid("expected --budget with a version of our own section, found --classic or --renew-sas")
    terms = _make_terms(given, needs_version=not renew_sas)
    run = operator.renew_sas(terms) if renew_sas else operator.deploy_version(terms, check=check)
    _print_outcome(asyncio.run(run), as_json=as_json)


def _make_check(budget: str, *, anyway: bool, as_json: bool) -> Check:
    """Shows the forecast and refuses what is over the budget; JSON for results alone, a table for people."""
    spending = read_spending(budget)

    def check(found: FleetForecast) -> None:
        if not as_json:
            print_forecast(found)
        if anyway:
            return
        try:
            require_within(spending, found)
        except EdgeferryError:
            if as_json:
                _print_json(found)
            raise

    return check


def _make_terms(given: dict[str, Any], *, needs_version: bool = True) -> DeployTerms:
    given["hub"] = operator.read_hub_text(given["hub"])
    terms = DeployTerms(**given, environ=os.environ)
    if needs_version and not (terms.model and terms.version and terms.repo):
        raise ConfigInvalid("expected --model, --version and --repo (or --renew-sas)")
    return terms


def parse_life(text: str) -> int:
    """`90d` -> seconds; raises ConfigInvalid."""
    match = re.fullmatch(r"([1-9]\d{0,5})([smhdw])", text.strip())
    if match is None:
        raise ConfigInvalid(f"expected a time like 90d, 12h or 30m, found {text!r:.40}")
    return int(match[1]) * _UNITS_S[match[2]]


def _print_outcome(outcome: Outcome, *, as_json: bool) -> None:
    """Prints every device, then fails with the first error: all others have been told."""
    if as_json:
        _print_json(outcome.devices)
    else:
        for report in outcome.devices:
            state = report.error["message"] if report.error else "told" if report.changed else "asked for it already"
            click.echo(f"{report.device}  {state}")
    if outcome.error is not None:
        raise outcome.error


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.encode(value).decode())
