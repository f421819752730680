"""`publish --slim` as a person types it: table, plot, question, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.publish.desk import LABELS, SPEC
from tests.publish.test_slim import NEW, NOISE, OLD, PICTURES

from edgeferry.cli.main import cli
from edgeferry.cli.slim_option import PLOT_COLUMNS, PLOT_ROWS, draw_plot
from edgeferry.model.digest import Digest
from edgeferry.publish.slim import Level

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`publish` of a model, with the operator's answer to whatever is asked."""
    (tmp_path / "labels.txt").write_bytes(LABELS)
    (tmp_path / "spec.toml").write_text(SPEC)
    (tmp_path / "gauge.onnx").write_bytes(NEW)
    (tmp_path / "pictures").mkdir()
    for name, data in NOISE.items():
        (tmp_path / "pictures" / name).write_bytes(data)
    environment = {"EDGEFERRY_KEYS": str(tmp_path / "keys"), "EDGEFERRY_TO": str(tmp_path / "site")}
    CliRunner().invoke(cli, ["repo", "init"], env=environment)

    def call(*more: str | Path, model: Path = tmp_path / "gauge.onnx", version: str = "2", says: str = "") -> Result:
        words: list[str | Path] = ["publish", model, "--name", "gauge", "--version", version]
        words += ["--labels", tmp_path / "labels.txt", "--spec", tmp_path / "spec.toml", *more]
        return CliRunner().invoke(cli, [str(word) for word in words], env=environment, input=says)

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "gauge.onnx").write_bytes(OLD)
    assert call(model=tmp_path / "old" / "gauge.onnx", version="1").exit_code == 0
    return call


def slim(tmp_path: Path, *more: str, max_loss: str = "2") -> tuple[str | Path, ...]:
    return "--slim", "--max-loss", max_loss, "--eval", tmp_path / "pictures", *more


def list_published(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "site" / "targets" / "gauge").iterdir())


def test_bytes_against_loss_are_shown_and_a_yes_publishes(run: Run, tmp_path: Path) -> None:
    result = run(*slim(tmp_path), says="y\n")
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    [head] = [at for at, line in enumerate(lines) if "against loss of disagreement" in line]
    assert f"a patch from 1 against loss of disagreement, in points ({PICTURES} pictures" in lines[head]
    assert lines[head + 2].split()[1:] == ["100.0", "%", "0.00", "lossless"]
    assert sum(line.endswith("taken") for line in lines) == 1
    assert any("@" in line for line in lines)
    assert "Publish the version that loses" in result.stderr
    assert "slim: " in result.stdout
    assert str(Digest.of(NEW)) in result.stdout
    assert list_published(tmp_path) == ["1", "2"]


def test_the_same_command_again_asks_nothing(run: Run, tmp_path: Path) -> None:
    assert run(*slim(tmp_path, "--yes")).exit_code == 0
    again = run(*slim(tmp_path))
    assert again.exit_code == 0, again.output
    assert "is published already; nothing to do" in again.stdout
    assert "asking gauge" not in again.stderr
    assert "Publish" not in again.stderr


@pytest.mark.parametrize("says", ["n\n", "\n", ""])
def test_without_a_yes_nothing_is_published(run: Run, tmp_path: Path, says: str) -> None:
    result = run(*slim(tmp_path), says=says)
    assert result.exit_code == 1
    assert "Aborted" in result.stderr
    assert list_published(tmp_path) == ["1"]


def test_json_wants_the_yes_beforehand(run: Run, tmp_path: Path) -> None:
    refused = run(*slim(tmp_path, "--json"), says="y\n")
    assert refused.exit_code == 2
    assert "nobody can be asked" in refused.stderr
    assert "asking gauge" not in refused.stderr
    assert list_published(tmp_path) == ["1"]
    result = run(*slim(tmp_path, "--json", "--yes"))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["slim"]["of"] == str(Digest.of(NEW))
    assert report["slim"]["loss"] <= report["slim"]["max_loss"] == 2
    assert "Publish the version" not in result.stderr


def test_a_plain_publish_is_as_it_was(run: Run) -> None:
    result = run("--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["slim"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-loss", "1"), "expected --slim with --max-loss, --eval or --yes"),
        (("--yes",), "expected --slim with --max-loss, --eval or --yes"),
        (("--slim", "--max-loss", "1"), "expected --max-loss and --eval with --slim"),
        (("--slim", "--eval", "."), "expected --max-loss and --eval with --slim"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run: Run, words: tuple[str, ...], said: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_too_few_pictures_are_refused_with_how_many_it_takes(run: Run, tmp_path: Path) -> None:
    result = run(*slim(tmp_path, "--yes", max_loss="0.1"))
    assert result.exit_code == 2
    assert "500 are needed" in result.stderr
    assert list_published(tmp_path) == ["1"]


def test_where_nothing_is_gained_the_version_as_it_is_may_still_be_published(run: Run, tmp_path: Path) -> None:
    result = run(*slim(tmp_path), model=tmp_path / "old" / "gauge.onnx", says="n\n")
    assert "Nothing shorter loses as little. Publish the version as it is?" in result.stderr
    assert list_published(tmp_path) == ["1"]


def test_the_plot_puts_bytes_across_and_loss_upwards() -> None:
    levels = [Level(1000, 0.0, 0.0), Level(100, 0.5, 2.0), Level(10, 9.0, 1.0)]
    lines = list(draw_plot(levels, 1, max_loss=0.5))
    assert lines[0].startswith("   >1.00 |o")
    assert lines[PLOT_ROWS // 2].startswith("    0.50 |---")
    assert lines[PLOT_ROWS // 2].index("@") == pytest.approx(10 + PLOT_COLUMNS / 2, abs=1)
    assert lines[PLOT_ROWS].rstrip().endswith("o")
    assert len(lines[PLOT_ROWS]) == 10 + PLOT_COLUMNS
    assert lines[-1].split() == ["10", "1,000", "bytes"]
    assert list(draw_plot([Level(5, 0.0, 0.0)], 0, max_loss=1.0))
