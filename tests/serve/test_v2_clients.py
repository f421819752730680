"""An unmodified tritonclient against the API over real workers, a real repository and real models."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeferry.app.local_models import open_local_versions
from edgeferry.app.serving import open_api
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.open import open_session
from edgeferry.runtime.session import EngineSettings
from edgeferry.serve.api import make_app
from edgeferry.serve.engine import ChildEngine
from edgeferry.serve.slots import Slots
from edgeferry.storage.repository import Repository
from edgeferry.vision.image import read_picture
from edgeferry.vision.preprocess import make_input
from other_programs import require_environment

CLIENT = Path(__file__).parent / "clients" / "triton.py"
SCENE, DIAL = "boat-landing.jpg", "high-700009.jpg"
Seen = dict[str, Any]


def _store(repository: Repository, path: Path, name: str, *, model: str = "", damaged: bool = False) -> StoredVersion:
    """The version of the model file at `path`, stored as a device stores a bundle's loose files."""
    with open_local_versions([path]) as (found,):
        file = path
        if damaged:
            file = repository.partial_folder / path.name
            file.write_bytes(path.read_bytes()[:5000])
        model, version = name.split("@")
        return repository.store_classic(
            model, version, identity=f"classic:{name}", files={path.name: file}, spec=found.spec
        )


def _prepare(version: StoredVersion, picture: Path) -> np.ndarray[Any, Any]:
    spec = version.spec.stages[0].input
    assert spec is not None
    tensor, _ = make_input(read_picture(picture.read_bytes()), spec)
    return tensor


@pytest.fixture
async def seen(demo_models: Path, tmp_path: Path) -> AsyncIterator[Seen]:
    """What the client saw of a device that serves detector@1.1.0 and gauge@1.0.0; others are stored."""
    python = await asyncio.to_thread(require_environment, "vision-clients", "tritonclient")
    repository = Repository(tmp_path / "storage")
    repository.prepare()
    detector = demo_models / "detector"
    active = _store(repository, detector / "1.1.0" / "detector.onnx", "detector@1.1.0")
    _store(repository, detector / "1.0.0" / "detector.onnx", "detector@1.0.0")
    _store(repository, detector / "1.2.0" / "detector.onnx", "detector@2.0.0", damaged=True)
    gauge = _store(repository, demo_models / "gauge" / "1.0.0" / "gauge.onnx", "gauge@1.0.0")
    scene, dial = demo_models / "scenes" / SCENE, demo_models / "gauge" / "golden" / DIAL
    np.save(tmp_path / "detector.npy", _prepare(active, scene))
    np.save(tmp_path / "gauge.npy", _prepare(gauge, dial))
    slots = Slots(ChildEngine())
    try:
        for version in (active, gauge):
            await slots.switch(version)
        async with open_api(make_app(slots, store=repository), "127.0.0.1", 0) as address:
            words = [f"127.0.0.1:{address.port}", tmp_path / "detector.npy", tmp_path / "gauge.npy", scene]
            printed = await _run(python, *map(str, words))
        yield {**json.loads(printed), **_read_alone(active, gauge, tmp_path)}
    finally:
        await slots.close()


async def _run(python: Path, *words: str) -> bytes:
    client = await asyncio.create_subprocess_exec(
        python, CLIENT, *words, stdout=asyncio.subprocess.PIPE, env={"PATH": os.environ["PATH"]}
    )
    printed, _ = await asyncio.wait_for(client.communicate(), 120)
    assert client.returncode == 0
    return printed


def _read_alone(active: StoredVersion, gauge: StoredVersion, folder: Path) -> Seen:
    """The outputs of both models, each run alone on the same tensors."""
    outputs = {}
    for version, name in ((active, "detector"), (gauge, "gauge")):
        session = open_session(version.folder / version.spec.stages[0].file, EngineSettings())
        outputs[name] = session.run({session.inputs[0].name: np.load(folder / f"{name}.npy")})
    return {
        "scores_alone": outputs["detector"]["scores"].tolist(),
        "classes_alone": next(iter(outputs["gauge"].values())).ravel().tolist(),
    }


async def test_tritonclient_reads_infers_classifies_and_moves_versions(seen: Seen, demo_models: Path) -> None:
    health, found, moved = seen["health"], seen["infer"], seen["moved"]
    assert [health[key] for key in ("live", "ready", "model_ready", "version_ready", "unknown_ready")] == [
        True, True, True, True, False,
    ]  # fmt: skip
    assert health["metadata"]["versions"] == ["1.0.0", "1.1.0"]
    assert health["metadata_of_version"]["versions"] == ["1.1.0"]
    assert health["metadata"]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [1, 3, 256, 256]}]
    assert health["unknown"][0] == "404"

    assert found["scores"] == pytest.approx(seen["scores_alone"], abs=1e-6)
    assert max(found["scores"]) > 0.5, "the scene shows something"
    assert found["same"]
    assert found["types"] == {"boxes": "FP32", "scores": "FP32", "classes": "INT64"}
    assert found["answered"] == ["detector", "1.1.0", "42"]
    for key, words in {
        "wrong_shape": "[1, 3, 10, 256]", "wrong_type": "FP64", "wrong_name": "found picture", "unknown": "9"
    }.items():  # fmt: skip
        status, message = found[key]
        assert status == ("404" if key == "unknown" else "400")
        assert words in message

    objects = seen["picture"]["objects"]
    assert {one["label"] for one in objects} <= {"worker", "no_helmet", "fire", "vessel", "gauge", "leak"}
    assert max(one["score"] for one in objects) > 0.5

    before, loaded, unloaded = ({f"{one['name']}@{one['version']}": one for one in moved[key]} for key in (
        "before", "loaded", "unloaded"))  # fmt: skip
    assert {name: one["state"] for name, one in before.items()} == {
        "detector@1.0.0": "UNAVAILABLE",
        "detector@1.1.0": "READY",
        "detector@2.0.0": "UNAVAILABLE",
        "gauge@1.0.0": "READY",
    }
    assert loaded["detector@1.0.0"]["state"] == "READY"
    assert moved["versions"] == ["1.0.0", "1.1.0"]
    assert moved["scores"] != found["scores"], "another version, other scores"
    assert [moved[key][0] for key in ("broken", "unknown", "files", "active")] == ["409", "404", "400", "409"]
    assert unloaded["detector@1.0.0"]["reason"] == "unloaded"
    assert unloaded["detector@2.0.0"]["reason"].startswith("model_unreadable")

    _check_classes(seen, (demo_models / "gauge" / "1.0.0" / "labels.txt").read_text().split())


def _check_classes(seen: Seen, labels: list[str]) -> None:
    """The best are those of the model, best first, with their labels."""
    scores = seen["classes_alone"]
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[:3]
    assert [int(index) for _, index, *_ in seen["classes"]] == best
    assert [float(score) for score, *_ in seen["classes"]] == pytest.approx([scores[i] for i in best], abs=1e-5)
    assert [label for *_, label in seen["classes"]] == [labels[index] for index in best]
