"""`edgeferry patch` as a person types it: files in, whole and verified files out, or nothing at all."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from edgeferry.cli.main import cli
from edgeferry.cli.plain_text import clean_name
from edgeferry.delta import codecs
from edgeferry.delta.container import (
    MAGIC,
    MEMORY_UNIT,
    VERSION,
    Container,
    Header,
    Piece,
    Streams,
    make_container,
)
from edgeferry.delta.kinds import KINDS
from edgeferry.delta.make import make_full
from edgeferry.delta.record_bytes import make_records
from edgeferry.delta.records import Origin, Record
from edgeferry.delta.varint import make_varint
from edgeferry.model.digest import Digest

Run = Callable[..., Result]
BOMB_BYTES = 256 << 20
KEPT, MOVED, FRESH = "kept.weight", "moved.weight", "fresh.weight"


def make_model(*, step: float, fresh: int) -> bytes:
    """Three matrices: one stays, one moves a little with `step`, one is drawn anew from `fresh`."""
    draw = np.random.default_rng(1)
    kept, moved = draw.normal(0, 0.1, (96, 96)), draw.normal(0, 0.1, (96, 96))
    moved += step * draw.normal(0, 1e-4, (96, 96))
    tensors = {KEPT: kept, MOVED: moved, FRESH: np.random.default_rng(fresh).normal(0, 0.1, (64, 64))}
    nodes = [helper.make_node("MatMul", [f"x{at}", name], [f"y{at}"]) for at, name in enumerate(tensors)]
    stored = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in tensors.items()]
    inputs = [helper.make_tensor_value_info(f"x{at}", TensorProto.FLOAT, None) for at in range(3)]
    return bytes(helper.make_model(helper.make_graph(nodes, "g", inputs, [], stored)).SerializeToString())


@pytest.fixture
def run() -> Run:
    return lambda *words: CliRunner().invoke(cli, ["patch", *(str(word) for word in words)])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with `base`, `target` and the patch between them."""
    (tmp_path / "base").write_bytes(make_model(step=0, fresh=2))
    (tmp_path / "target").write_bytes(make_model(step=1, fresh=3))
    result = CliRunner().invoke(
        cli, ["patch", "make", *(str(tmp_path / name) for name in ("base", "target")), *to(tmp_path / "p")]
    )
    assert result.exit_code == 0, result.output
    return tmp_path


def to(path: Path) -> tuple[str, str]:
    return "-o", str(path)


def read_json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- make -------------------------------------------------------------------------------------------------------------
def test_a_patch_is_made_and_its_figures_told(run: Run, place: Path) -> None:
    made = read_json(run("make", place / "base", place / "target", *to(place / "q"), "--json"))
    assert made["patch_bytes"] == (place / "q").stat().st_size == min(made["sizes_by_way"].values())
    assert made["sizes_by_way"][made["way"]] == made["patch_bytes"] < made["target_bytes"]
    assert made["base"] == str(Digest.of((place / "base").read_bytes()))
    assert made["target"] == str(Digest.of((place / "target").read_bytes()))
    assert made["cpu_s"] > 0
    assert (place / "q").read_bytes() == (place / "p").read_bytes()
    assert stat.S_IMODE((place / "q").stat().st_mode) == 0o644


def test_people_read_bytes_share_and_the_way_that_won(run: Run, place: Path) -> None:
    result = run("make", place / "base", place / "target", *to(place / "q"))
    first, *ways = result.stdout.splitlines()
    assert f"{(place / 'q').stat().st_size:,} bytes" in first
    assert "% of the target" in first
    assert [line.split()[0] for line in ways if line.endswith("won")] == ["tensors"]
    assert "CPU seconds" in result.stdout


def test_progress_is_told_in_lines_where_nobody_looks_at_a_terminal(run: Run, place: Path) -> None:
    result = run("make", place / "base", place / "target", *to(place / "q"), "--json")
    size = (place / "target").stat().st_size
    assert result.stderr.splitlines()[-1] == f"patched {size:,} of {size:,} bytes"


def test_whole_digests_travel_when_asked_for(run: Run, place: Path) -> None:
    run("make", place / "base", place / "target", *to(place / "q"), "--full-digests")
    whole, short = (read_json(run("info", place / name, "--json")) for name in ("q", "p"))
    assert whole["target"] == Digest.of((place / "target").read_bytes()).hex
    assert whole["target"].startswith(short["target"])
    assert len(short["target"]) == 24
    assert read_json(run("apply", place / "base", place / "q", *to(place / "out"), "--json"))["whole_digest"]


