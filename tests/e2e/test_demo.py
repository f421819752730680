"""The demo tells the truth: it ends well when all of it holds, and says what broke when something does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run_demo(out: Path, models: Path) -> tuple[int, str, dict[str, Any]]:
    figures = out.with_suffix(".json")
    words = [sys.executable, "-m", "edgeferry.cli.main", "demo", "--link-bps", "1500000"]
    words += ["--out", str(out), "--models", str(models), "--json", str(figures)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    return done.returncode, done.stdout + done.stderr, json.loads(figures.read_text()) if figures.exists() else {}


def test_the_demo_holds_what_it_claims(tmp_path: Path, demo_models: Path) -> None:
    code, printed, figures = run_demo(tmp_path / "demo", demo_models)
    assert code == 0, printed
    assert all(figures["claims"].values())
    assert figures["failed"] == 0
    assert figures["update_wire_bytes"] < figures["guide_zip_bytes"]
    assert all(Path(picture).read_bytes().startswith(b"\x89PNG") for picture in figures["pictures"])
    assert len(figures["pictures"]) == 6


@pytest.mark.soak
def test_the_demo_fails_when_a_claim_is_broken(tmp_path: Path, demo_models: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(demo_models / "detector", models / "detector")
    for folder in ("scenes", "golden"):
        shutil.copytree(demo_models / folder, models / folder)
    shutil.copy(models / "detector/1.2.0/detector.onnx", models / "detector/1.3.0-bad/detector.onnx")
    code, printed, figures = run_demo(tmp_path / "demo", models)
    assert code == 1, printed
    assert [claim for claim, held in figures["claims"].items() if not held] == [
        "1.3.0-bad was refused on its golden truth",
        "1.3.0-bad never answered",
    ]
    assert "BROKEN  1.3.0-bad was refused on its golden truth" in printed
