"""Both engines behind one Protocol, on real models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeferry.errors import ModelUnreadable, ModelUnsupported
from edgeferry.runtime.open import open_session
from edgeferry.runtime.session import EngineSettings, Session, TensorInfo

TWO = EngineSettings(threads=1, concurrency=2)


@pytest.fixture
def mnist(shared_models: Path) -> Session:
    return open_session(shared_models / "classification/mnist-8.onnx", TWO)


@pytest.fixture
def mobilenet(shared_models: Path) -> Session:
    return open_session(shared_models / "classification/mobilenet_v1_0.25_128_quant.tflite", TWO)


def test_onnx_says_what_it_takes_and_gives(mnist: Session) -> None:
    assert mnist.inputs == (TensorInfo("Input3", (1, 1, 28, 28), "float32"),)
    assert mnist.outputs == (TensorInfo("Plus214_Output_0", (1, 10), "float32"),)


def test_litert_says_what_it_takes_and_gives(mobilenet: Session) -> None:
    assert mobilenet.inputs == (TensorInfo("input", (1, 128, 128, 3), "uint8"),)
    assert mobilenet.outputs == (TensorInfo("MobilenetV1/Predictions/Reshape_1", (1, 1001), "uint8"),)


def test_open_dimensions_are_none(shared_models: Path) -> None:
    session = open_session(shared_models / "classification/mobilenet_v2_int8.onnx", TWO)
    assert session.inputs[0].shape == (None, 3, 224, 224)


def test_quantised_outputs_come_dequantised(mobilenet: Session) -> None:
    outputs = mobilenet.run({"input": np.zeros((1, 128, 128, 3), np.uint8)})
    (scores,) = outputs.values()
    assert scores.dtype == np.float32
    assert 0.0 < scores.max() <= 1.0
    assert np.allclose(scores * 256, np.rint(scores * 256))


def test_the_four_outputs_of_ssd_have_their_names(shared_models: Path) -> None:
    session = open_session(shared_models / "detection/ssd_mobilenet_v1_1_metadata_1.tflite", TWO)
    assert [info.shape for info in session.outputs] == [(1, 10, 4), (1, 10), (1, 10), (1,)]
    assert len({info.name for info in session.outputs}) == 4


@pytest.mark.parametrize("name", ["classification/mnist-8.onnx", "classification/mobilenet_v1_0.25_128_quant.tflite"])
def test_calls_from_many_threads_answer_as_calls_from_one(shared_models: Path, name: str) -> None:
    session = open_session(shared_models / name, EngineSettings(concurrency=3))
    info = session.inputs[0]
    chance = np.random.default_rng(5)
    inputs = [chance.integers(0, 255, info.shape).astype(info.dtype) for _ in range(12)]
    alone = [session.run({info.name: value}) for value in inputs]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda value: session.run({info.name: value}), inputs * 3))
    for expected, found in zip(alone * 3, together, strict=True):
        for key, value in expected.items():
            assert np.array_equal(value, found[key])


@pytest.mark.parametrize("name", ["classification/mnist-8.onnx", "classification/mobilenet_v1_0.25_128_quant.tflite"])
def test_inputs_that_do_not_fit_are_refused_and_the_session_serves_on(shared_models: Path, name: str) -> None:
    session = open_session(shared_models / name, EngineSettings(concurrency=1))
    info = session.inputs[0]
    good = {info.name: np.zeros(info.shape, info.dtype)}
    session.warm_up(good)
    for bad in (
        {info.name: np.zeros((1, 5, 5, 5), info.dtype)},
        {info.name: np.zeros(info.shape, np.int64)},
        {"other": good[info.name]},
    ):
        with pytest.raises(ModelUnsupported):
            session.run(bad)
    assert session.run(good)


def test_large_models_have_few_interpreters() -> None:
    from edgeferry.runtime.litert import count_interpreters

    assert count_interpreters(4 << 20, 16) == 16
    assert count_interpreters(400 << 20, 16) == 3
    assert count_interpreters(400 << 20, 1) == 1
    assert count_interpreters(0, 2) == 2


HOSTILE = {
    "empty": b"",
    "text": b"this is no model",
    "zeros": bytes(4096),
    "noise": np.random.default_rng(3).integers(0, 255, 100_000, np.uint8).tobytes(),
    "a flatbuffer with a wild root": b"\xff\xff\xff\x7fTFL3" + bytes(64),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("extension", ["onnx", "tflite"])
def test_bytes_that_are_no_model_are_unreadable(tmp_path: Path, extension: str, kind: str) -> None:
    path = tmp_path / f"model.{extension}"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(ModelUnreadable, match="model"):
        open_session(path, TWO)


def test_an_onnx_file_cut_short_is_unreadable(shared_models: Path, tmp_path: Path) -> None:
    data = (shared_models / "classification/mnist-8.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for part in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(ModelUnreadable):
            open_session(path, TWO)


def test_a_missing_file_is_unreadable_and_another_extension_unsupported(tmp_path: Path) -> None:
    with pytest.raises(ModelUnreadable, match="none"):
        open_session(tmp_path / "missing.onnx", TWO)
    with pytest.raises(ModelUnsupported, match=r"\.onnx or \.tflite"):
        open_session(tmp_path / "model.pb", TWO)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd"])
def test_an_onnx_file_cannot_reach_outside_its_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "version"
    folder.mkdir()
    weight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", sides[:1], sides[1:], [weight])
    opset = [helper.make_opsetid("", 17)]
    (folder / "m.onnx").write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())
    with pytest.raises(ModelUnreadable):
        open_session(folder / "m.onnx", TWO)