def test_files_that_are_no_models_are_patched_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "b").write_bytes(bytes(range(256)) * 20 + b"something else" + bytes(range(256)) * 20)
    made = read_json(run("make", tmp_path / "a", tmp_path / "b", *to(tmp_path / "p"), "--json"))
    assert made["patch_bytes"] < 200
    assert run("apply", tmp_path / "a", tmp_path / "p", *to(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "b").read_bytes()


# --- apply ------------------------------------------------------------------------------------------------------------
def test_the_target_comes_back_whole(run: Run, place: Path) -> None:
    applied = read_json(run("apply", place / "base", place / "p", *to(place / "out"), "--json"))
    assert (place / "out").read_bytes() == (place / "target").read_bytes()
    assert applied["sha256"] == str(Digest.of((place / "target").read_bytes()))
    assert not applied["whole_digest"]


def test_another_base_is_refused_and_leaves_nothing(run: Run, place: Path) -> None:
    before = list_names(place)
    result = run("apply", place / "target", place / "p", *to(place / "out"))
    assert result.exit_code == 4
    assert "delta_base_mismatch" in result.stderr
    assert list_names(place) == before


@pytest.mark.parametrize("cut", [0, 3, 20, 60, -40, -1])
def test_a_cut_patch_is_refused_and_leaves_what_stood_there(run: Run, place: Path, cut: int) -> None:
    (place / "cut").write_bytes((place / "p").read_bytes()[:cut])
    (place / "out").write_bytes(b"old")
    before = list_names(place)
    result = run("apply", place / "base", place / "cut", *to(place / "out"))
    assert result.exit_code == 4, result.output
    assert "delta_damaged" in result.stderr
    assert list_names(place) == before
    assert (place / "out").read_bytes() == b"old"


def test_a_damaged_patch_is_refused(run: Run, place: Path) -> None:
    data = bytearray((place / "p").read_bytes())
    data[-30] ^= 0x10
    (place / "bad").write_bytes(data)
    result = run("apply", place / "base", place / "bad", *to(place / "out"))
    assert result.exit_code == 4
    assert not (place / "out").exists()


@pytest.mark.parametrize(("size_bytes", "memory_mb"), [(1 << 39, 1), (100, 1 << 19)])
def test_a_header_that_asks_for_too_much_is_refused(run: Run, place: Path, size_bytes: int, memory_mb: int) -> None:
    base = bytes.fromhex(Digest.of((place / "base").read_bytes()).hex)[:12]
    head = MAGIC + bytes([VERSION, 32]) + base + bytes(12) + make_varint(size_bytes) + make_varint(memory_mb)
    (place / "greedy").write_bytes(head + bytes(100))
    for words in (("apply", place / "base", place / "greedy", *to(place / "out")), ("info", place / "greedy")):
        result = run(*words)
        assert result.exit_code == 4
        assert "expected" in result.stderr


@pytest.mark.parametrize("name", ["base", "p"])
def test_an_input_is_never_overwritten(run: Run, place: Path, name: str) -> None:
    (place / "link").symlink_to(place / name)
    (place / "other").hardlink_to(place / name)
    before = (place / name).read_bytes()
    for out in (name, "link", "other"):
        result = run("apply", place / "base", place / "p", *to(place / out))
        assert result.exit_code == 2, out
        assert "config_invalid" in result.stderr
    assert (place / name).read_bytes() == before


@pytest.mark.parametrize("name", ["base", "target"])
def test_a_patch_is_never_written_over_what_it_is_made_of(run: Run, place: Path, name: str) -> None:
    before = (place / name).read_bytes()
    assert run("make", place / "base", place / "target", *to(place / name)).exit_code == 2
    assert (place / name).read_bytes() == before


def test_missing_files_and_options_are_usage_errors(run: Run, place: Path) -> None:
    assert run("apply", place / "nothing", place / "p", *to(place / "out")).exit_code == 2
    assert run("make", place / "base", place / "target").exit_code == 2


def test_a_folder_that_is_not_there_is_our_failure_to_write(run: Run, place: Path) -> None:
    result = run("make", place / "base", place / "target", *to(place / "no" / "p"))
    assert result.exit_code == 1
    assert "storage_failed" in result.stderr


# --- info -------------------------------------------------------------------------------------------------------------
def test_sections_add_up_to_the_patch(run: Run, place: Path) -> None:
    info = read_json(run("info", place / "p", "--json"))
    assert sum(section["size_bytes"] for section in info["sections"]) == info["patch_bytes"]
    assert info["patch_bytes"] == (place / "p").stat().st_size
    assert [section["name"] for section in info["sections"]] == ["header", "map", "symbols", "bits", "remainder"]
    assert info["target_bytes"] == (place / "target").stat().st_size


def test_without_the_base_it_is_told_what_is_expected_but_not_what_it_costs(run: Run, place: Path) -> None:
    info = read_json(run("info", place / "p", "--json"))
    assert sorted(part["cause"] for part in info["parts"]) == ["changed", "new", "same"]
    assert {part["patch_bytes"] for part in info["parts"] if part["cause"] != "same"} == {None}
    assert "--base" in run("info", place / "p").stdout


def test_with_the_base_the_causes_add_up_to_the_patch(run: Run, place: Path) -> None:
    info = read_json(run("info", place / "p", "--base", place / "base", "--json"))
    total = sum(cause["patch_bytes"] for cause in info["causes"])
    assert total == pytest.approx(info["patch_bytes"], abs=1e-6)
    costs = {part["name"]: part["patch_bytes"] for part in info["parts"]}
    assert costs[KEPT] == 0
    (coding,) = [cause["patch_bytes"] for cause in info["causes"] if cause["name"] == "lanes"]
    assert 0 <= coding <= 4 * info["lanes"] + 2


def test_a_tensor_that_is_new_costs_more_bits_each_than_one_that_moved(run: Run, place: Path) -> None:
    info = read_json(run("info", place / "p", "--base", place / "base", "--json"))
    bits = {part["name"]: 8 * part["patch_bytes"] / (part["rows"] * part["columns"]) for part in info["parts"]}
    assert 8 < bits[MOVED] < bits[FRESH] - 4
    (moved,) = [part for part in info["parts"] if part["name"] == MOVED]
    assert (moved["rows"], moved["columns"], moved["kind"], moved["cause"]) == (96, 96, "f4", "changed")
    assert moved["origin"].startswith("base ")


def test_people_read_three_tables(run: Run, place: Path) -> None:
    text = run("info", place / "p", "--base", place / "base").stdout
    for word in ("sections", "tensors", "bytes by cause", MOVED, "changed", "96x96", "remainder"):
        assert word in text


def test_files_of_an_archive_are_told_by_name_with_their_tensors(run: Run, tmp_path: Path) -> None:
    for name, step in (("a.zip", 0), ("b.zip", 1)):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("m.onnx", make_model(step=step, fresh=5))
    made = read_json(run("make", tmp_path / "a.zip", tmp_path / "b.zip", *to(tmp_path / "p"), "--json"))
    assert made["way"] == "members"
    assert run("apply", tmp_path / "a.zip", tmp_path / "p", *to(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "b.zip").read_bytes()
    text = run("info", tmp_path / "p", "--base", tmp_path / "a.zip").stdout
    for word in ("files", "deflated, level 6", "tensors in m.onnx", MOVED):
        assert word in text
    assert "--base" in run("info", tmp_path / "p").stdout


def test_a_coded_full_file_needs_no_base(run: Run, tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(make_full(make_model(step=0, fresh=4)).data)
    info = read_json(run("info", tmp_path / "full", "--json"))
    assert not info["has_base"]
    assert {part["cause"] for part in info["parts"]} == {"new"}
    assert sum(cause["patch_bytes"] for cause in info["causes"]) == pytest.approx(info["patch_bytes"], abs=1e-6)


def test_foreign_cut_and_wrongly_based_files_are_refused_with_one_clear_error(run: Run, place: Path) -> None:
    (place / "cut").write_bytes((place / "p").read_bytes()[:50])
    (place / "empty").write_bytes(b"")
    for words in (("base",), ("cut",), ("empty",), ("p", "--base", place / "target")):
        result = run("info", place / words[0], *words[1:])
        assert result.exit_code == 4, words
        assert result.stderr.startswith("error delta_")
        assert "Traceback" not in result.output


_WATCHED = """
import json, pathlib, re, sys
from click.testing import CliRunner
from edgeferry.cli.main import cli

def get_peak():  # getrusage's would be the peak of the process before exec, too
    return 1024 * int(re.search("VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

before = get_peak()
result = CliRunner().invoke(cli, ["patch", "info", *sys.argv[1:]])
grown = get_peak() - before
print(json.dumps({"code": result.exit_code, "stderr": result.stderr, "grown_bytes": grown}))
"""


def watch_info(folder: Path, *words: Path | str, limit: str = "-c 0") -> Any:
    """`patch info` in a process of its own: exit code, errors, and by how much that process grew.

    Temporary files go to `folder`/temp. Every process of it is limited by the shell's `ulimit limit`.
    """
    (folder / "temp").mkdir()
    command = [sys.executable, "-c", _WATCHED, *map(str, words)]
    done = subprocess.run(
        ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *command],
        env={**os.environ, "TMPDIR": str(folder / "temp")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list_names(folder / "temp") == set()
    return json.loads(done.stdout)


def make_bomb(method: int, data: bytes, size_bytes: int) -> bytes:
    """A coded full file that says of itself that it takes 1 MiB of memory."""
    header = Header(has_base=False, base=b"", target=bytes(12), target_bytes=size_bytes, memory_bytes=MEMORY_UNIT)
    return make_container(Container(header, None, (Piece(method, -1, data),)))


@pytest.mark.parametrize(
    ("method", "data", "reason"),
    [
        (codecs.RAW, b"", "found 0"),
        (codecs.ZSTD, zstandard.ZstdCompressor(level=1).compress(bytes(BOMB_BYTES)), "memory"),
        (codecs.LZMA, codecs.encode(codecs.LZMA, b"", bytes(BOMB_BYTES)), "memory"),
    ],
    ids=["nothing", "zstd", "lzma"],
)
def test_a_bomb_is_refused_and_takes_no_memory_here(tmp_path: Path, method: int, data: bytes, reason: str) -> None:
    (tmp_path / "bomb").write_bytes(make_bomb(method, data, BOMB_BYTES))
    found = watch_info(tmp_path, tmp_path / "bomb")
    assert found["code"] == 4, found
    assert found["stderr"].startswith("error delta_damaged: ")
    assert reason in found["stderr"]
    assert found["grown_bytes"] < BOMB_BYTES // 8
    assert list_names(tmp_path) == {"bomb", "temp"}


def make_endless(base: bytes) -> bytes:
    """A patch whose every number has a tensor of its own, which is the peak of all of the base."""
    f4, count = KINDS[0], 10_000
    whole = Origin(True, 0, f4, 1, len(base) // 4)
    records = [Record(4 * at, f4, 1, 1, whole, peak=1, divisor=127, mantissa=23) for at in range(count)]
    plain = make_records(records)
    symbols = np.random.default_rng(1).bytes(4 + 4 * count)
    streams = Streams(codecs.LZMA, len(plain), codecs.encode(codecs.LZMA, b"", plain), 1, symbols, bytes(8 * count))
    digest = bytes.fromhex(Digest.of(base).hex)[:12]
    header = Header(has_base=True, base=digest, target=bytes(12), target_bytes=4 * count, memory_bytes=MEMORY_UNIT)
    return make_container(Container(header, streams, (Piece(codecs.RAW, 0, b""),)))


def test_a_patch_that_works_without_end_is_ended_and_only_its_own_process(tmp_path: Path) -> None:
    base = np.random.default_rng(0).bytes(4 << 20)
    (tmp_path / "base").write_bytes(base)
    (tmp_path / "endless").write_bytes(make_endless(base))
    found = watch_info(tmp_path, tmp_path / "endless", "--base", tmp_path / "base", limit="-t 5")
    assert found["code"] == 4, found
    assert "ended with status -" in found["stderr"]
    assert "Traceback" not in found["stderr"]


def test_no_space_to_apply_the_patch_on_the_way_is_the_disks_fault(tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(make_full(bytes(range(256)) * 8192).data)
    found = watch_info(tmp_path, tmp_path / "full", limit="-f 1024")
    assert found["code"] == 1, found
    assert found["stderr"].startswith("error no_space: ")


def test_names_from_a_file_cannot_move_the_cursor() -> None:
    assert clean_name("a\x1b[2Jb\n") == "a?[2Jb?"
    assert len(clean_name("x" * 5000)) <= 60
