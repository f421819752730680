"""Puts a fleet on the embedded hub and measures what it holds: memory, twin patches, a reconnect storm.

Prints a table, takes `--json FILE`, writes its section of docs/benchmarks.md with `--write FILE`, and exits non-zero
when a figure falls short. The clients stand in hub_load.py, the hub's process in hub_site.py.

Rules:
- Judged are counts and memory. Times, rates and CPU belong to the machine: they are told, not judged.
- It ends in time: after `END_AFTER_S` it gives up, which is a failure.
- Clients and hub are two processes on the same machine: times hold the clients' own work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hub_site import HERE, HubProcess, Memory, open_hub_process, register
from page_sections import write_section

MEMORY_MAX_BYTES = 300 * 1000 * 1000
"""Resident, with all TLS modules connected."""
SETTLE_S = 1.0
END_AFTER_S = 24 * 60
Do = Callable[..., dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Scene:
    """One hub and the fleet that it carries."""

    name: str
    modules: int
    tls: bool
    memory_max_bytes: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the fleet did, and what it cost the hub. `answer` is what the clients counted."""

    scene: Scene
    name: str
    answer: dict[str, Any]
    cpu_s: float
    memory: Memory

    @property
    def shortfalls(self) -> list[str]:
        """What falls short of what is asked, in words."""
        found = [f"{count:,} x {name}" for name, count in self.answer.get("failures", {}).items()]
        for word in ("delivered", "acknowledged"):
            if self.answer.get(word, self.scene.modules) != self.scene.modules:
                found.append(f"{self.answer[word]:,} of {self.scene.modules:,} {word}")
        limit = self.scene.memory_max_bytes
        if limit is not None and self.memory.resident > limit:
            found.append(f"{_show_mb(self.memory.resident)} resident, at most {_show_mb(limit)} asked")
        return found


def make_scenes(tls_modules: int, plain_modules: int) -> list[Scene]:
    """The two fleets."""
    return [Scene("TLS", tls_modules, True, MEMORY_MAX_BYTES), Scene("plain TCP", plain_modules, False, None)]


