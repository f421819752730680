"""The `edgeferry` command: every verb, and where it lives.

What this file leaves to others: the commands themselves; what an error means for the exit code (`cli/exit_codes.py`).

Rules:
- A verb's module is imported when the verb is used, never before: a device needs neither the operator's libraries nor
  their import time.
- A missing library is an error with advice that names the extra to install.
"""

from __future__ import annotations

import importlib
from typing import cast

import click

from edgeferry import __version__
from edgeferry.errors import ToolMissing

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("edgeferry.cli.demo_command:demo", "all"),
    "repo": ("edgeferry.cli.operator_commands:repo", "operator"),
    "publish": ("edgeferry.cli.operator_commands:publish", "operator"),
    "inspect": ("edgeferry.cli.operator_commands:inspect", "operator"),
    "patch": ("edgeferry.cli.patch_commands:patch_group", "operator"),
    "forecast": ("edgeferry.cli.deploy_commands:forecast", "operator"),
    "deploy": ("edgeferry.cli.deploy_commands:deploy", "operator"),
    "rehearse": ("edgeferry.cli.rehearse_command:rehearse_command", "all"),
    "deployment": ("edgeferry.cli.deployment_command:deployment", "operator"),
    "hub": ("edgeferry.cli.hub_commands:hub_group", "hub"),
    "device": ("edgeferry.cli.device_commands:device_group", "device"),
    "serve": ("edgeferry.cli.serve_commands:serve", "device"),
    "predict": ("edgeferry.cli.serve_commands:predict", "device"),
}
"""Verb -> (where it lives, the extra that brings its libraries)."""


class VerbGroup(click.Group):
    """A click group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the story."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the verb's module; raises ToolMissing when one of its libraries is not installed."""
        if cmd_name not in VERBS:
            return None
        place, extra = VERBS[cmd_name]
        module, _, attribute = place.partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("edgeferry"):
                raise
            raise ToolMissing(
                f"'{cmd_name}' needs the library {error.name}: pip install 'edgeferry[{extra}]'"
            ) from error
        return cast("click.Command", command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the verbs for `--help`, also those whose libraries are not installed here."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, self._get_short_help(ctx, verb)) for verb in VERBS])

    def _get_short_help(self, ctx: click.Context, verb: str) -> str:
        try:
            command = self.get_command(ctx, verb)
        except ToolMissing:
            return f"(needs pip install 'edgeferry[{VERBS[verb][1]}]')"
        return command.get_short_help_str(limit=80) if command else ""


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeferry")
def cli() -> None:
    """Ferries AI models to edge devices over thin links and serves them there without a pause."""


def main() -> None:
    """Entry point of the `edgeferry` script: runs the command and exits with the code of the table."""
    from edgeferry.cli.exit_codes import run_cli

    run_cli(cli)


if __name__ == "__main__":
    main()
