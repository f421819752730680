"""Real models in real workers: what the guide's story needs, and files that want to do harm."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeferry.errors import EdgeferryError, GoldenMismatch, LimitExceeded, ModelUnreadable
from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, Stage
from edgeferry.runtime.child import WorkerSettings, start_worker
from edgeferry.vision.answer import DetectionAnswer
from runtime.versions import MNIST, SSD, YOLO, make_golden_file, make_picture, make_version

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


async def test_an_answer_too_large_for_any_frame_fails_alone(tmp_path: Path) -> None:
    """Ten bodies, each with a label of two megabytes."""
    bodies = np.random.default_rng(1).uniform(0.5, 0.9, (1, 10, 56)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["known"], ["bodies"])],
        "bodies",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, (1, 8, 8, 3))],
        [helper.make_tensor_value_info("bodies", TensorProto.FLOAT, bodies.shape)],
        [numpy_helper.from_array(bodies, "known")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    stage = Stage(
        file="m.onnx",
        task="pose",
        input=InputSpec(width=8, height=8, layout="nhwc", dtype="uint8"),
        answer=AnswerSpec(family="movenet"),
        labels=LabelSpec(names=("x" * 2_000_000,)),
    )
    worker = await start_worker(make_version(tmp_path, stage), SETTINGS)
    try:
        for _ in range(2):
            with pytest.raises(LimitExceeded):
                await worker.infer(make_picture("red"), timeout_s=30)
    finally:
        await worker.close()