def run_scene(scene: Scene) -> Iterator[Step]:
    """Starts a hub, brings its fleet up, and yields what each step came to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _tell(f"{scene.name}: registering {scene.modules:,} modules")
        service_key, modules = register(folder / "data", scene.modules)
        with open_hub_process(folder, tls=scene.tls) as hub:
            yield Step(scene, "nobody connected", {}, hub.read_cpu_s(), hub.read_memory())
            site = {**hub.facts, "tls": scene.tls, "service_key": service_key, "modules": modules}
            (folder / "site.json").touch(mode=0o600)
            (folder / "site.json").write_text(json.dumps(site))
            with open_clients(folder / "site.json") as do:
                yield from _run_steps(scene, hub, do)


def _run_steps(scene: Scene, hub: HubProcess, do: Do) -> Iterator[Step]:
    yield _measure(scene, hub, "all connect", lambda: do("connect"))
    yield _measure(scene, hub, "a twin patch to each", lambda: do("patch", round=1))
    if scene.tls:
        do("drop")
        yield _measure(scene, hub, "all come back at once", lambda: do("connect", at_once=scene.modules))
        yield _measure(scene, hub, "again a twin patch to each", lambda: do("patch", round=2))


def _measure(scene: Scene, hub: HubProcess, name: str, act: Callable[[], dict[str, Any]]) -> Step:
    _tell(f"{scene.name}: {name}")
    before = hub.read_cpu_s()
    answer = act()
    time.sleep(SETTLE_S)
    step = Step(scene, name, answer, hub.read_cpu_s() - before, hub.read_memory())
    for line in (f"{show_step(step)}", *(f"FALLS SHORT: {text}" for text in step.shortfalls)):
        _tell(f"  {line}")
    return step


@contextmanager
def open_clients(site: Path) -> Iterator[Do]:
    """The process of the clients; yields what hands it a step and returns what it counted."""
    command: list[str | Path] = [sys.executable, HERE / "hub_load.py", site]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        if child.stdin is None or child.stdout is None:
            raise SystemExit("the clients have no pipes")
        stdin, stdout = child.stdin, child.stdout

        def do(step: str, **values: Any) -> dict[str, Any]:
            stdin.write(json.dumps({"do": step, **values}) + "\n")
            stdin.flush()
            line = stdout.readline()
            if not line:
                raise SystemExit(f"the clients ended during '{step}'")
            answer: dict[str, Any] = json.loads(line)
            return answer

        try:
            yield do
        finally:
            child.terminate()


def show_step(step: Step) -> str:
    """Time, rate and CPU of a step, in words."""
    seconds = step.answer.get("seconds")
    if seconds is None:
        return f"{_show_mb(step.memory.resident)} resident"
    cpu = step.cpu_s / step.scene.modules * 1000
    return (
        f"{seconds:.1f} s, {step.scene.modules / seconds:,.0f} a second, {cpu:.2f} s of the hub's CPU for 1,000,"
        f" {_show_mb(step.memory.resident)} resident"
    )


def make_table(steps: list[Step]) -> str:
    """The steps as a Markdown table."""
    head = (
        "| fleet | step | done | failures | seconds | longest s | hub CPU s per 1,000 | resident MB | anonymous MB |"
        " peak MB | holds |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|\n"
    )
    return head + "\n".join(map(_make_line, steps)) + "\n"


def _make_line(step: Step) -> str:
    scene, answer = step.scene, step.answer
    failures = sum(answer.get("failures", {}).values())
    done = answer.get("acknowledged", scene.modules - failures if answer else 0)
    sizes = [f"{size / 1e6:,.0f}" for size in (step.memory.resident, step.memory.anonymous, step.memory.peak)]
    cells = [
        f"{scene.modules:,} modules, {scene.name}",
        step.name,
        f"{done:,}",
        f"{failures:,}",
        f"{answer['seconds']:.1f}" if answer else "",
        f"{answer['longest_s']:.1f}" if "longest_s" in answer else "",
        f"{step.cpu_s / scene.modules * 1000:.2f}" if answer else "",
        *sizes,
        "no" if step.shortfalls else "yes",
    ]
    return f"| {' | '.join(cells)} |"


def make_section(steps: list[Step], took_s: float) -> str:
    """What stands in docs/benchmarks.md."""
    machine = f"{os.cpu_count()} cores shared with the clients, Python {platform.python_version()}"
    fleet = f"{steps[0].scene.modules:,} TLS modules"
    return (
        "## A fleet on the embedded hub\n\n"
        f"Asked: no failure, every twin patch delivered and its reported patch acknowledged, and the {fleet}"
        f" within {_show_mb(MEMORY_MAX_BYTES)} resident throughout.\n\n"
        "A module connects by SAS with a persistent session, subscribes to desired patches and twin responses once, and"
        ' answers each twin patch with a reported patch at QoS 1. "Come back at once": all connections are cut and all'
        " modules connect again in the same moment, each with one try of 60 s, without subscribing again. Times, rates"
        f" and CPU are this machine's ({machine}; the whole run took {took_s:.0f} s).\n\n"
        f"{make_table(steps)}"
    )


def _give_up(*_: object) -> None:
    raise SystemExit(f"FALLS SHORT: not done after {END_AFTER_S / 60:.0f} minutes")


def _show_mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Runs the scenes, prints, writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--tls-modules", type=int, default=5_000)
    parser.add_argument("--plain-modules", type=int, default=10_000)
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(END_AFTER_S)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the hub inherits it
    scenes, began = make_scenes(options.tls_modules, options.plain_modules), time.monotonic()
    steps = [step for scene in scenes for step in run_scene(scene)]
    took_s = time.monotonic() - began
    print(make_table(steps))
    if options.json:
        options.json.write_text(json.dumps([asdict(step) for step in steps], indent=1) + "\n")
    if options.write:
        write_section(options.write, "make bench-hub", make_section(steps, took_s))
    short = [(step, text) for step in steps for text in step.shortfalls]
    for step, text in short:
        print(f"FALLS SHORT: {step.scene.name}, {step.name}: {text}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
