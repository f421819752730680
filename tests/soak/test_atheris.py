"""Coverage-guided fuzzing of the sans-IO MQTT part and of patches, a target after the other; short, and in full longer.

The targets are rows of fuzz_targets.py and patch_targets.py; the fuzzer, atheris_mqtt.py, runs in an environment of its
own. It begins with the same seeds and the same dice each time; how far it comes in its time depends on the machine.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from other_programs import require_environment
from soak import fuzz_targets, patch_targets
from soak.fuzz_targets import PLANTED, Target

TARGETS = {**fuzz_targets.TARGETS, **patch_targets.TARGETS}
ROOT = Path(__file__).resolve().parent.parent.parent
SEED = 20261125
SHORT_S, FULL_S = 5, 30  # for each target
SEEDS = 200
LIMITS = (f"-seed={SEED}", "-max_len=2048", "-rss_limit_mb=512", "-timeout=5")
INPUT_FILES = ("crash-*", "timeout-*", "oom-*", "leak-*", "slow-unit-*")


@dataclass(frozen=True)
class Found:
    """How a run ended: what the fuzzer printed, and the input that it stopped at, if it did."""

    code: int
    said: str
    inputs: tuple[str, ...]

    @property
    def runs(self) -> int:
        done = re.search(r"^Done (\d+) runs", self.said, re.MULTILINE)
        return int(done[1]) if done else 0


def fuzz(name: str, target: Target, folder: Path, seconds: int) -> Found:
    python = require_environment("atheris", "atheris")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(make_seeds(target)):
        (corpus / f"seed-{number:05}").write_bytes(seed)
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    harness = ROOT / "tests" / "soak" / "atheris_mqtt.py"
    done = subprocess.run(
        [python, harness, name, corpus, *LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={folder}/"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + 120,
        check=False,
    )
    inputs = [file.read_bytes().hex() for pattern in INPUT_FILES for file in sorted(folder.glob(pattern))]
    return Found(done.returncode, done.stdout + done.stderr, tuple(inputs))


def make_seeds(target: Target) -> list[bytes]:
    return [target.make_seed(random.Random(SEED + number)) for number in range(SEEDS)]


def require_sound(name: str, folder: Path, seconds: int) -> None:
    found = fuzz(name, TARGETS[name], folder, seconds)
    assert found.code == 0 and not found.inputs, f"input (hex): {found.inputs}\n{found.said[-4000:]}"
    assert found.runs > 2 * SEEDS, f"it hardly began: {found.said[-2000:]}"
    print(found.said[-300:])


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_reads_all_its_seeds(name: str) -> None:
    for seed in make_seeds(TARGETS[name]):
        TARGETS[name].read(seed)


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_that_coverage_leads_to_is_a_defect(name: str, tmp_path: Path) -> None:
    require_sound(name, tmp_path, SHORT_S)


@pytest.mark.soak_full
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_that_coverage_leads_to_is_a_defect_in_full(name: str, tmp_path: Path) -> None:
    require_sound(name, tmp_path, FULL_S)


@pytest.mark.soak
def test_a_planted_defect_is_found_and_its_input_shown(tmp_path: Path) -> None:
    found = fuzz("planted", PLANTED, tmp_path, 60)
    assert found.code != 0 and "IndexError: planted" in found.said
    assert len(found.inputs) == 1 and "4002" in found.inputs[0]
