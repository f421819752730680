"""Real models in real workers: what the guide's story needs, and files that want to do harm."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from edgeferry.errors import EdgeferryError, GoldenMismatch, ModelUnreadable
from edgeferry.model.spec import LabelSpec, Stage
from edgeferry.runtime.child import WorkerSettings, start_worker
from edgeferry.vision.answer import DetectionAnswer
from runtime.versions import MNIST, SSD, YOLO, make_golden_file, make_version

SETTINGS = WorkerSettings(load_timeout_s=60.0)


@pytest.mark.parametrize("stage", [SSD, YOLO], ids=["ssd", "tiny_yolov3"])
async def test_a_worker_finds_the_cat(shared_models: Path, stage: Stage) -> None:
    worker = await start_worker(make_version(shared_models / "detection", stage), SETTINGS)
    try:
        data = (shared_models / "images/cat.jpg").read_bytes()
        replies = await asyncio.gather(*(worker.infer(data, timeout_s=30) for _ in range(6)))
        for reply in replies:
            assert isinstance(reply.answer, DetectionAnswer)
            assert [found.label for found in reply.answer.objects] == ["cat"]
            assert reply.answer.objects[0].score >= 0.6
            assert (reply.width, reply.height) == (1280, 720)
    finally:
        await worker.close()


async def test_a_classifier_with_the_wrong_labels_is_refused(shared_models: Path, tmp_path: Path) -> None:
    golden = make_golden_file(tmp_path, (shared_models / "images/mnist_nine.png").read_bytes(), "9")
    folder = shared_models / "classification"
    worker = await start_worker(make_version(folder, MNIST, golden), SETTINGS)
    await worker.close()
    shifted = msgspec.structs.replace(MNIST, labels=LabelSpec(names=tuple("1234567890")))
    with pytest.raises(GoldenMismatch):
        await start_worker(make_version(folder, shifted, golden), SETTINGS)


@pytest.mark.parametrize("data", [b"", b"no model", bytes(10_000)], ids=["empty", "text", "zeros"])
@pytest.mark.parametrize("stage", [SSD, MNIST], ids=["litert", "onnx"])
async def test_bytes_that_are_no_model_are_unreadable(tmp_path: Path, stage: Stage, data: bytes) -> None:
    (tmp_path / stage.file).write_bytes(data)
    (tmp_path / "labelmap.txt").write_text("cat\n")
    with pytest.raises(ModelUnreadable):
        await start_worker(make_version(tmp_path, stage), SETTINGS)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("stage", "picture"), [(SSD, "cat.jpg"), (MNIST, "mnist_nine.png")])
async def test_a_damaged_model_fails_as_a_model_error_or_serves_and_we_live(
    shared_models: Path, tmp_path: Path, stage: Stage, picture: str, seed: int
) -> None:
    chance = random.Random(seed)
    data = bytearray((shared_models / stage.task / stage.file).read_bytes())
    for _ in range(40):
        data[chance.choice([chance.randrange(len(data)), chance.randrange(2000)])] = chance.randrange(256)
    (tmp_path / stage.file).write_bytes(data)
    (tmp_path / "labelmap.txt").write_text("???\ncat\n")
    try:
        worker = await start_worker(make_version(tmp_path, stage), SETTINGS)
    except EdgeferryError as error:
        assert error.code in ("model_unreadable", "model_unsupported", "model_crashed", "model_timeout")
        return
    try:
        await worker.infer((shared_models / "images" / picture).read_bytes(), timeout_s=20)
    except EdgeferryError as error:
        assert error.code in ("model_unsupported", "worker_lost")
    finally:
        await worker.close()
