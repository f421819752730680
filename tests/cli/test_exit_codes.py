"""The CLI edge: every error has an exit code, and people read its code and advice."""

from __future__ import annotations

import asyncio

import click
import pytest
from click.testing import CliRunner, Result

from edgeferry import errors
from edgeferry.cli import exit_codes


def _run(error: BaseException) -> Result:
    @click.command()
    @exit_codes.ends_with_exit_code
    def command() -> None:
        raise error

    return CliRunner().invoke(command)


def test_every_branch_of_the_tree_has_a_row() -> None:
    assert set(errors.EdgeferryError.__subclasses__()) <= set(exit_codes.EXIT_CODES)


@pytest.mark.parametrize("leaf", list(errors.find_leaves()), ids=lambda leaf: leaf.__name__)
def test_every_leaf_ends_a_command_with_its_code_and_advice(leaf: type[errors.EdgeferryError]) -> None:
    result = _run(leaf("expected this, found that"))
    assert result.exit_code in {1, 2, 3, 4}
    assert result.exit_code == exit_codes.get_exit_code(leaf)
    assert result.stderr == f"error {leaf.code}: expected this, found that\n  {leaf.advice}\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("leaf", "code"),
    [
        (errors.ConfigInvalid, 2),
        (errors.LinkDown, 3),
        (errors.AccessDenied, 3),
        (errors.MetadataUntrusted, 4),
        (errors.GoldenMismatch, 4),
        (errors.NoSpace, 1),
        (errors.StoreRefused, 3),
        (errors.PictureUnreadable, 2),
        (errors.WorkerLost, 1),
        (errors.WorkerStartFailed, 1),
    ],
)
def test_exit_codes_follow_who_must_act(leaf: type[errors.EdgeferryError], code: int) -> None:
    assert exit_codes.get_exit_code(leaf) == code


def test_an_unexpected_error_is_a_defect_with_its_traceback() -> None:
    result = _run(ZeroDivisionError("secret detail"))
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert "error invariant_broken: unexpected ZeroDivisionError" in result.stderr


def test_an_error_wrapped_by_a_task_group_is_found() -> None:
    async def fail() -> None:
        raise errors.LinkDown("no route")

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    with pytest.raises(SystemExit) as exit_, exit_codes.cli_edge():
        asyncio.run(run())
    assert exit_.value.code == 3


def test_a_group_that_also_holds_a_defect_is_a_defect() -> None:
    result = _run(ExceptionGroup("both", [errors.LinkDown("no route"), KeyError("x")]))
    assert result.exit_code == 1
    assert "KeyError" in result.stderr


def test_usage_errors_and_plain_exits_pass_through() -> None:
    assert _run(click.UsageError("no such thing")).exit_code == 2
    assert _run(SystemExit(5)).exit_code == 5
    assert _run(KeyboardInterrupt()).exit_code == 1


def test_the_whole_command_line_ends_through_the_same_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def command() -> None:
        raise errors.NoSpace("expected 10 bytes free, found 3")

    monkeypatch.setattr("sys.argv", ["edgeferry"])
    with pytest.raises(SystemExit) as exit_:
        exit_codes.run_cli(command)
    assert exit_.value.code == 1
