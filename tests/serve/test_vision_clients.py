"""Real clients of DeepStack and Custom Vision, unmodified, on the demo models: they find what our own route says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from edgeferry.app.local_models import open_local_versions
from edgeferry.app.serving import serve_models
from edgeferry.serve.access import make_access
from edgeferry.serve.api import ApiSettings
from other_programs import require_environment

CLIENTS = Path(__file__).parent / "clients"
TOKEN = "a-token"


@dataclass(frozen=True)
class Served:
    """Both demo models behind a token, and the picture that is asked about."""

    url: str
    picture: Path

    async def predict(self, model: str) -> Any:
        """What our own route answers."""
        async with aiohttp.ClientSession() as session:
            place = f"{self.url}/v1/models/{model}/predict?api_key={TOKEN}"
            async with session.post(place, data=self.picture.read_bytes()) as response:
                assert response.status == 200
                return (await response.json())["answer"]


@pytest.fixture
async def served(demo_models: Path) -> AsyncIterator[Served]:
    paths = [demo_models / "detector" / "1.1.0" / "detector.onnx", demo_models / "gauge" / "1.0.0" / "gauge.onnx"]
    settings = ApiSettings(access=make_access(TOKEN))
    with open_local_versions(paths) as versions:
        async with serve_models(versions, port=0, settings=settings, default_model=versions[0].model) as address:
            yield Served(address.url, min((demo_models / "scenes").glob("*.jpg")))


async def _run(client: str, *words: object) -> Any:
    python = await asyncio.to_thread(require_environment, "vision-clients", "clients of inference servers")
    child = await asyncio.create_subprocess_exec(
        python, CLIENTS / client, *map(str, words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(child.communicate(), 120)
    assert child.returncode == 0, errors.decode()
    return json.loads(output)


async def test_deepstack_python_finds_the_same_objects(served: Served) -> None:
    port = served.url.rpartition(":")[2]
    said = await _run("ask_deepstack.py", port, TOKEN, "detector", served.picture)
    objects = (await served.predict("detector"))["objects"]
    width, height = Image.open(served.picture).size
    assert [each["label"] for each in said["detection"]] == [each["label"] for each in objects] != []
    for found, each in zip(said["detection"], objects, strict=True):
        top, left, bottom, right = each["box"]
        expected = (left * width, top * height, right * width, bottom * height)
        pixels = [found[name] for name in ("x_min", "y_min", "x_max", "y_max")]
        assert pixels == pytest.approx(expected, abs=0.51)
        assert found["confidence"] == each["score"]
    assert said["custom"] == said["detection"]
    assert said["sure"] == []
    assert said["labels"] == sorted({each["label"] for each in objects})
    assert "status code: 401" in said["wrong token"]
    assert "404" in said["wrong model"]
    assert "404" in said["no faces"]


async def test_custom_visions_clients_find_the_same(served: Served) -> None:
    said = await _run("ask_custom_vision.py", served.url, TOKEN, "detector", "gauge", served.picture)
    objects = (await served.predict("detector"))["objects"]
    classes = (await served.predict("gauge"))["classes"]
    assert [(tag, score) for tag, score, _ in said["detect"]] == [(each["label"], each["score"]) for each in objects]
    for (_, _, box), each in zip(said["detect"], objects, strict=True):
        top, left, bottom, right = each["box"]
        found = [box[name] for name in ("left", "top", "width", "height")]
        assert found == pytest.approx([left, top, right - left, bottom - top])
    assert said["detect_nostore"] == said["detect"] != []
    assert said["classify"] == [[each["label"], each["score"], None] for each in classes]
    assert said["other_names"] == said["classify"]
    assert said["camera"]
    assert "Forbidden" in said["url"]


@pytest.mark.needs_shared
async def test_faces_and_objects_come_from_the_model_of_each(shared_models: Path) -> None:
    photo = shared_models / "images" / "grace_hopper.jpg"
    detector = shared_models / "detection" / "ssd_mobilenet_v1_1_metadata_1.tflite"
    paths = [shared_models / "face" / "version-RFB-320.onnx", detector]
    with open_local_versions(paths) as versions:
        async with serve_models(versions, port=0) as address:
            said = await _run("ask_faces.py", address.port, photo)
    width, height = Image.open(photo).size
    (face,) = said["faces"]
    person = next(each for each in said["objects"] if each["label"] == "person")
    assert face["label"] == "face"
    for found in (face, person):
        assert 0 <= found["x_min"] < found["x_max"] <= width
        assert 0 <= found["y_min"] < found["y_max"] <= height
    assert person["x_min"] <= (face["x_min"] + face["x_max"]) / 2 <= person["x_max"]
    assert face["y_max"] - face["y_min"] < person["y_max"] - person["y_min"]
