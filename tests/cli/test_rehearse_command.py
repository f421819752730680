"""`edgeferry rehearse` as an operator types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeferry.app.operator import Place, PublishFiles, make_repository, publish_files
from edgeferry.cli.exit_codes import LINK, OK, USAGE


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> Path:
    """gauge 1.0.0, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    place = Place(str(folder / "site"), folder / "keys", {})
    make_repository(place)
    gauge = demo_models / "gauge" / "1.0.0"
    files = PublishFiles(gauge / "gauge.onnx", "gauge", "1.0.0", labels=gauge / "labels.txt")
    publish_files(files, place, say=lambda text: None)
    return folder / "site"


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeferry.cli.main", "rehearse", "gauge", "--repo", str(site), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_figures_stand_on_stdout_and_the_forecast_is_said_before(site: Path) -> None:
    ended = run(site, "--link", "lte-m", "--bps", "2000000", "--rtt", "0.02", "--json")
    assert ended.returncode == OK, ended.stderr
    figures = json.loads(ended.stdout)
    assert (figures["state"], figures["route"], figures["base"]) == ("ACTIVE", "full", "")
    assert (figures["link_bps"], figures["link_rtt_s"]) == (2_000_000, 0.02)
    first, second, *rest = ended.stderr.splitlines()
    assert first == "gauge a device with nothing -> 1.0.0 over lte-m, changed: 2,000 kbit/s, round trip 0.02 s"
    assert f"full, {figures['payload_bytes']:,} bytes of payload" in second
    assert any("downloading" in line for line in rest)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--link", "nb-iot", "--cut", "5,1800"], USAGE, "--anyway"),
        (["--cut", "10"], USAGE, "--cut AT,FOR"),
        (["--link", "pigeon"], USAGE, "certus-100"),
        (["--to", "2.0.0"], LINK, "found 1.0.0"),
    ],
)
def test_what_cannot_be_played_is_said_before_anything_starts(
    site: Path, words: list[str], code: int, said: str
) -> None:
    ended = run(site, *words)
    assert (ended.returncode, said in ended.stderr) == (code, True), ended.stderr
    assert ended.stdout == ""
    assert "is deployed" not in ended.stderr
