"""Thousands of damaged patches: each is refused in our words, or gives its target; in bounded time and memory.

Most go through `apply_patch` in one process under the device's limits, in batches; a few dozen through the device's own
door. Seeds are fixed, so that a defect has a number.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from delta.hostile_patches import BLIND, KNOWING, make_mutation, make_samples, mutate
from edgeferry.delta.apply import CODEC
from edgeferry.errors import DeltaBaseMismatch, DeltaDamaged, NoSpace
from edgeferry.model.digest import Digest
from edgeferry.storage.patching import decode_in_child

TESTS = Path(__file__).resolve().parents[1]
FEW, MIDDLE, MANY = 2_000, 8_000, 50_000
BATCH = 500
VERDICTS = {"damaged", "other base", "memory", "target"}
SLACK_KIB = 4 << 10
"""Above the memory that the manifest states: the target's buffer and what the allocator keeps."""
ENDLESS = {-signal.SIGPROF, -signal.SIGXCPU}


@dataclass
class Outcomes:
    """What came of a run: how many of each, what is a defect, children that died by a signal."""

    counts: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)
    slowest_ms: int = 0
    peak_kib: int = 0

    def take(self, seed: int, name: str, line: list[object]) -> None:
        """One line of the child."""
        outcome, spent, peak = str(line[1]), int(str(line[2])), int(str(line[3]))
        self.counts[outcome] += 1
        self.slowest_ms, self.peak_kib = max(self.slowest_ms, spent), max(self.peak_kib, peak)
        if outcome not in VERDICTS:
            self.defects.append(f"seed {seed} ({name}): {outcome}")
        most = make_samples()[name].memory_bytes // 1024 + SLACK_KIB
        if peak > most:
            self.defects.append(f"seed {seed} ({name}): {peak} KiB of memory, expected at most {most}")


def write_samples(folder: Path) -> None:
    """What the child reads once."""
    names = {}
    for number, (name, sample) in enumerate(make_samples().items()):
        files = [f"{kind}{number}" for kind in ("base", "target", "patch")]
        for file, data in zip(files, (sample.base, sample.target, sample.patch), strict=True):
            (folder / file).write_bytes(data)
        names[name] = [*files, sample.memory_bytes]
    (folder / "samples.json").write_text(json.dumps(names))


def write_batch(folder: Path, seeds: range) -> dict[int, str]:
    """The mutations of some seeds; returns the sample of each."""
    for path in folder.glob("m*-*"):
        path.unlink()
    names = {}
    for seed in seeds:
        names[seed], patch = make_mutation(seed)
        (folder / f"m{seed:08}-{names[seed]}").write_bytes(patch)
    return names


def run_child(folder: Path, *words: str) -> tuple[list[list[object]], int, str]:
    """The lines of one child, how it ended, and what it said."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]),
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back to the system, so that peaks are true
    }
    child = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        str(TESTS / "delta" / "patch_child.py"),
        str(folder),
        *words,
    ]
    done = subprocess.run(child, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode, done.stderr


def run_batch(folder: Path, seeds: range, outcomes: Outcomes) -> None:
    """Applies a batch; a child that dies takes one patch with it, and another one goes on behind."""
    names = write_batch(folder, seeds)
    while names:
        lines, status, said = run_child(folder)
        for line in lines:
            seed = int(str(line[0]))
            outcomes.take(seed, names.pop(seed), line)
            next(folder.glob(f"m{seed:08}-*")).unlink()
        if not names:
            assert status == 0, said
            return
        seed = min(names)
        if status in ENDLESS:
            outcomes.defects.append(f"seed {seed} ({names[seed]}): endless")
        elif status >= 0:
            raise AssertionError(f"the child ended with {status} at seed {seed}: {said[-2000:]}")
        else:
            outcomes.died.append(f"seed {seed} ({names[seed]}): {signal.Signals(-status).name}")
        del names[seed]
        next(folder.glob(f"m{seed:08}-*")).unlink()


def fuzz(folder: Path, first: int, count: int) -> Outcomes:
    """`count` mutations from seed `first` on; whatever is a defect fails."""
    outcomes = Outcomes()
    write_samples(folder)
    for start in range(first, first + count, BATCH):
        run_batch(folder, range(start, min(start + BATCH, first + count)), outcomes)
    print(f"{dict(outcomes.counts)}; slowest {outcomes.slowest_ms} ms, peak {outcomes.peak_kib} KiB")
    print(f"{len(outcomes.died)} children died by a signal: {outcomes.died}")
    assert not outcomes.defects, "\n".join(outcomes.defects[:40])
    assert outcomes.counts["damaged"] > 0.7 * count
    assert outcomes.counts["other base"] > 0, "the mutations never reach the base's digest"
    assert outcomes.peak_kib > 4 << 10, "the peak of memory is not seen: tables alone take more"
    return outcomes


# --- the runs ---------------------------------------------------------------------------------------------------------
def test_damaged_patches_are_refused_or_give_their_target(tmp_path: Path) -> None:
    fuzz(tmp_path, 0, FEW)


@pytest.mark.soak
def test_more_damaged_patches_are_refused_or_give_their_target(tmp_path: Path) -> None:
    fuzz(tmp_path, 1_000_000, MIDDLE)


@pytest.mark.soak_full
def test_many_damaged_patches_are_refused_or_give_their_target(tmp_path: Path) -> None:
    fuzz(tmp_path, 2_000_000, MANY)


def test_an_error_that_is_no_verdict_would_be_found(tmp_path: Path) -> None:
    write_samples(tmp_path)
    names = write_batch(tmp_path, range(20))
    outcomes = Outcomes()
    for line in run_child(tmp_path, "planted")[0]:
        outcomes.take(int(str(line[0])), names[int(str(line[0]))], line)
    assert any("planted" in defect for defect in outcomes.defects)


def test_every_sample_and_kind_of_damage_takes_part() -> None:
    names = {make_mutation(seed)[0] for seed in range(FEW)}
    assert names == set(make_samples())
    sample = make_samples()["in pieces"]
    different = {mutate(sample, random.Random(seed)) for seed in range(300)}
    assert len(different) > 250
    assert len(BLIND) + len(set(KNOWING)) >= 10


# --- the device's door ------------------------------------------------------------------------------------------------
def list_door_seeds() -> Iterator[int]:
    """One seed for each sample, then some more."""
    seen: set[str] = set()
    for seed in range(3_000_000, 3_000_400):
        name = make_mutation(seed)[0]
        if name not in seen:
            seen.add(name)
            yield seed


@pytest.mark.parametrize("seed", [*list_door_seeds()][:40])
async def test_a_damaged_patch_is_refused_at_the_devices_door_and_leaves_nothing(tmp_path: Path, seed: int) -> None:
    name, patch = make_mutation(seed)
    sample = make_samples()[name]
    (tmp_path / "artifact").write_bytes(patch)
    (tmp_path / "base").write_bytes(sample.base)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "model.onnx"
    work = decode_in_child(
        tmp_path / "artifact",
        CODEC,
        target_path=target,
        size_bytes=len(sample.target),
        memory_bytes=sample.memory_bytes,
        base_path=tmp_path / "base" if sample.base else None,
    )
    try:
        decoded = await work
    except (DeltaDamaged, DeltaBaseMismatch, NoSpace):
        assert not list((tmp_path / "out").iterdir())
    else:
        assert decoded.digest == Digest.of(sample.target)
        assert target.read_bytes() == sample.target
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert (tmp_path / "base").read_bytes() == sample.base
