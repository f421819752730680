"""The Dockerfile: what it promises, and its install steps run in a clean environment that then serves a model."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeferry.publish.deployment import API_PORT, STORAGE

ROOT = Path(__file__).resolve().parent.parent.parent
NEVER_ON_A_DEVICE = ("rich", "obstore", "torch", "opencv", "tensorflow", "adlfs", "azure", "pytest", "psycopg", "mypy")
READY_TIMEOUT_S = 60.0
INSTALL_TIMEOUT_S = 600


def read_instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of every line, continuation lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined)]


def read_stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, without its FROM."""
    stages: list[list[tuple[str, str]]] = []
    for word, rest in read_instructions():
        if word == "FROM":
            stages.append([])
        else:
            stages[-1].append((word, rest))
    return stages


def get_last(word: str) -> str:
    return [rest for name, rest in read_stages()[-1] if name == word][-1]


def test_both_stages_are_slim_and_of_one_python() -> None:
    bases = {rest.split()[0] for word, rest in read_instructions() if word == "FROM"}
    assert len(bases) == 1
    assert bases.pop().endswith("-slim")


def test_it_runs_as_nobody_in_particular() -> None:
    user = get_last("USER")
    assert user == "10001:10001"
    words = [word for word, _ in read_stages()[-1]]
    assert words.index("USER") > max(index for index, word in enumerate(words) if word == "RUN")


def test_it_keeps_models_in_the_shared_storage_and_asks_for_its_health() -> None:
    assert get_last("VOLUME") == STORAGE
    assert json.loads(get_last("CMD"))[-1] == STORAGE
    assert get_last("EXPOSE") == str(API_PORT)
    assert f"http://127.0.0.1:{API_PORT}/healthz" in get_last("HEALTHCHECK")
    assert json.loads(get_last("ENTRYPOINT")) == ["edgeferry"]


def test_everything_it_copies_is_let_through_by_dockerignore() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for name, rest in read_stages()[0] if name == "COPY" for word in shlex.split(rest)[:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


# --- the install steps, run ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The virtual environment that the first stage makes: its COPY and RUN lines, below a folder of our own."""
    top = tmp_path_factory.mktemp("image")
    places = {"/opt/edgeferry": str(top / "edgeferry"), "/build": str(top / "build")}
    work = top / "build"
    work.mkdir()
    for word, rest in read_stages()[0]:
        if word == "COPY":
            *sources, target = shlex.split(rest)
            _copy([ROOT / source for source in sources], work / target, into=target.endswith("/"))
        elif word == "RUN":
            _run(_place(rest, places), work)
    return top / "edgeferry"


def _copy(sources: list[Path], target: Path, *, into: bool) -> None:
    for source in sources:
        place = target / source.name if into else target
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, place)


def _place(command: str, places: dict[str, str]) -> str:
    for there, here in places.items():
        command = command.replace(there, here)
    return command.replace("python ", f"{sys.executable} ", 1) if command.startswith("python ") else command


def _run(command: str, folder: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def _ask(installed: Path, *words: str) -> str:
    done = subprocess.run(
        [installed / "bin" / words[0], *words[1:]], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["device", "run", "--help"], ["serve", "--help"]])
def test_the_installed_command_starts(installed: Path, words: list[str]) -> None:
    assert "edgeferry" in _ask(installed, "edgeferry", *words)


def test_a_device_carries_nothing_of_operator_or_hub(installed: Path) -> None:
    names = {package["name"].lower() for package in json.loads(_ask(installed, "pip", "list", "--format=json"))}
    assert {"edgeferry", "onnxruntime", "ai-edge-litert", "tuf"} <= names
    assert not [name for name in names if name == "onnx" or name.startswith(NEVER_ON_A_DEVICE)]


def test_the_operators_verbs_say_which_extra_they_need(installed: Path) -> None:
    done = subprocess.run(
        [installed / "bin" / "edgeferry", "publish", "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "edgeferry[operator]" in done.stderr


@pytest.fixture
def served(installed: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of `edgeferry serve` with one of our models of each engine, in the clean environment."""
    gauge = ROOT / "models" / "gauge" / "1.0.0"
    models = [str(shutil.copy(gauge / name, tmp_path / name)) for name in ("gauge.onnx", "gauge-int8.tflite")]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            [installed / "bin" / "edgeferry", "serve", *models, "--port", "0", "--json"],
            stdout=subprocess.PIPE, stderr=errors, text=True, cwd=tmp_path,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (tmp_path / "errors").read_text()[-3000:]
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            process.wait(timeout=30)


def test_the_installed_device_serves_both_engines_and_is_healthy(installed: Path, served: str) -> None:
    """The health check is the image's own, asked of the port that this server really has."""
    *_, words = get_last("HEALTHCHECK").partition("CMD ")
    health = [word.replace(f"http://127.0.0.1:{API_PORT}", served.rstrip("/")) for word in json.loads(words)]
    deadline = time.monotonic() + READY_TIMEOUT_S
    while subprocess.run([installed / "bin" / health[0], *health[1:]], check=False, timeout=30).returncode != 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    picture = next((ROOT / "models" / "gauge" / "golden").glob("*.jpg"))
    for model in ("gauge", "gauge-int8"):
        answer = json.loads(
            _ask(installed, "python", "-c", POST, f"{served.rstrip('/')}/v1/models/{model}/predict", str(picture))
        )
        assert answer["model"] == model


POST = """
import sys, urllib.request
picture = open(sys.argv[2], "rb").read()
request = urllib.request.Request(sys.argv[1], data=picture, headers={"Content-Type": "image/jpeg"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""
