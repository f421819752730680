"""What memory is left, read from files as Linux writes them, and from this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeferry.runtime.memory import UNKNOWN, read_free_bytes, read_memory

MIB = 1 << 20
NO_LIMIT_V1 = 9223372036854771712


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """`proc` and `groups`: a machine with 1,000 MiB available."""
    _write(tmp_path / "proc" / "meminfo", f"MemTotal: 9999999 kB\nMemAvailable:    {1000 * 1024} kB\n")
    return tmp_path


def _read(world: Path) -> int:
    return read_free_bytes(proc=world / "proc", groups=world / "groups") // MIB


def _set_v2(world: Path, group: str, limit: str, used: int, idle: int = 0) -> None:
    folder = world / "groups" / group
    _write(folder / "memory.max", f"{limit}\n")
    _write(folder / "memory.current", f"{used * MIB}\n")
    _write(folder / "memory.stat", f"anon 1\ninactive_file {idle * MIB}\nactive_file 7\n")


def _set_v1(world: Path, group: str, limit: int, used: int, idle: int = 0) -> None:
    folder = world / "groups" / "memory" / group
    _write(folder / "memory.limit_in_bytes", f"{limit}\n")
    _write(folder / "memory.usage_in_bytes", f"{used * MIB}\n")
    _write(folder / "memory.stat", f"inactive_file 5\ntotal_inactive_file {idle * MIB}\n")


def test_without_groups_the_machine_alone_decides(world: Path) -> None:
    assert _read(world) == 1000


def test_where_nobody_says_anything_nothing_is_short(tmp_path: Path) -> None:
    assert read_free_bytes(proc=tmp_path, groups=tmp_path) == UNKNOWN


def test_a_limit_of_version_2_counts_less_what_is_used_and_cannot_be_had_at_once(world: Path) -> None:
    _write(world / "proc" / "self" / "cgroup", "0::/a/b\n")
    _set_v2(world, "a/b", str(300 * MIB), used=250, idle=30)
    assert _read(world) == 80


def test_the_tightest_group_above_this_process_decides(world: Path) -> None:
    _write(world / "proc" / "self" / "cgroup", "0::/a/b\n")
    _set_v2(world, "a/b", "max", used=250)
    _set_v2(world, "a", str(400 * MIB), used=350)
    _set_v2(world, "other", str(1 * MIB), used=1)
    assert _read(world) == 50


def test_a_limit_of_version_1_counts_and_none_reads_as_large(world: Path) -> None:
    _write(world / "proc" / "self" / "cgroup", "5:cpu,cpuacct:/x\n4:memory:/x/y\n1:name=systemd:/x\n0::/\n")
    _set_v1(world, "x/y", 200 * MIB, used=190, idle=40)
    _set_v1(world, "", NO_LIMIT_V1, used=190)
    assert _read(world) == 50


def test_in_a_container_that_is_told_the_hosts_path_its_own_group_is_the_mount(world: Path) -> None:
    _write(world / "proc" / "self" / "cgroup", "4:memory:/docker/0123abcd\n")
    _set_v1(world, "", 256 * MIB, used=200)
    assert _read(world) == 56


def test_more_used_than_allowed_leaves_nothing(world: Path) -> None:
    _write(world / "proc" / "self" / "cgroup", "0::/\n")
    _set_v2(world, ".", str(100 * MIB), used=120)
    assert _read(world) == 0


@pytest.mark.parametrize("said", ["", "garbage", "0::", ":::::", "4:memory", "0::/../../..", "4:memory:\n0:\n"])
def test_files_that_make_no_sense_set_no_limit(world: Path, said: str) -> None:
    _write(world / "proc" / "self" / "cgroup", said)
    _write(world / "groups" / "memory.max", "many\n")
    assert _read(world) == 1000


def test_this_process_has_taken_memory_and_one_that_is_gone_none() -> None:
    reading = read_memory(os.getpid())
    assert 10 * MIB < reading.worker_bytes < 10_000 * MIB
    assert reading.free_bytes > 10 * MIB
    assert read_memory(2**30).worker_bytes == 0
