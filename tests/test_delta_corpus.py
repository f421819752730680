"""The corpus of version pairs: its table, and what can be made of the committed models without torch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from onnx import numpy_helper
from onnxruntime import InferenceSession
from PIL import Image
from scripts.delta_corpus import demo_pairs, onnx_edits, tflite_edits
from scripts.delta_corpus.making import NETS, make_pair, measure_equal, write_index
from scripts.delta_corpus.pairs import KINDS, ROOT, Pair, list_pairs
from scripts.delta_corpus.runs import RUNS
from scripts.delta_corpus.textures import draw_textures

from edgeferry.delta.tensors import find_tensors

HEAD = ("head", "cls", "box")
ALL = list_pairs()
FROM_DEMO = demo_pairs.list_pairs()
GRAPH_ONLY = [pair for pair in FROM_DEMO if pair.kind == "metadata"]
NOWHERE = Path("no trained net is read for these pairs")


def read(pair: Pair) -> tuple[bytes, bytes]:
    return pair.base.read(NOWHERE), pair.target.read(NOWHERE)


def read_constants(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    return {x.name: numpy_helper.to_array(x) for x in onnx.load_from_string(data).graph.initializer}


def read_weights(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value for name, value in read_constants(data).items() if value.ndim == 4}


def read_tflite_weights(data: bytes) -> list[np.ndarray[Any, Any]]:
    flat, _ = tflite_edits.split_files(data)
    model = schema.ModelT.InitFromPackedBuf(flat, 0)
    found = []
    for tensor in model.subgraphs[0].tensors:
        buffer = model.buffers[tensor.buffer].data
        if tensor.type in tflite_edits.FLOATS and len(tensor.shape) == 4 and buffer is not None:
            found.append(np.asarray(buffer, np.uint8).view(tflite_edits.FLOATS[tensor.type]))
    return found


def draw_picture(side_px: int) -> np.ndarray[Any, Any]:
    """A golden picture of the net that takes this side, uint8 [side, side, 3]."""
    golden = "gauge/golden/high-700009.jpg" if side_px == 96 else "golden/v1.1/golden-700026.jpg"
    with Image.open(ROOT / "models" / golden) as picture:
        return np.asarray(picture.convert("RGB").resize((side_px, side_px)))


def answer(data: bytes, suffix: str) -> list[np.ndarray[Any, Any]]:
    """What a model says about the picture."""
    if suffix == "onnx":
        session = InferenceSession(data)
        entry = session.get_inputs()[0]
        pixels = draw_picture(entry.shape[-1]).transpose(2, 0, 1)[None]
        return list(session.run(None, {entry.name: pixels.astype(np.float32) / 255}))
    runner = Interpreter(model_content=data)
    runner.allocate_tensors()
    entry = runner.get_input_details()[0]
    pixels = draw_picture(entry["shape"][1])[None]
    whole = entry["dtype"] == np.uint8
    runner.set_tensor(entry["index"], pixels if whole else pixels.astype(np.float32) / 255)
    runner.invoke()
    return [runner.get_tensor(output["index"]) for output in runner.get_output_details()]


def test_every_class_has_pairs_and_no_two_share_a_place() -> None:
    assert {pair.kind for pair in ALL} == set(KINDS)
    places = Counter(path for pair in ALL for path in pair.paths(Path()))
    assert max(places.values()) == 1


def test_every_precision_is_fine_tuned_in_both_formats() -> None:
    names = [(pair.name, pair.base.suffix) for pair in ALL if pair.kind == "fine-tune"]
    for precision in ("fp32", "fp16", "int8"):
        assert {suffix for name, suffix in names if precision in name} == {"onnx", "tflite"}


def test_the_parent_of_a_run_is_a_run_of_the_same_net() -> None:
    for run in RUNS.values():
        assert not run.parent or RUNS[run.parent].net == run.net


def test_a_pair_of_an_unknown_run_is_refused_when_the_table_is_made() -> None:
    from scripts.delta_corpus.trained_pairs import trained

    with pytest.raises(KeyError):
        trained("plain-v9")


@pytest.mark.parametrize("pair", FROM_DEMO, ids=lambda pair: f"{pair.kind}/{pair.name}")
def test_a_demo_pair_differs_and_comes_out_the_same_twice(pair: Pair) -> None:
    base, target = read(pair)
    assert base != target
    assert read(pair) == (base, target)


@pytest.mark.parametrize("pair", GRAPH_ONLY, ids=lambda pair: pair.name)
def test_a_change_of_graph_or_metadata_leaves_the_answers_alone(pair: Pair) -> None:
    base, target = (answer(data, pair.base.suffix) for data in read(pair))
    assert 0 < len(base) <= len(target)  # a target may answer more
    assert any(np.any(values > 0.5) for values in base), "nothing was seen: the comparison would say nothing"
    for before, after in zip(base, target, strict=False):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("pair", GRAPH_ONLY, ids=lambda pair: pair.name)
def test_a_change_of_graph_or_metadata_leaves_every_weight_alone(pair: Pair) -> None:
    def count(data: bytes) -> Counter[bytes]:
        if pair.base.suffix == "onnx":
            return Counter(value.tobytes() for value in read_constants(data).values() if value.ndim == 4)
        return Counter(value.tobytes() for value in read_tflite_weights(data))

    base, target = map(count, read(pair))
    assert base == target
    assert base or "int8" in pair.name


@pytest.mark.parametrize("name", ["detector-onnx-cut", "detector-tflite-damaged", "text-wrapped"])
def test_an_opaque_target_shows_no_tensor(name: str) -> None:
    base, target = read(next(pair for pair in FROM_DEMO if pair.name == name))
    assert find_tensors(target) == ()
    assert 0 < measure_equal(base, target) < 1


def test_no_retrained_int8_pair_is_judged_by_what_floats_gain() -> None:
    for pair in ALL:
        assert (pair.kind == "retrained-int8") == (pair.kind.startswith("retrained") and "int8" in pair.name)


def test_head_only_leaves_the_backbone_alone() -> None:
    pair = next(pair for pair in FROM_DEMO if pair.kind == "head-only" and pair.base.suffix == "onnx")
    base, target = map(read_weights, read(pair))
    for name, weight in base.items():
        same = weight.shape == target[name].shape and bool((weight == target[name]).all())
        assert same == (not name.startswith(HEAD)), name


@pytest.mark.parametrize("edit", [onnx_edits.prune_each, onnx_edits.prune_together])
def test_pruned_weights_keep_their_sign(edit: Any) -> None:
    data = demo_pairs.detector("1.2.0", "onnx-fp32").read(NOWHERE)
    before, after = read_weights(data), read_weights(edit(data))
    zeros = 0
    for name, weight in before.items():
        np.testing.assert_array_equal(np.signbit(weight), np.signbit(after[name]))
        gone = after[name] == 0
        np.testing.assert_array_equal(after[name][~gone], weight[~gone])
        zeros += int(gone.sum())
        if edit is onnx_edits.prune_each:
            assert abs(int(gone.sum()) - weight.size / 2) <= 1
    assert abs(zeros / sum(weight.size for weight in before.values()) - 0.5) < 0.001


@pytest.mark.parametrize("form", ["tflite-fp32", "tflite-fp16"])
def test_pruning_litert_zeroes_half_of_each_tensor_and_keeps_signs(form: str) -> None:
    data = demo_pairs.detector("1.2.0", form).read(NOWHERE)
    pairs = list(zip(read_tflite_weights(data), read_tflite_weights(tflite_edits.prune_each(data)), strict=True))
    assert len(pairs) > 10
    for before, after in pairs:
        np.testing.assert_array_equal(np.signbit(before), np.signbit(after))
        assert 0.45 < float((after == 0).mean()) < 0.55  # float16 values may tie with the median


def test_half_precision_is_the_cast_and_int8_is_within_half_a_step() -> None:
    data = demo_pairs.detector("1.2.0", "onnx-fp32").read(NOWHERE)
    half, whole = read_constants(onnx_edits.to_half(data)), read_constants(onnx_edits.to_int8(data))
    for name, weight in read_weights(data).items():
        np.testing.assert_array_equal(half[f"{name}.half"], weight.astype(np.float16))
        scale = whole[f"{name}.scale"].reshape(-1, 1, 1, 1)
        assert whole[f"{name}.int8"].dtype == np.int8
        assert np.all(np.abs(whole[f"{name}.int8"].astype(int)).reshape(len(weight), -1).max(1) == 127)
        assert np.all(np.abs(weight - whole[f"{name}.int8"] * scale) <= scale * 0.5001)


@pytest.mark.parametrize("edit", [onnx_edits.to_half, onnx_edits.to_int8])
def test_a_detector_of_fewer_bits_still_sees_the_same_objects(edit: Any) -> None:
    data = demo_pairs.detector("1.2.0", "onnx-fp32").read(NOWHERE)
    whole, fewer = answer(data, "onnx"), answer(edit(data), "onnx")
    seen = int((whole[1] > 0.5).sum())
    assert seen and int((fewer[1] > 0.5).sum()) == seen
    np.testing.assert_array_equal(fewer[2][:seen], whole[2][:seen])


@pytest.mark.parametrize("form", ["tflite-fp32", "tflite-fp16", "tflite-int8"])
def test_packing_litert_again_without_a_change_gives_the_committed_bytes(form: str) -> None:
    data = demo_pairs.detector("1.2.0", form).read(NOWHERE)
    assert tflite_edits.edit_model(data, lambda model: None) == data


def test_a_pair_that_is_there_is_not_made_again_and_the_index_names_what_is_there(tmp_path: Path) -> None:
    pair = FROM_DEMO[0]
    make_pair(pair, tmp_path)
    base, target = pair.paths(tmp_path)
    assert (base.read_bytes(), target.read_bytes()) == read(pair)
    base.write_bytes(b"kept")
    make_pair(pair, tmp_path)
    assert base.read_bytes() == b"kept"
    write_index(tmp_path, ALL)
    rows = json.loads((tmp_path / "corpus.json").read_text())
    assert [(row["class"], row["name"]) for row in rows] == [(pair.kind, pair.name)]
    assert (tmp_path / rows[0]["base"], tmp_path / rows[0]["target"]) == (base, target)
    assert not (tmp_path / NETS).exists()


def test_equal_bytes_count_against_the_target() -> None:
    assert measure_equal(b"abcd", b"abXd") == 0.75
    assert measure_equal(b"ab", b"abcd") == 0.5
    assert measure_equal(b"abcd", b"ab") == 1


def test_textures_are_the_same_for_the_same_seed_and_worn_ones_are_not_new_ones() -> None:
    def draw(*, worn: bool) -> tuple[Any, Any]:
        return draw_textures(np.random.default_rng(1), 8, classes=24, worn=worn)

    pictures, labels = draw(worn=False)
    np.testing.assert_array_equal(pictures, draw(worn=False)[0])
    assert pictures.dtype == np.float32 and set(labels) <= set(range(24))
    assert not np.array_equal(pictures, draw(worn=True)[0])
