"""`edgeferry device ...` on a folder: what it remembers, what it tells when nothing runs, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeferry.app.device_folder import find_config_file
from edgeferry.cli.device_commands import device_group
from edgeferry.config import read_device_config

SECRET = "HostName=h;DeviceId=d;ModuleId=m;SharedAccessKey=c2VjcmV0"


def run(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(device_group, list(words), env=environment)


def make_root(folder: Path) -> Path:
    path = folder / "root.json"
    path.write_text(json.dumps({"signed": {"_type": "root"}, "signatures": []}))
    return path


def test_init_remembers_what_it_was_told_and_pins_a_copy_of_the_root(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    storage = tmp_path / "storage"
    words = ["--storage", str(storage), "--root", str(root), "--connection-string", SECRET, "--port", "9999"]
    done = run("init", *words, "--allow-networks", "10.0.0.0/8, 192.168.1.0/24", "--no-accept-classic")
    assert done.exit_code == 0, done.output
    assert "a root of trust is pinned" in done.output
    root.unlink()
    assert (storage / "edgeferry" / "root.json").is_file()
    path = find_config_file(str(storage), None)
    assert path is not None
    config = read_device_config(path.read_bytes(), {})
    assert (config.connection_string, config.port, config.accept_classic) == (SECRET, 9999, False)
    assert config.allow_networks == ("10.0.0.0/8", "192.168.1.0/24")
    assert config.root == ""


def test_init_with_a_digest_keeps_the_digest(tmp_path: Path) -> None:
    digest = "sha256:" + "a" * 64
    assert run("init", "--storage", str(tmp_path), "--root", digest, "--json").exit_code == 0
    path = find_config_file(str(tmp_path), "both")
    assert path is not None
    assert read_device_config(path.read_bytes(), {}).root == digest


@pytest.mark.parametrize("root", ["sha256:short", "/nowhere/root.json"])
def test_init_refuses_what_is_no_root(tmp_path: Path, root: str) -> None:
    done = run("init", "--storage", str(tmp_path / "s"), "--root", root)
    assert done.exit_code != 0
    assert "error" in done.output


def test_an_inferencer_has_a_folder_of_its_own_beside_the_loaders(tmp_path: Path) -> None:
    assert run("init", "--storage", str(tmp_path), "--role", "inferencer").exit_code == 0
    path = find_config_file(str(tmp_path), None)
    assert path == tmp_path / "edgeferry-inferencer" / "edgeferry" / "device.toml"
    assert run("init", "--storage", str(tmp_path), "--role", "loader").exit_code == 0
    assert find_config_file(str(tmp_path), "inferencer") == path
    assert find_config_file(str(tmp_path), "loader") == tmp_path / "edgeferry" / "device.toml"


def test_status_reads_the_folder_when_nothing_runs(tmp_path: Path) -> None:
    run("init", "--storage", str(tmp_path))
    done = run("status", "--storage", str(tmp_path), "--json")
    assert done.exit_code == 0
    status = json.loads(done.output)
    assert (status["running"], status["models"], status["role"]) == (False, [], "both")
    assert "not running" in run("status", "--storage", str(tmp_path)).output


def test_a_rollback_without_an_agent_is_a_link_error(tmp_path: Path) -> None:
    run("init", "--storage", str(tmp_path))
    done = run("rollback", "detector", "--storage", str(tmp_path))
    assert done.exit_code == 3
    assert "no agent runs" in done.output


def test_run_refuses_settings_that_cannot_work(tmp_path: Path) -> None:
    done = run("run", "--storage", str(tmp_path), "--connection-string", "rubbish")
    assert done.exit_code == 2
    assert "rubbish" not in done.output
