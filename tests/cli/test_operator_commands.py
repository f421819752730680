"""The operator's commands as a person types them."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from tests.publish.desk import LABELS, SPEC, make_model, make_picture

from edgeferry.cli import publish_progress
from edgeferry.cli.deploy_commands import parse_life
from edgeferry.cli.main import cli
from edgeferry.errors import ConfigInvalid
from edgeferry.model.digest import Digest

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command with the keys of this test; the store is named where it is wanted."""

    def call(*words: str | Path) -> Result:
        environment = {"EDGEFERRY_KEYS": str(tmp_path / "keys"), "EDGEFERRY_TO": str(tmp_path / "site")}
        return CliRunner().invoke(cli, [str(word) for word in words], env=environment)

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "gauge.onnx").write_bytes(make_model())
    (tmp_path / "labels.txt").write_bytes(LABELS)
    (tmp_path / "spec.toml").write_text(SPEC)
    return tmp_path / "gauge.onnx"


def publish(run: Run, model: Path, *more: str | Path, version: str = "1.0.0") -> Result:
    words = ["--labels", model.parent / "labels.txt", "--spec", model.parent / "spec.toml"]
    return run("publish", model, "--name", "gauge", "--version", version, *words, *more)


def read_json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_repository_is_made_and_its_pin_told(run: Run, tmp_path: Path) -> None:
    facts = read_json(run("repo", "init", "--json"))
    root = (tmp_path / "site" / "metadata" / "1.root.json").read_bytes()
    assert facts["pin"] == str(Digest.of(root))
    assert Path(facts["root"]).read_bytes() == root
    assert stat.S_IMODE((tmp_path / "keys" / "root.pem").stat().st_mode) == 0o600
    assert run("repo", "init").exit_code == 1


def test_a_version_is_published_and_the_report_is_json(run: Run, model: Path, tmp_path: Path) -> None:
    run("repo", "init")
    report = read_json(publish(run, model, "--json"))
    assert (report["model"], report["version"], report["unchanged"]) == ("gauge", "1.0.0", False)
    assert (tmp_path / "site" / report["classic"]["path"]).stat().st_size == report["classic"]["size"]
    again = publish(run, model)
    assert again.exit_code == 0
    assert "nothing to do" in again.stdout


def test_an_upload_is_told_in_lines_where_nobody_looks_at_a_terminal(run: Run, model: Path) -> None:
    run("repo", "init")
    result = publish(run, model, "--json")
    lines = [line for line in result.stderr.splitlines() if line.startswith("uploaded ")]
    counts = [[int(word.replace(",", "")) for word in line.split() if word[0].isdigit()] for line in lines]
    assert counts[0][0] == 0
    assert counts[-1][0] == counts[-1][1] > 10_000
    assert len(lines) <= 11
    assert "\x1b" not in result.stderr


def test_an_upload_is_a_bar_with_bytes_on_a_terminal(run: Run, model: Path, tmp_path: Path) -> None:
    run("repo", "init")
    words = ["publish", model, "--name", "gauge", "--version", "1", "--labels", model.parent / "labels.txt", "--json"]
    words += ["--spec", model.parent / "spec.toml", "--to", tmp_path / "site", "--keys", tmp_path / "keys"]
    terminal, its_end = os.openpty()
    command = [sys.executable, "-m", "edgeferry.cli.main", *map(str, words)]
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=its_end, env=environment) as publishing:
        os.close(its_end)
        shown = b"".join(iter(lambda: read_terminal(terminal), b"")).decode()
        printed = publishing.communicate(timeout=60)[0]
    os.close(terminal)
    assert json.loads(printed)["version"] == "1"
    assert "\x1b" in shown
    assert re.search(r"uploading .*\d kB.*0:00:00", shown)
    assert "coding gauge.onnx" in shown


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says EIO when the other end is closed
        return b""


def test_patches_are_told_with_the_bytes_that_devices_fetch(run: Run, model: Path) -> None:
    run("repo", "init")
    publish(run, model)
    for number, version in enumerate(("1.1.0", "1.2.0"), start=1):
        model.write_bytes(make_model(changed=200 * number))
        result = publish(run, model, version=version)
        assert result.exit_code == 0, result.output
    assert re.search(r"patch from 1\.1\.0 +[\d,]+ bytes for gauge\.onnx \(.+, \d+ MB to apply\)", result.stdout)
    assert re.search(r"a device with 1\.0\.0 +[\d,]+ bytes in [12] downloads", result.stdout)
    assert "making a patch of gauge.onnx from 1.1.0" in result.stderr
    report = read_json(publish(run, model, "--json", version="1.2.0"))
    assert {update["base"] for update in report["updates"]} == {"1.0.0", "1.1.0"}


