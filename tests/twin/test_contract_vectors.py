"""The vectors of docs/formats/twin.md, and the page itself: its examples are vectors, its record and messages ours."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeferry.agent.announce import INPUT, OUTPUT
from edgeferry.agent.loose import make_local_target
from edgeferry.agent.reporter import make_reported
from edgeferry.twin.contract import REPORTED_RECORD_MAX_BYTES, Desired, read_desired
from edgeferry.twin.status import DeviceStatus, LedgerStatus, ModelStatus

ROOT = Path(__file__).parent.parent.parent
VECTORS = ROOT / "tests" / "vectors" / "twin"
PAGE = (ROOT / "docs" / "formats" / "twin.md").read_text()
EXAMPLE = re.compile(r"`(\S+)`:\n\n```json\n(.*?)```", re.S)
EXAMPLES = {name: json.loads(text) for name, text in EXAMPLE.findall(PAGE)}
SECRETS = ("sig=abc",)


def list_vectors(prefix: str) -> list[Path]:
    return sorted(VECTORS.glob(f"{prefix}-*.json"))


def show(desired: Desired) -> dict[str, Any]:
    """What was read, in the words of a vector: what is at its default is left out."""
    models = [
        {"model": one.model, "version": one.version, "manifest": str(one.manifest), "try": one.try_}
        | {"priority": one.priority}
        for one in desired.models
    ]
    shown = {
        "version": desired.version,
        "classic": asdict(desired.classic) if desired.classic else None,
        "repo": desired.repo,
        "sas": desired.sas,
        "models": models,
        "link": dict(desired.link),
        "policy": dict(desired.policy),
        "problems": [problem.place for problem in desired.problems],
    }
    return {key: value for key, value in shown.items() if value}


@pytest.mark.parametrize("path", [*list_vectors("good"), *list_vectors("bad")], ids=lambda path: path.stem)
def test_every_vector_is_read_as_it_says(path: Path) -> None:
    vector = json.loads(path.read_text())
    found = read_desired(vector["desired"])
    assert show(found) == vector["read"]
    assert bool(found.problems) == path.stem.startswith("bad-")
    assert all(problem.error.code == "twin_invalid" for problem in found.problems)
    assert not any(secret in problem.error.message for problem in found.problems for secret in SECRETS)


def test_the_vectors_are_there() -> None:
    assert len(list_vectors("good")) >= 12
    assert len(list_vectors("bad")) >= 20


def test_more_than_64_models_are_none() -> None:
    digest = "sha256:" + "ab" * 32
    models = {f"m{number}": {"version": "1", "manifest": digest} for number in range(65)}
    found = read_desired({"edgeferry": {"repo": "https://a", "models": models}})
    assert (found.models, [problem.place for problem in found.problems]) == ((), ["edgeferry.models"])
    del models["m0"]
    assert len(read_desired({"edgeferry": {"repo": "https://a", "models": models}}).models) == 64


def test_every_block_of_json_on_the_page_has_a_name() -> None:
    assert len(EXAMPLES) == PAGE.count("```json")


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.endswith(".json")])
def test_an_example_on_the_page_is_a_vector(name: str) -> None:
    assert json.loads((VECTORS / name).read_text())["desired"] == EXAMPLES[name]


def test_the_page_shows_vectors() -> None:
    assert sum(name.endswith(".json") for name in EXAMPLES) >= 3


def test_the_reported_record_on_the_page_is_what_a_device_reports() -> None:
    error = {"code": "link_down", "message": "no route to the server", "advice": "Check the network."}
    view = DeviceStatus(
        device="platform-7/edgeferry",
        role="both",
        observed=12,
        models=(
            ModelStatus(model="detector", active="1.0.0", target="1.1.0", state="WAITING", progress=0.42, error=error),
            ModelStatus(model="gauge", active="1.0.0", previous="0.9.0", target="1.0.0", state="ACTIVE"),
        ),
        ledger=LedgerStatus(day_bytes=48_120, month_bytes=1_883_204),
        disk_free_bytes=5_120 << 20,
        agent_version="0.1.0",
    )
    assert make_reported(view) == EXAMPLES["reported"]


def test_the_record_and_its_limit_are_those_of_the_page() -> None:
    assert f"{REPORTED_RECORD_MAX_BYTES} bytes" in PAGE
    assert len(msgspec.json.encode(EXAMPLES["reported"])) <= REPORTED_RECORD_MAX_BYTES


def test_the_message_on_the_page_is_one_that_an_inferencer_takes(tmp_path: Path) -> None:
    message = EXAMPLES[OUTPUT]
    for name in message.values():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    target = make_local_target(message, tmp_path)
    assert {"local_model_path": target.model_path, "local_labelmap_path": target.label_path} == message
    assert INPUT in PAGE
