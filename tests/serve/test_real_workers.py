"""Slots and API over real worker processes and real models: switches under load, deaths, bad pictures."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from PIL import Image

from edgeferry.app.local_models import open_local_versions
from edgeferry.errors import GoldenMismatch, ModelError
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Golden, TruthObject
from edgeferry.model.spec import LabelSpec, ModelSpec, Thresholds
from edgeferry.model.stored import GoldenFile, StoredVersion
from edgeferry.serve.engine import ChildEngine
from edgeferry.serve.slots import Slots, SlotsSettings

if TYPE_CHECKING:
    from tests.serve.conftest import ApiClient, OpenClient, Until

LABELS = ("worker", "no_helmet", "fire", "vessel", "gauge", "leak")


def _open(path: Path, version: str, prefix: str = "", **changes: Any) -> StoredVersion:
    """The demo detector as `detector@version`; `prefix` stands before each of its labels."""
    with open_local_versions([path]) as (found,):
        (stage,) = found.spec.stages
        labels = LabelSpec(names=tuple(prefix + label for label in LABELS), offset=stage.labels.offset)
        spec = ModelSpec(stages=(msgspec.structs.replace(stage, labels=labels, **changes),))
        return StoredVersion("detector", version, f"detector:{version}", found.folder, spec)


@pytest.fixture
def onnx(demo_models: Path) -> Path:
    return demo_models / "detector" / "1.1.0" / "detector.onnx"


@pytest.fixture
def tflite(demo_models: Path) -> Path:
    return demo_models / "detector" / "1.1.0" / "detector-fp32.tflite"


@pytest.fixture
def scenes(demo_models: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((demo_models / "scenes").glob("*.jpg"))]


@pytest.fixture
async def slots() -> AsyncIterator[Slots]:
    slots = Slots(ChildEngine(), SlotsSettings(concurrency=2, waiting=64))
    yield slots
    await slots.close()


@pytest.fixture
async def client(slots: Slots, open_client: OpenClient) -> AsyncIterator[ApiClient]:
    async with open_client(slots) as client:
        yield client


def _get_worker(slots: Slots) -> Any:
    serving = slots._slots["detector"].serving
    assert serving is not None
    return serving.worker.port


async def test_switching_between_engines_and_labels_under_load_fails_none_and_mixes_none(
    slots: Slots, client: ApiClient, onnx: Path, tflite: Path, scenes: list[bytes]
) -> None:
    versions = [
        _open(onnx, "1.0.0", "a-"),
        _open(onnx, "1.0.1", "b-"),
        _open(tflite, "2.0.0", "c-"),
        _open(tflite, "2.0.1", "d-"),
    ]
    prefixes = {version.version: version.spec.stages[0].labels.names[0][:2] for version in versions}
    await slots.switch(versions[0])
    answers: list[tuple[int, Any]] = []
    switching = True

    async def load() -> None:
        while switching:
            scene = scenes[len(answers) % len(scenes)]
            answered = await client.post("/v1/models/detector/predict", scene)
            answers.append((answered.status, answered.json))

    async def switch() -> None:
        nonlocal switching
        for version in (*versions[1:], versions[0]):
            await slots.prove(version)
            await slots.switch(version)
            await asyncio.sleep(0.2)
        switching = False

    await asyncio.gather(switch(), *(load() for _ in range(4)))
    assert {status for status, _ in answers} == {200}
    for _, said in answers:
        found = {found["label"][:2] for found in said["answer"]["objects"]}
        assert found == {prefixes[said["version"]]}, said["version"]
    assert {said["version"] for _, said in answers} == set(prefixes)


async def test_a_version_with_other_labels_shares_the_worker_and_other_files_do_not(
    slots: Slots, onnx: Path, tflite: Path, until: Until
) -> None:
    await slots.switch(_open(onnx, "1.0.0", "a-"))
    first = _get_worker(slots)
    await slots.switch(_open(onnx, "1.0.1", "b-", thresholds=Thresholds(score=0.9)))
    assert _get_worker(slots) is first
    await slots.switch(_open(tflite, "2.0.0"))
    assert _get_worker(slots) is not first
    await until(lambda: not Path(f"/proc/{first.pid}").exists())


async def test_rotated_labels_are_refused_on_the_shared_worker_and_the_old_serve_on(
    slots: Slots, client: ApiClient, onnx: Path, scenes: list[bytes], tmp_path: Path
) -> None:
    good = _open(onnx, "1.0.0")
    await slots.switch(good)
    said = (await client.post("/v1/models/detector/predict", scenes[0])).json
    objects = said["answer"]["objects"]
    picture = tmp_path / "golden.jpg"
    picture.write_bytes(scenes[0])
    truth = tuple(TruthObject(label=found["label"], box=tuple(found["box"])) for found in objects)
    golden = Golden(input=str(Digest.of(scenes[0])), size=len(scenes[0]), truth=truth)
    names = LABELS[1:] + LABELS[:1]
    (stage,) = good.spec.stages
    bad_spec = ModelSpec(
        stages=(msgspec.structs.replace(stage, labels=LabelSpec(names=names, offset=stage.labels.offset)),)
    )
    bad = StoredVersion("detector", "1.0.1", "bad", good.folder, bad_spec, (GoldenFile(golden, picture),))
    with pytest.raises(GoldenMismatch):
        await slots.prove(bad)
    again = (await client.post("/v1/models/detector/predict", scenes[0])).json
    assert (again["version"], again["answer"]) == ("1.0.0", said["answer"])


async def test_a_killed_worker_is_back_and_only_what_it_held_fails(
    slots: Slots, client: ApiClient, onnx: Path, scenes: list[bytes], until: Until
) -> None:
    await slots.switch(_open(onnx, "1.0.0"))
    statuses: list[tuple[int, str]] = []

    async def load() -> None:
        for _ in range(25):
            answered = await client.post("/score", scenes[0])
            statuses.append((answered.status, "" if answered.status == 200 else answered.code))

    async def kill() -> None:
        await until(lambda: len(statuses) > 20)
        os.kill(_get_worker(slots).pid, signal.SIGKILL)

    await asyncio.gather(kill(), *(load() for _ in range(4)))
    lost = [found for found in statuses if found[0] != 200]
    assert len(statuses) == 100
    assert set(lost) <= {(503, "worker_lost")}
    assert len(lost) <= 4, "only requests in flight"
    assert slots.get_health("detector").deaths == 1
    assert (await client.get("/readyz")).status == 200


async def test_what_is_no_model_never_serves_and_the_live_one_stays(
    slots: Slots, client: ApiClient, onnx: Path, scenes: list[bytes], tmp_path: Path
) -> None:
    good = _open(onnx, "1.0.0")
    await slots.switch(good)
    data = onnx.read_bytes()
    for number, content in enumerate((b"", data[: len(data) // 2], b"\x00" * 1000, os.urandom(5000))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "detector.onnx").write_bytes(content)
        bad = StoredVersion("detector", f"2.0.{number}", f"bad:{number}", folder, good.spec)
        with pytest.raises(ModelError):
            await slots.prove(bad)
        assert (await client.post("/score", scenes[0])).status == 200


def _encode(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


async def test_pictures_of_every_odd_kind_get_an_answer_or_a_clear_error(
    slots: Slots, client: ApiClient, onnx: Path, scenes: list[bytes]
) -> None:
    await slots.switch(_open(onnx, "1.0.0"))
    worker = _get_worker(slots)
    scene = Image.open(io.BytesIO(scenes[0]))
    good = [_encode(scene.convert(mode), "PNG") for mode in ("L", "LA", "RGBA", "P", "1")]
    good += [_encode(scene.convert("CMYK"), "JPEG"), _encode(scene, "BMP"), _encode(scene.convert("L"), "TIFF")]
    good.append(_encode(Image.new("RGB", (1, 1)), "PNG"))
    for picture in good:
        answered = await client.post("/score", picture)
        assert answered.status == 200, answered.body
    bomb = _encode(Image.new("1", (20_000, 10_000)), "PNG")
    bad = [(bomb, 413), (scenes[0][:300], 400), (scenes[0][: len(scenes[0]) // 2], 400), (b"\xff\xd8\xff", 400)]
    bad += [(b"no picture" * 200, 400), (b"%PDF-1.7", 415), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415)]
    for picture, status in bad:
        answered = await client.post("/score", picture)
        assert answered.status == status, answered.body
        assert answered.code in {"picture_unreadable", "picture_too_large", "media_type_refused"}
        assert "/" not in answered.json["error"]["message"], "no paths"
    assert worker.alive
    assert _get_worker(slots) is worker


async def test_the_answer_is_drawn_by_the_worker(
    slots: Slots, client: ApiClient, onnx: Path, scenes: list[bytes]
) -> None:
    await slots.switch(_open(onnx, "1.0.0"))
    for media_type, kind in (("image/png", "PNG"), ("image/jpeg", "JPEG")):
        answered = await client.post("/v1/models/detector/predict", scenes[0], headers={"Accept": media_type})
        drawn = Image.open(io.BytesIO(answered.body))
        assert (drawn.format, drawn.size) == (kind, (512, 512))
        assert answered.headers["Content-Type"] == media_type


async def test_every_worker_ends_with_its_slots(onnx: Path, tflite: Path) -> None:
    slots = Slots(ChildEngine())
    await slots.switch(_open(onnx, "1.0.0"))
    await slots.prove(_open(tflite, "2.0.0"))
    candidate = slots._slots["detector"]._candidate
    assert candidate is not None
    pids = [_get_worker(slots).pid, candidate.worker.port.pid]  # type: ignore[attr-defined]
    await slots.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
