"""Makes the environment of Microsoft's SDKs: `.venv-azure` from requirements/azure-sdk.txt, exact pins.

Usage: python scripts/make_sdk_env.py [--quiet]

Prints the path of its python. Safe to run at the same time from several processes, and again: it does nothing when the
environment was made from the same pins.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "requirements" / "azure-sdk.txt"
ENVIRONMENT = ROOT / ".venv-azure"
STAMP = ENVIRONMENT / "made-from"
PYTHON = ENVIRONMENT / "bin" / "python"


def make_environment() -> Path:
    """Makes the environment when it is missing or of other pins; returns its python.

    Raises:
        subprocess.CalledProcessError: the packages cannot be installed.
    """
    wanted = hashlib.sha256(PINS.read_bytes()).hexdigest()
    with PINS.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (STAMP.is_file() and STAMP.read_text() == wanted and PYTHON.exists()):
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)
            venv.create(ENVIRONMENT, with_pip=True)
            install = [
                PYTHON,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--disable-pip-version-check",
                "-r",
                PINS,
            ]
            subprocess.run(install, check=True, capture_output=True, text=True, timeout=600)
            STAMP.write_text(wanted)
    return PYTHON


if __name__ == "__main__":
    try:
        print(make_environment())
    except subprocess.CalledProcessError as failure:
        sys.exit(f"pip could not install {PINS.name}:\n{failure.stderr}")
