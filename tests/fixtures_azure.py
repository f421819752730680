"""Microsoft's unmodified SDKs as real peers: their environment, their addresses, their scripts.

Rules:
- The device SDK speaks to port 8883 only: each test gets a loopback address of its own, 127.x.y.z, from its process id.
- The SDK runs in a child process (its handlers block, and it must not share an event loop with the hub); a script
  prints one JSON object a line.
- What is told of the device SDK is told of each version in DEVICE_SDKS: the stable one, and the next in an environment
  of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from other_programs import require_environment

ROOT = Path(__file__).resolve().parent.parent
LINE_MAX_BYTES = 16 * 1024 * 1024  # a page of a fleet is one line
_ADDRESSES = itertools.count(1)
_PIN = re.compile(r"^azure-iot-device==(\S+)$", re.MULTILINE)


def _read_version(pins: str) -> str:
    found = _PIN.search((ROOT / "requirements" / pins).read_text())
    assert found, f"{pins} pins no azure-iot-device"
    return found[1]


DEVICE_SDKS = {"azure": _read_version("azure-sdk.txt"), "azure-rc": _read_version("azure-rc.txt")}


@pytest.fixture(scope="session")
def azure_sdk_python() -> Path:
    """The python that has azure-iot-device and azure-iot-hub; makes its environment when that is missing."""
    return require_environment("azure", "Microsoft's SDKs")


@pytest.fixture(scope="session", params=list(DEVICE_SDKS.values()))
def device_sdk_version(request: pytest.FixtureRequest) -> str:
    """Each version of azure-iot-device."""
    return str(request.param)


@pytest.fixture(scope="session")
def device_sdk_python(device_sdk_version: str) -> Path:
    """The python that has this version; makes its environment when that is missing."""
    environment = next(name for name, version in DEVICE_SDKS.items() if version == device_sdk_version)
    return require_environment(environment, f"azure-iot-device {device_sdk_version}")


@pytest.fixture
def loopback_address() -> str:
    """An address in 127.0.0.0/8 that no other test of this machine uses now."""
    number = os.getpid() * 64 + next(_ADDRESSES)
    return f"127.{number // 62_500 % 250 + 2}.{number // 250 % 250 + 2}.{number % 250 + 2}"


class SdkScript:
    """A running script: `expect(key)` waits for a line that has it, `send` writes a line to it."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.seen: list[dict[str, Any]] = []

    async def expect(self, key: str, timeout_s: float = 30.0) -> Any:
        """The value of `key` in the next line that has it."""
        async with asyncio.timeout(timeout_s):
            while True:
                line = await self.child.stdout.readline()
                if not line:
                    error = await self.child.stderr.read()
                    raise AssertionError(
                        f"the SDK's script ended before {key!r}; {self.seen}\n{error.decode()[-3000:]}"
                    )
                self.seen.append(json.loads(line))
                if key in self.seen[-1]:
                    return self.seen[-1][key]

    async def send(self, word: str) -> None:
        """Tells the script to go on."""
        self.child.stdin.write(f"{word}\n".encode())
        await self.child.stdin.drain()


def make_runner(program: str, *options: str) -> Callable[..., Any]:
    """`async with run(script, *arguments, **environment) as peer`: an SdkScript that is killed at the end."""

    @asynccontextmanager
    async def run(script: Path, *arguments: str, **environment: str) -> AsyncIterator[SdkScript]:
        child = await asyncio.create_subprocess_exec(
            program,
            *options,
            str(script),
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=LINE_MAX_BYTES,
            env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **environment},
        )
        try:
            yield SdkScript(child)
        finally:
            if child.returncode is None:
                child.kill()
            await child.communicate()

    return run


@pytest.fixture
def run_sdk(azure_sdk_python: Path) -> Callable[..., Any]:
    """Runs a script where both SDKs are."""
    return make_runner(str(azure_sdk_python), "-W", "ignore")


@pytest.fixture
def run_device_sdk(device_sdk_python: Path) -> Callable[..., Any]:
    """Runs a script with each version of the device SDK."""
    return make_runner(str(device_sdk_python), "-W", "ignore")
