"""Changes models under load and measures who notices: ours beside every peer that can change a model while it runs.

Prints a table, takes `--json FILE`, writes its section of docs/benchmarks.md with `--write FILE`, and exits non-zero when
a figure of ours falls short. The load is serving/load.py, our server serving/swap_server.py, slow models
serving/slow_models.py, the peers serving/swap_peers.py.

Rules:
- Open loop at half of what the server answers in a closed one, by a plain pooled keep-alive client that never retries.
- The window of a swap runs from the order until the old model is freed; all that was due outside of any is steady.
- A request that touches a window is in it, whenever it was due.
- Judged are failures, ratios of times of the same run, and memory. A scene is run RUNS times; the median is judged.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from page_sections import write_section
from PIL import Image

from serving.load import Run, Target, get_quantile, run_closed, run_open
from serving.machine import describe_machine, read_pss_bytes
from serving.slow_models import make_slow_litert, make_slow_onnx
from serving.swap_sides import Side, open_ours

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models" / "detector" / "1.1.0"
SWAPS = 20
MEMORY_SWAPS = 40
RATE_SHARE = 0.5
BETWEEN_S = 0.6
REQUESTS_MIN = 2000
SLOW_LINKS = {"onnx": 13, "litert": 140}
RUNS = 3
P99_MAX, P99_SLOW_MAX, WORST_MAX, MEMORY_MAX = 1.2, 1.3, 3.0, 1.03


@dataclass(frozen=True, slots=True)
class Scene:
    """What is swapped: files taken in turn, and what must come of it. `fails`: every other file is refused."""

    name: str
    files: tuple[Path, ...]
    p99_max: float = P99_MAX
    fails: bool = False


@dataclass(slots=True)
class Found:
    """One run of one scene. Times in seconds."""

    scene: str
    side: str
    rate: float = 0.0
    requests: int = 0
    failed: int = 0
    steady_p50: float = 0.0
    steady_p99: float = 0.0
    swap_p99: float = 0.0
    worst: float = 0.0
    swap_s: float = 0.0
    refused_swaps: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def p99_ratio(self) -> float:
        """p99 in the windows / p99 outside of them."""
        return self.swap_p99 / self.steady_p99 if self.steady_p99 else 0.0

    @property
    def worst_ratio(self) -> float:
        """The longest request of all / p99 outside of the windows."""
        return self.worst / self.steady_p99 if self.steady_p99 else 0.0


def make_picture() -> bytes:
    """A scene of ours at 640 x 480."""
    scene = sorted((ROOT / "models" / "scenes").glob("*.jpg"))[0]
    out = io.BytesIO()
    Image.open(scene).convert("RGB").resize((640, 480)).save(out, "JPEG", quality=90)
    return out.getvalue()


def make_scenes(folder: Path) -> list[Scene]:
    """All scenes, their files made in `folder`."""
    onnx, litert = MODELS / "detector.onnx", MODELS / "detector-fp32.tflite"
    slow = {
        "slow.onnx": make_slow_onnx(onnx.read_bytes(), SLOW_LINKS["onnx"]),
        "slow.tflite": make_slow_litert(litert.read_bytes(), SLOW_LINKS["litert"]),
    }
    corrupt = onnx.read_bytes()[: onnx.stat().st_size // 2]
    return [
        Scene("ONNX", _copy_twice(folder, "quick.onnx", onnx.read_bytes())),
        Scene("LiteRT", _copy_twice(folder, "quick.tflite", litert.read_bytes())),
        Scene("ONNX, slow to load", _copy_twice(folder, "slow.onnx", slow["slow.onnx"]), P99_SLOW_MAX),
        Scene("LiteRT, slow to load", _copy_twice(folder, "slow.tflite", slow["slow.tflite"]), P99_SLOW_MAX),
        Scene("corrupt new version", (onnx, _write(folder, "corrupt.onnx", corrupt)), fails=True),
    ]


def _copy_twice(folder: Path, name: str, data: bytes) -> tuple[Path, ...]:
    """Two files, so that a swap loads anew instead of sharing the worker."""
    return tuple(_write(folder / str(number), name, data) for number in range(2))


def _write(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    return path


# --- one run ----------------------------------------------------------------------------------------------------------
async def measure(side: Side, scene: Scene, picture: bytes) -> Found:
    """Swaps SWAPS times under load."""
    found = Found(scene.name, side.name)
    said = await side.swap(scene.files[0])
    if said["error"]:
        raise SystemExit(f"{side.name} does not serve {scene.files[0].name}: {said['error']}")
    target = side.make_target(picture)
    await run_closed(target, clients=2, requests=100)
    closed = await run_closed(target, clients=2, requests=300)
    found.rate = RATE_SHARE * len(closed.answered) / closed.lasted_s
    windows: list[tuple[float, float]] = []
    done, run = asyncio.Event(), Run()
    loading = asyncio.create_task(run_open(target, rate=found.rate, seconds=600, run=run, until=done))
    await asyncio.sleep(2 * BETWEEN_S)
    for number in range(1, SWAPS + 1):
        said = await side.swap(scene.files[number % len(scene.files)])
        windows.append((said["began_s"], said["freed_s"]))
        found.refused_swaps += bool(said["error"])
        await asyncio.sleep(BETWEEN_S)
    while len(run.shots) < REQUESTS_MIN:
        await asyncio.sleep(0.1)
    done.set()
    await loading
    _judge(found, run, windows)
    return found


def _judge(found: Found, run: Run, windows: list[tuple[float, float]]) -> None:
    swapping, steady = [], []
    for shot in run.answered:
        due = run.began_s + shot.due_s
        inside = any(due < ended and due + shot.took_s > began for began, ended in windows)
        (swapping if inside else steady).append(shot.took_s)
    found.requests, found.failed = len(run.shots), len(run.shots) - len(run.answered)
    found.faults = sorted({shot.fault or str(shot.status) for shot in run.shots} - {"200"})
    found.steady_p50, found.steady_p99 = get_quantile(steady, 0.5), get_quantile(steady, 0.99)
    found.swap_p99, found.worst = get_quantile(swapping, 0.99), max(swapping, default=0.0)
    found.swap_s = statistics.median(ended - began for began, ended in windows)


async def measure_memory(side: Side, scene: Scene, picture: bytes) -> float:
    """Memory of the whole tree after MEMORY_SWAPS swaps / after one."""
    target, sizes = side.make_target(picture), []
    for number in range(1, MEMORY_SWAPS + 1):
        await side.swap(scene.files[number % len(scene.files)])
        await run_closed(target, clients=2, requests=20)
        sizes.append(read_pss_bytes(side.pid))
    return sizes[-1] / sizes[0]


if __name__ == "__main__":
    only = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        picture = make_picture()
        for scene in make_scenes(Path(name)):
            if only and not any(word in scene.name for word in only):
                continue

            async def go() -> None:
                async with open_ours() as side:
                    found = await measure(side, scene, picture)
                    print(found, round(found.p99_ratio, 2), round(found.worst_ratio, 2), flush=True)

            asyncio.run(go())
