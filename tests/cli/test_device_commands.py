"""`edgeferry device ...` on a folder: what it remembers, what it tells when nothing runs, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.storage.storage_samples import add_version, list_tree

from edgeferry.app.device_folder import find_config_file
from edgeferry.cli.device_commands import device_group
from edgeferry.config import read_device_config
from edgeferry.storage.files import open_folder_lock
from edgeferry.storage.repository import Repository

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


def make_folder(storage: Path) -> Repository:
    """1.1.0 serves, 1.0.0 did before; 0.9.0 did once, 1.2.0 never."""
    repository = Repository(storage)
    repository.prepare()
    names = ("0.9.0", "1.0.0", "1.1.0", "1.2.0")
    stored = {name: add_version(repository, name, {"model.onnx": name.encode() * 100}) for name in names}
    for name in ("0.9.0", "1.0.0", "1.1.0"):
        repository.write_ref("detector", "active", stored[name])
    repository.write_ref("detector", "previous", stored["1.0.0"])
    return repository


def list_stored(storage: Path) -> dict[str, dict[str, object]]:
    status = json.loads(run("status", "--storage", str(storage), "--json").output)
    return {one["version"]: one for one in status["versions"]}


def test_status_lists_what_lies_on_the_disk_with_sizes_and_reasons(tmp_path: Path) -> None:
    repository = make_folder(tmp_path)
    repository.refs.pin("detector", "0.9.0")
    found = list_stored(tmp_path)
    marks = {name: [mark for mark in ("active", "previous", "pinned") if one[mark]] for name, one in found.items()}
    assert marks == {"0.9.0": ["pinned"], "1.0.0": ["previous"], "1.1.0": ["active"], "1.2.0": []}
    assert {one["size_bytes"] for one in found.values()} == {500}
    assert "detector@0.9.0: 500 bytes, pinned" in run("status", "--storage", str(tmp_path)).output


def test_gc_takes_all_that_is_neither_active_previous_nor_pinned_and_a_pin_outlives_it(tmp_path: Path) -> None:
    make_folder(tmp_path)
    assert run("pin", "detector@0.9.0", "--storage", str(tmp_path)).exit_code == 0
    done = json.loads(run("gc", "--storage", str(tmp_path), "--json").output)
    assert done == {"ok": True, "versions": ["detector@1.2.0"], "freed_bytes": 500}
    assert sorted(list_stored(tmp_path)) == ["0.9.0", "1.0.0", "1.1.0"]
    assert run("pin", "detector@0.9.0", "--remove", "--storage", str(tmp_path)).exit_code == 0
    assert "500 bytes freed; gone: detector@0.9.0" in run("gc", "--storage", str(tmp_path)).output
    assert sorted(list_stored(tmp_path)) == ["1.0.0", "1.1.0"]


@pytest.mark.parametrize("name", ["detector@9.9.9", "other@1.0.0", "detector", "../x@1.0.0", "detector@../x"])
def test_what_is_not_stored_cannot_be_pinned(tmp_path: Path, name: str) -> None:
    repository = make_folder(tmp_path)
    done = run("pin", name, "--storage", str(tmp_path))
    assert done.exit_code == 2
    assert repository.refs.list_pins("detector") == frozenset()


@pytest.mark.parametrize("words", [("run", "--port", "0"), ("gc",), ("pin", "detector@1.0.0")])
def test_a_second_process_on_the_same_folder_refuses_and_changes_nothing(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    repository = make_folder(tmp_path)
    before = list_tree(tmp_path)
    with open_folder_lock(repository.root):
        done = run(*words, "--storage", str(tmp_path))
    assert (done.exit_code, "storage_busy" in done.output) == (1, True)
    assert list_tree(tmp_path) == sorted([*before, "edgeferry/lock"])
