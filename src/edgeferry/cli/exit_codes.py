"""Error -> exit code, and the CLI edge: how a command ends when something went wrong.

What this file leaves to others: the commands, and what they print when all went well.

Rules:
- 0 ok, 1 our failure or the machine's, 2 usage or configuration, 3 link or the other end, 4 refused (trust, bad bundle,
  bad model), 5 nothing to do (only by commands where that matters).
- The nearest class in EXIT_CODES decides: a leaf before its branch. Every branch of the tree has a row.
- `cli_edge` is one of the three places where `except Exception` stands: the CLI edge.
- An error of ours is two lines on stderr, `error <code>: <message>` and the advice; a defect also shows its traceback.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar

import click

from edgeferry import errors
from edgeferry.errors import EdgeferryError, InvariantBroken

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
LINK: Final = 3
REFUSED: Final = 4
NOTHING_TO_DO: Final = 5

EXIT_CODES: Final[dict[type[EdgeferryError], int]] = {
    errors.ConfigError: USAGE,
    errors.OverBudget: REFUSED,
    errors.LinkError: LINK,
    errors.AccessError: LINK,
    errors.BundleError: REFUSED,
    errors.DeltaError: REFUSED,
    errors.StorageError: FAILED,
    errors.StoreRefused: LINK,
    errors.ModelError: REFUSED,
    errors.RequestError: USAGE,
    errors.ModelNotReady: FAILED,
    errors.QueueFull: FAILED,
    errors.RequestTimeout: FAILED,
    errors.WorkerLost: FAILED,
    errors.Conflict: FAILED,
    errors.ProtocolError: LINK,
    errors.InternalError: FAILED,
}

P = ParamSpec("P")
R = TypeVar("R")


def get_exit_code(error: type[EdgeferryError]) -> int:
    """The exit code of an error class: its own row, else that of its nearest ancestor."""
    return next(EXIT_CODES[kind] for kind in error.__mro__ if kind in EXIT_CODES)


def ends_with_exit_code(command: Callable[P, R]) -> Callable[P, R]:
    """Decorates a command (below `@click.command`): errors become two lines on stderr and the right exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with cli_edge():
            return command(*args, **kwargs)

    return run


def run_cli(command: click.Command) -> None:
    """Runs the whole command line as the `edgeferry` script does; never returns normally."""
    with cli_edge():
        command()


@contextmanager
def cli_edge() -> Iterator[None]:
    """The CLI edge as a context: leaves `sys.exit` and click's own ways out alone, turns every error into an exit code.

    Raises:
        SystemExit: with the code of the error that came up.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001 - the CLI edge: the one place where any error becomes an exit code
        known = _find_known(error)
        if known is None:
            traceback.print_exception(error)
            known = InvariantBroken(f"unexpected {type(error).__name__}")
        print_error(known)
        sys.exit(get_exit_code(type(known)))


def print_error(error: EdgeferryError) -> None:
    """Two lines on stderr: `error <code>: <message>` and the advice."""
    click.echo(f"error {error.code}: {error.message}", err=True)
    click.echo(f"  {error.advice}", err=True)


def _find_known(error: BaseException) -> EdgeferryError | None:
    """The error of ours that `error` is, or that a task group wrapped into it."""
    if isinstance(error, EdgeferryError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [_find_known(inner) for inner in error.exceptions]
        return found[0] if found and all(found) else None
    return None