def test_bases_and_a_budget_are_taken_and_an_unknown_base_is_usage(run: Run, model: Path) -> None:
    run("repo", "init")
    publish(run, model)
    model.write_bytes(make_model(changed=100))
    wrong = publish(run, model, "--base", "0.9", version="1.1.0")
    assert wrong.exit_code == 2
    assert "1.0.0" in wrong.stderr
    assert read_json(publish(run, model, "--patch-budget", "0", "--json", version="1.1.0"))["patches"] == []
    model.write_bytes(make_model(changed=200))
    words = ["--base", "1.0.0", "--base", "1.1.0", "--json"]
    report = read_json(publish(run, model, *words, version="1.2.0"))
    assert [patch["base"] for patch in report["patches"]][:1] == ["1.0.0"]
    assert set(report["patches"][0]) == {"base", "path", "size", "way", "memory"}


def test_long_work_is_told_every_few_seconds_where_nobody_looks_at_a_terminal() -> None:
    console, clock = Console(file=io.StringIO(), force_terminal=False), iter(range(0, 1000, 2))
    tell = publish_progress._make_slow_lines(console, lambda: float(next(clock)))
    for done in range(10):
        tell(done, 10)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert 1 < len(lines) < 6
    assert lines[0].startswith("made ")


def test_golden_folders_are_read(run: Run, model: Path, tmp_path: Path) -> None:
    run("repo", "init")
    golden = tmp_path / "golden"
    golden.mkdir()
    (golden / "one.jpg").write_bytes(make_picture())
    (golden / "one.json").write_text('{"label": "low"}')
    assert read_json(publish(run, model, "--golden", golden, "--json"))["golden"] == 1
    inherited = read_json(publish(run, model, "--json", version="1.1.0"))
    assert (inherited["golden"], inherited["golden_inherited"]) == (1, True)


def test_a_model_that_does_not_tell_enough_is_usage_and_says_what_to_add(run: Run, model: Path) -> None:
    run("repo", "init")
    result = run("publish", model, "--name", "gauge", "--version", "1")
    assert result.exit_code == 2
    assert "spec_incomplete" in result.stderr
    assert "input.mean" in result.stderr
    assert "--spec" in result.stderr


def test_without_a_repository_the_way_to_make_one_is_said(run: Run, model: Path) -> None:
    result = publish(run, model)
    assert result.exit_code == 2
    assert "repo init" in result.stderr


def test_keys_are_listed_replaced_and_refreshed(run: Run, model: Path) -> None:
    run("repo", "init")
    publish(run, model)
    rows = {row["role"]: row for row in read_json(run("repo", "key", "--json"))}
    assert set(rows) == {"root", "targets", "snapshot", "timestamp", "gauge"}
    [new] = read_json(run("repo", "key", "gauge", "--rotate", "--json"))
    assert new["keys"] != rows["gauge"]["keys"]
    refreshed = {row["role"]: row for row in read_json(run("repo", "refresh", "--json"))}
    assert refreshed["timestamp"]["version"] > rows["timestamp"]["version"]
    assert run("repo", "key", "--rotate").exit_code == 2
    assert run("repo", "key", "nobody", "--rotate").exit_code == 2


def test_inspect_shows_what_is_known_and_what_is_missing(run: Run, model: Path) -> None:
    found = read_json(run("inspect", model, "--json"))
    assert found["facts"]["inputs"][0]["shape"] == [1, 3, 32, 32]
    assert "input.mean" in found["missing"]
    text = run("inspect", model).stdout
    assert "missing input.mean" in text
    assert "pixels" in text


def test_inspect_refuses_what_is_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    assert run("inspect", tmp_path / "x.onnx").exit_code == 4


@pytest.mark.parametrize("words", [[], ["--model", "m"], ["--model", "m", "--version", "1"]])
def test_deploy_says_which_words_it_lacks(run: Run, words: list[str]) -> None:
    result = run(
        "deploy", "--device", "d", "--hub", "HostName=h;SharedAccessKeyName=service;SharedAccessKey=a2V5", *words
    )
    assert result.exit_code == 2
    assert "--repo" in result.stderr
    assert "a2V5" not in result.output


def test_a_hub_that_is_not_there_is_the_link(run: Run, model: Path, tmp_path: Path) -> None:
    run("repo", "init")
    publish(run, model)
    secret = tmp_path / "hub.txt"
    secret.write_text("HostName=127.0.0.1:9;SharedAccessKeyName=service;SharedAccessKey=a2V5\n")
    words = ["--model", "gauge", "--version", "1.0.0", "--device", "d", "--repo", "https://h/files"]
    result = run("deploy", *words, "--site", tmp_path / "site", "--hub", secret)
    assert result.exit_code == 3
    assert "link_down" in result.stderr
    assert "a2V5" not in result.output


def test_lives_of_a_sas_are_read() -> None:
    assert (parse_life("90d"), parse_life("12h"), parse_life("30m")) == (7_776_000, 43_200, 1_800)
    for text in ("", "90", "d", "-1d", "1y", "0d", "9999999d"):
        with pytest.raises(ConfigInvalid):
            parse_life(text)
