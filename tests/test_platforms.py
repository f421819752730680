"""The device's pinned libraries have wheels for every platform and Python that the README names."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GLIBC_MINORS = range(17, 36)


def get_device_requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["device"], *extras["onnx"], *extras["litert"]]


@pytest.mark.soak
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_device_library_has_a_wheel(python: str, machine: str, tmp_path: Path) -> None:
    platforms = [word for minor in GLIBC_MINORS for word in ("--platform", f"manylinux_2_{minor}_{machine}")]
    options = ["--dry-run", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--target", str(tmp_path)]
    pins = ["--constraint", str(ROOT / "requirements" / "constraints.txt")]
    where = ["--python-version", python, *platforms, *pins]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *where, *get_device_requirements()],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_pins_are_exact_and_name_no_registry() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        lines = [
            line for line in path.read_text().splitlines() if line and not line.startswith(("#", "--only-binary "))
        ]
        assert lines, path
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z]+\])?==[^/\s]+", line) for line in lines), path
