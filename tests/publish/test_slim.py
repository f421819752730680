"""Slim versions: the search, what cannot be told, and what the manifest says."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from onnx import load_model_from_string, numpy_helper
from PIL import Image
from tests.publish.desk import LABELS, SPEC, make_desk, make_model, make_request, say_nothing

from edgeferry.delta.make import make_full, make_patch
from edgeferry.delta.tensors import find_tensors
from edgeferry.errors import ConfigInvalid, Conflict, ModelUnsupported
from edgeferry.model.digest import Digest
from edgeferry.model.inspect import inspect_model, make_spec
from edgeferry.model.labels import read_labels
from edgeferry.model.manifest import Manifest, read_manifest_bytes
from edgeferry.model.spec import read_spec_toml
from edgeferry.publish.examiner import EvalSet, Examiner, read_eval_set
from edgeferry.publish.golden import MAX_PICTURES
from edgeferry.publish.patches import read_old
from edgeferry.publish.publisher import Request, publish
from edgeferry.publish.slim import count_needed, count_telling, get_standard_error, require_enough, search_slim
from edgeferry.publish.slim_version import Proposal, Terms, propose_slim
from edgeferry.trust.draft import open_draft
from edgeferry.trust.signer import Desk
from edgeferry.vision.answer import ClassificationAnswer

DETECTORS = Path(__file__).parents[2] / "models" / "detector"
GOLDEN = Path(__file__).parents[2] / "models" / "golden" / "v1.1"
PICTURES = 120


def make_noise(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


NOISE = {f"{number:03}.png": make_noise(number) for number in range(PICTURES)}


def fine_tune(data: bytes, size: float = 0.1) -> bytes:
    """The model with weights that have moved a little."""
    model = load_model_from_string(data)
    weights = numpy_helper.to_array(model.graph.initializer[0])
    moved = weights + np.random.default_rng(9).normal(size=weights.shape).astype(np.float32) * np.float32(size)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(moved, "weights"))
    return bytes(model.SerializeToString())


OLD = make_model()
NEW = fine_tune(OLD)


def open_examiner(folder: Path, eval_set: EvalSet, *, data: bytes = NEW) -> Examiner:
    folder.mkdir(exist_ok=True)
    labels = read_labels(LABELS)
    inspection = inspect_model("gauge.onnx", data)
    spec = make_spec(inspection, labels=labels, labels_file="labels.txt", overrides=read_spec_toml(SPEC))
    return Examiner(spec, {"gauge.onnx": data, "labels.txt": LABELS}, eval_set, folder=folder)


def read_weights(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    tensor = max(find_tensors(data), key=lambda each: each.elements)
    return np.frombuffer(data[tensor.start : tensor.end], "<f4")


@dataclass
class Ruler:
    """A judge that loses points by how far weights have moved, as `lose` says."""

    lose: Callable[[float], float]
    asked: list[float] = field(default_factory=list)

    def measure_difference(self, data: bytes) -> float:
        return self._measure(data) ** 2

    def measure_loss(self, data: bytes) -> float:
        self.asked.append(self._measure(data))
        return self.lose(self.asked[-1])

    def _measure(self, data: bytes) -> float:
        return float(np.sqrt(np.square(read_weights(data) - read_weights(NEW)).mean()))


# --- search -----------------------------------------------------------------------------------------------------------
def test_a_classifier_travels_in_a_fraction_of_the_bytes_and_hardly_disagrees(tmp_path: Path) -> None:
    examiner = open_examiner(tmp_path, read_eval_set(NOISE))
    found = search_slim(OLD, NEW, examiner, max_loss=2.0, say=say_nothing)
    lossless, taken = found.levels[0], found.levels[found.taken]
    assert lossless.size_bytes == len(make_patch(OLD, NEW).data)
    assert taken.size_bytes == len(make_patch(OLD, found.data).data) < lossless.size_bytes / 3
    assert taken.exact
    assert taken.loss <= 2.0
    again = open_examiner(tmp_path / "again", read_eval_set(NOISE))
    assert again.measure_loss(found.data) == taken.loss
    assert search_slim(OLD, NEW, again, max_loss=2.0, say=say_nothing) == found


def test_without_a_base_the_full_download_is_what_becomes_short(tmp_path: Path) -> None:
    examiner = open_examiner(tmp_path, read_eval_set(NOISE))
    found = search_slim(b"", NEW, examiner, max_loss=2.0, say=say_nothing)
    assert found.levels[0].size_bytes == len(make_full(NEW).data)
    assert found.levels[found.taken].size_bytes == len(make_full(found.data).data) < found.levels[0].size_bytes / 2


def test_the_coarsest_level_that_loses_little_enough_is_taken() -> None:
    ruler = Ruler(lambda moved: 100 * moved)
    found = search_slim(OLD, NEW, ruler, max_loss=3.0, say=say_nothing)
    taken = found.levels[found.taken]
    assert 1.5 < taken.loss <= 3.0
    assert taken.loss == pytest.approx(ruler.lose(ruler._measure(found.data)))
    coarser = found.levels[found.taken + 1 :]
    assert coarser
    assert all(level.loss > 3.0 for level in coarser)
    sizes = [level.size_bytes for level in found.levels[1:]]
    assert sizes == sorted(sizes, reverse=True)


def test_a_coarse_level_that_is_right_by_luck_is_not_taken() -> None:
    found = search_slim(
        OLD, NEW, Ruler(lambda moved: 9.0 if 0.01 < moved < 0.05 else 0.0), max_loss=1.0, say=say_nothing
    )
    assert max(np.abs(read_weights(found.data) - read_weights(NEW))) < 0.03
    assert found.levels[found.taken].loss == 0.0


def test_nothing_is_taken_where_everything_loses_too_much() -> None:
    ruler = Ruler(lambda _: 50.0)
    found = search_slim(OLD, NEW, ruler, max_loss=1.0, say=say_nothing)
    assert (found.taken, found.data) == (0, NEW)
    assert len(ruler.asked) == 1


def test_a_model_without_weights_to_move_stays() -> None:
    found = search_slim(b"", b"no model", Ruler(lambda _: 0.0), max_loss=1.0, say=say_nothing)
    assert (found.taken, found.data, len(found.levels)) == (0, b"no model", 1)


def test_a_change_that_is_short_already_stays() -> None:
    """Slim is for what lossless cannot shrink."""
    model = load_model_from_string(OLD)
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[0, 0] += 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
    new = bytes(model.SerializeToString())
    found = search_slim(OLD, new, Ruler(lambda _: 0.0), max_loss=1.0, say=say_nothing)
    assert found.levels[found.taken].size_bytes <= found.levels[0].size_bytes


# --- enough pictures? -------------------------------------------------------------------------------------------------
def test_too_few_objects_to_tell_are_refused_with_how_many_are_needed() -> None:
    assert (count_needed(0.5), count_needed(0.1), count_needed(5.0)) == (100, 500, 10)
    require_enough(100, 30, max_loss=0.5)
    with pytest.raises(ConfigInvalid, match=r"99 objects .* 100 are needed, about 31 pictures like these"):
        require_enough(99, 30, max_loss=0.5)
    with pytest.raises(ConfigInvalid, match="other pictures"):
        require_enough(0, 30, max_loss=0.5)
    for wrong in (0.0, -1.0, 51.0, float("nan")):
        with pytest.raises(ConfigInvalid, match="expected an allowed loss"):
            require_enough(1000, 300, max_loss=wrong)


def test_a_rare_label_needs_its_objects_too() -> None:
    with pytest.raises(ConfigInvalid, match=r"2 objects of 'rare' .* 25\.00; 50 of each label are needed"):
        require_enough(1000, 300, max_loss=0.5, by_label={"often": 998, "rare": 2})
    require_enough(1000, 300, max_loss=0.5, by_label={"often": 950, "rare": 50})
    with pytest.raises(ConfigInvalid, match="49 objects of 'rare'"):
        require_enough(1000, 300, max_loss=0.5, by_label={"often": 951, "rare": 49})


def test_a_folder_with_few_objects_of_one_label_is_refused_before_anything_is_searched(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in GOLDEN.iterdir()}
    truths = [json.loads(data)["objects"] for name, data in files.items() if name.endswith(".json")]
    labels = Counter(one["label"] for objects in truths for one in objects)
    rarest, count = labels.most_common()[-1]
    assert count * len(labels) < sum(labels.values())
    max_loss = 100.0 / (count * len(labels) + sum(labels.values()))  # enough objects, too few of the rarest label
    data = (DETECTORS / "1.2.0" / "detector.onnx").read_bytes()
    request = Request(model="detector", version="1", model_file="detector.onnx", model_data=data)
    with pytest.raises(ConfigInvalid, match=f"{count} objects of '{rarest}'"):
        propose_slim(request, make_desk(tmp_path), Terms(max_loss, files), folder=tmp_path, say=say_nothing)


def test_what_labels_tell_together_is_their_standard_error() -> None:
    counts, share = {"often": 900, "rare": 60, "seldom": 40}, 0.02
    random = np.random.default_rng(1)
    lost = np.mean([random.binomial(count, share, 50_000) / count for count in counts.values()], axis=0) * 100
    telling = count_telling(1000, counts)
    assert get_standard_error(100 * share, telling) == pytest.approx(lost.std(), rel=0.03)
    assert (count_telling(7, {}), count_telling(10, {"a": 5, "b": 5})) == (7, 10)


def test_at_half_of_the_allowed_loss_the_standard_error_is_what_is_allowed() -> None:
    for max_loss in (0.1, 0.5, 2.0):
        outcomes = count_needed(max_loss)
        lost = np.random.default_rng(1).binomial(outcomes, max_loss / 200, 100_000) / outcomes * 100
        assert lost.std() == pytest.approx(max_loss, rel=0.02)


def test_the_standard_error_that_is_shown_is_that_of_chance() -> None:
    lost = np.random.default_rng(1).binomial(967, 0.005, 20_000) / 967 * 100
    assert get_standard_error(0.5, 967) == pytest.approx(lost.std(), rel=0.03)
    assert get_standard_error(0.0, 967) == pytest.approx(100 / 967)


# --- pictures ---------------------------------------------------------------------------------------------------------
def test_labelled_pictures_give_top1_and_pictures_without_truths_disagreement(tmp_path: Path) -> None:
    own = open_examiner(tmp_path / "own", read_eval_set(NOISE))
    assert (own.metric, own.score, own.outcomes) == ("disagreement", None, PICTURES)
    assert own.measure_loss(NEW) == own.measure_difference(NEW) == 0.0
    truths = {f"{name[:-4]}.json": b'{"label": "low"}' for name in NOISE}
    labelled = open_examiner(tmp_path / "labelled", read_eval_set(NOISE | truths))
    assert (labelled.metric, labelled.outcomes) == ("top-1", PICTURES)
    assert labelled.score is not None
    assert 0 < labelled.score < 100
    shares = [labelled.score - labelled.measure_loss(make_model(seed)) for seed in (1, 2)]
    assert all(0 <= share <= 100 for share in shares)


@pytest.mark.parametrize("file", ["detector.onnx", "detector-int8.tflite"])
def test_labelled_objects_give_mean_average_precision(tmp_path: Path, file: str) -> None:
    files = {path.name: path.read_bytes() for path in GOLDEN.iterdir()}
    eval_set = read_eval_set(files)
    data, bad = ((DETECTORS / version / file).read_bytes() for version in ("1.2.0", "1.3.0-bad"))
    examiner = Examiner(make_spec(inspect_model(file, data)), {file: data}, eval_set, folder=tmp_path)
    objects = [json.loads(files[name])["objects"] for name in sorted(files) if name.endswith(".json")]
    assert examiner.outcomes == sum(map(len, objects)) == sum(examiner.by_label.values())
    assert examiner.by_label == Counter(one["label"] for each in objects for one in each)
    assert examiner.metric == "mAP@0.5"
    assert examiner.score is not None
    assert examiner.score > 80
    assert examiner.measure_loss(data) == 0.0
    assert examiner.measure_loss(bad) > 20
    assert examiner.measure_difference(bad) > examiner.measure_difference(data) == 0.0


def open_real_examiner(model: Path, photo: Path, folder: Path) -> Examiner:
    """About one photo, which shows class 3."""
    eval_set = read_eval_set({"photo.png": photo.read_bytes(), "photo.json": b'{"label": "3"}'})
    data = model.read_bytes()
    spec = make_spec(inspect_model(model.name, data), overrides={"labels": {"names": list("0123")}})
    return Examiner(spec, {model.name: data}, eval_set, folder=folder)


@pytest.mark.needs_shared
def test_masks_are_measured_by_disagreement_and_poses_not_at_all(shared_models: Path, tmp_path: Path) -> None:
    photo = shared_models / "images" / "bird_segmentation.png"
    deeplab = shared_models / "segmentation" / "deeplabv3_mnv2_dm05_pascal_quant.tflite"
    examiner = open_real_examiner(deeplab, photo, tmp_path)
    assert (examiner.metric, examiner.score, examiner.outcomes) == ("disagreement", None, 1)
    assert examiner.measure_loss(deeplab.read_bytes()) == 0.0
    with pytest.raises(ModelUnsupported, match="pose"):
        open_real_examiner(shared_models / "pose" / "movenet_single_pose_lightning_ptq.tflite", photo, tmp_path)


def test_pictures_and_truths_are_as_they_must_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"expected 1 to 5000 pictures"):
        read_eval_set({"notes.txt": b""})
    with pytest.raises(ConfigInvalid, match=r"expected 001\.json beside"):
        read_eval_set(NOISE | {"000.json": b'{"label": "low"}'})
    one = {"000.png": NOISE["000.png"]}
    with pytest.raises(ConfigInvalid, match=r"cannot answer: unicorn"):
        open_examiner(tmp_path, read_eval_set(one | {"000.json": b'{"label": "unicorn"}'}))
    with pytest.raises(ConfigInvalid, match=r"cannot be read"):
        open_examiner(tmp_path, read_eval_set({"000.png": b"no picture"}))


# --- a version --------------------------------------------------------------------------------------------------------
def read_manifest(desk: Desk, version: str) -> Manifest:
    listed = open_draft(desk.store, desk.keys).find_version("gauge", version)
    assert listed is not None
    found = desk.store.find(f"targets/gauge/{version}/{listed.digest.hex}.manifest.json", 1 << 20)
    assert found is not None
    return read_manifest_bytes(found[0])


def test_the_manifest_names_the_original_and_what_was_lost(tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    publish(make_request(model_data=OLD), desk, say=say_nothing)
    request = make_request("1.1.0", model_data=NEW)
    (tmp_path / "work").mkdir()
    found = propose_slim(request, desk, Terms(2.0, NOISE), folder=tmp_path / "work", say=say_nothing)
    assert (found.base, found.metric, found.pictures) == ("1.0.0", "disagreement", PICTURES)
    assert open_draft(desk.store, desk.keys).find_version("gauge", "1.1.0") is None
    report = publish(found.request, desk, say=say_nothing)
    manifest = read_manifest(desk, "1.1.0")
    loss = found.search.levels[found.search.taken].loss
    assert manifest.slim == report.slim
    assert manifest.slim == {
        "of": str(Digest.of(NEW)),
        "metric": "disagreement",
        "loss": pytest.approx(loss, abs=1e-4),
        "max_loss": 2.0,
        "pictures": PICTURES,
    }
    entry = manifest.find_file("gauge.onnx")
    assert entry is not None
    assert read_old(desk.store, entry) == found.search.data != NEW
    assert entry.sha256 == str(Digest.of(found.search.data))
    assert report.update_bytes < len(make_patch(OLD, NEW).data) / 3
    (tmp_path / "again").mkdir()
    again = propose_slim(request, desk, Terms(2.0, NOISE), folder=tmp_path / "again", say=say_nothing)
    assert again.request == found.request
    assert publish(again.request, desk, say=say_nothing).unchanged


def test_what_is_published_is_not_searched_again(tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    publish(make_request(model_data=OLD), desk, say=say_nothing)
    request = make_request("1.1.0", model_data=NEW)
    found = propose(desk, request, tmp_path / "work")
    publish(found.request, desk, say=say_nothing)
    again = propose(desk, request, tmp_path / "again", said := [])
    assert (again.published, again.request, said) == (True, found.request, [])
    assert publish(again.request, desk, say=say_nothing).unchanged
    for other, max_loss in ((make_request("1.1.0", model_data=fine_tune(OLD, 0.2)), 2.0), (request, 1e-4)):
        with pytest.raises(Conflict, match=r"1\.1\.0 is published with other content"):
            propose_slim(other, desk, Terms(max_loss, NOISE), folder=tmp_path / "work", say=said.append)
    plain = propose(desk, make_request(model_data=OLD), tmp_path / "plain", said)
    assert publish(plain.request, desk, say=say_nothing).unchanged
    assert said == []


def propose(desk: Desk, request: Request, folder: Path, said: list[str] | None = None) -> Proposal:
    folder.mkdir()
    return propose_slim(
        request, desk, Terms(8.0, NOISE), folder=folder, say=say_nothing if said is None else said.append
    )


def make_golden(folder: Path, data: bytes) -> dict[str, bytes]:
    """Pictures, and what `data` answers to them: one other answer fails."""
    names = sorted(NOISE)[:MAX_PICTURES]
    answers = open_examiner(folder, read_eval_set({name: NOISE[name] for name in names}), data=data)._own
    truths = [
        {"label": one.classes[0].label, "tolerance": {"share": 1.0}}
        for one in answers
        if isinstance(one, ClassificationAnswer)
    ]
    files = {f"{name[:-4]}.json": json.dumps(truth).encode() for name, truth in zip(names, truths, strict=True)}
    return files | {name: NOISE[name] for name in names}


@pytest.mark.parametrize("inherited", [False, True])
def test_a_level_that_devices_would_refuse_is_not_proposed(tmp_path: Path, inherited: bool) -> None:
    desk, golden = make_desk(tmp_path), make_golden(tmp_path / "golden", NEW)
    publish(make_request(model_data=OLD, golden_files=golden if inherited else None), desk, say=say_nothing)
    free = propose(make_desk(tmp_path / "free"), make_request("1.1.0", model_data=NEW), tmp_path / "one")
    said: list[str] = []
    request = make_request("1.1.0", model_data=NEW, golden_files=None if inherited else golden)
    found = propose(desk, request, tmp_path / "two", said)
    refused = [level for level in found.search.levels if level.refused]
    assert refused
    assert all(level.loss <= 8.0 for level in refused)
    assert sum("is refused: " in line for line in said) == len(refused)
    assert found.search.taken > 0
    assert found.search.levels[found.search.taken + 1].refused
    assert answers_alike(tmp_path / "alike", found.search.data, golden)
    assert not answers_alike(tmp_path / "unlike", free.search.data, golden)


def answers_alike(folder: Path, data: bytes, golden: dict[str, bytes]) -> bool:
    return make_golden(folder, data) == golden


def test_where_devices_would_refuse_every_level_the_version_stays_as_it_is(tmp_path: Path) -> None:
    desk, golden = make_desk(tmp_path), make_golden(tmp_path / "golden", make_model(7))
    found = propose(desk, make_request(model_data=NEW, golden_files=golden), tmp_path / "work")
    assert (found.search.taken, found.request.model_data) == (0, NEW)
    assert any(level.refused for level in found.search.levels)


def test_a_base_that_cannot_be_read_is_passed_over_and_that_is_said(tmp_path: Path) -> None:
    desk, said = make_desk(tmp_path), list[str]()
    publish(make_request(model_data=OLD), desk, say=say_nothing)
    publish(make_request("1.1.0", model_data=make_model(5)), desk, say=say_nothing)
    entry = read_manifest(desk, "1.1.0").files[0]
    (tmp_path / "repo" / Digest.from_str(entry.sources[0].blob).blob_path).unlink()
    found = propose(desk, make_request("1.2.0", model_data=NEW), tmp_path / "work", said)
    assert found.base == "1.0.0"
    assert any(line.startswith("1.1.0 is no base") for line in said)


def test_an_ordinary_version_says_nothing_of_slim(tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    assert publish(make_request(), desk, say=say_nothing).slim is None
    assert read_manifest(desk, "1.0.0").slim is None


def test_the_base_is_the_version_that_was_asked_for(tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    publish(make_request(model_data=OLD), desk, say=say_nothing)
    publish(make_request("1.1.0", model_data=make_model(5)), desk, say=say_nothing)
    (tmp_path / "work").mkdir()
    request = make_request("1.2.0", model_data=NEW, bases=("1.0.0",))
    found = propose_slim(request, desk, Terms(2.0, NOISE), folder=tmp_path / "work", say=say_nothing)
    assert found.base == "1.0.0"
    assert found.search.levels[0].size_bytes == len(make_patch(OLD, NEW).data)


def test_too_small_a_set_of_pictures_is_refused_before_anything_is_searched(tmp_path: Path) -> None:
    desk, said = make_desk(tmp_path), []
    (tmp_path / "work").mkdir()
    with pytest.raises(ConfigInvalid, match="500 are needed"):
        propose_slim(make_request(), desk, Terms(0.1, NOISE), folder=tmp_path / "work", say=said.append)
    assert said == [f"asking gauge 1.0.0 about {PICTURES} pictures"]
