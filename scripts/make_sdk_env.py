"""Makes the environment of another program for the tests: `.venv-<peer>` from requirements/<pins>.txt, exact pins.

Usage: python scripts/make_sdk_env.py [azure | azure-rc | moto | schemathesis | atheris | delta-peers | vision-clients]

`azure` (the default) is Microsoft's SDKs, `azure-rc` their next device SDK, `moto` an HTTP double of Amazon S3,
`schemathesis` a tester of REST services from their OpenAPI, `atheris` a coverage-guided fuzzer, `delta-peers` what
patches are measured against, `vision-clients` clients of inference servers. Prints the path of its python. Safe to run
at the same time from several processes, and again: an environment that was made from the same pins stays.
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
SERVERS = ("web", "mlserver", "litserve", "bentoml", "triton")
PINS = {
    "azure": ROOT / "requirements" / "azure-sdk.txt",
    "azure-rc": ROOT / "requirements" / "azure-rc.txt",
    "moto": ROOT / "requirements" / "moto.txt",
    "atheris": ROOT / "requirements" / "atheris.txt",
    "delta-peers": ROOT / "requirements" / "delta-peers.txt",
    "schemathesis": ROOT / "requirements" / "schemathesis.txt",
    "vision-clients": ROOT / "requirements" / "vision-clients.txt",
} | {f"serve-{peer}": ROOT / "requirements" / f"serve-{peer}.txt" for peer in SERVERS}


def make_environment(peer: str) -> Path:
    """Makes the peer's environment when it is missing or of other pins; returns its python.

    Raises:
        subprocess.CalledProcessError: the packages cannot be installed.
    """
    pins, environment = PINS[peer], ROOT / f".venv-{peer}"
    python, stamp = environment / "bin" / "python", environment / "made-from"
    wanted = hashlib.sha256(pins.read_bytes()).hexdigest()
    with pins.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.is_file() and stamp.read_text() == wanted and python.exists()):
            shutil.rmtree(environment, ignore_errors=True)
            venv.create(environment, with_pip=True)
            install = [
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--disable-pip-version-check",
                "-r",
                pins,
            ]
            subprocess.run(install, check=True, capture_output=True, text=True, timeout=600)
            stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    wanted_peer = sys.argv[1] if len(sys.argv) > 1 else "azure"
    if wanted_peer not in PINS:
        sys.exit(f"expected one of {', '.join(PINS)}, found {wanted_peer}")
    try:
        print(make_environment(wanted_peer))
    except subprocess.CalledProcessError as failure:
        sys.exit(f"pip could not install {PINS[wanted_peer].name}:\n{failure.stderr}")
