"""Which active model a route means that names none: the default where it fits, the only one that fits, or a choice."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgeferry.errors import ModelAmbiguous, ModelNotFound, RequestInvalid
from edgeferry.model.spec import AnswerSpec, LabelSpec, ModelSpec, Stage, Task
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.kinds import ANYTHING, CLASSES, FACES, OBJECTS, Kind, list_fitting, pick_fitting, pick_named
from edgeferry.serve.slots import Slots

FAMILIES: dict[str, tuple[str, tuple[Task, ...]]] = {
    "cars": ("yolox", ("detection",)),
    "cats": ("ssd", ("detection",)),
    "ultra": ("ultraface", ("detection",)),
    "my_faces": ("yolox", ("detection",)),
    "mesh": ("face_landmarks", ("landmarks",)),
    "body": ("movenet", ("pose",)),
    "gauge": ("classification", ("classification",)),
    "hand": ("palm", ("detection", "landmarks", "classification")),
    "mask": ("class_map", ("segmentation",)),
    "larger": ("super_resolution", ("image",)),
    "raw": ("tensors", ("tensors",)),
}
OBJECT_MODELS = {"cars", "cats", "ultra", "my_faces", "mesh", "body", "hand"}


def _make(model: str) -> StoredVersion:
    family, tasks = FAMILIES[model]
    labels = LabelSpec(names=("face" if model == "my_faces" else "thing",))
    stages = tuple(Stage(file="m", task=task, answer=AnswerSpec(family=family), labels=labels) for task in tasks)
    return StoredVersion(model, "1.0.0", model, Path("/nowhere") / model, ModelSpec(stages=stages))


async def _serve(slots: Slots, *models: str) -> None:
    for model in models:
        await slots.switch(_make(model))


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "fitting"),
    [
        (OBJECTS, OBJECT_MODELS),
        (FACES, {"ultra", "my_faces", "mesh"}),
        (CLASSES, {"gauge"}),
        (ANYTHING, OBJECT_MODELS | {"gauge"}),
    ],
    ids=["objects", "faces", "classes", "anything"],
)
async def test_the_only_active_model_answers_where_it_fits(
    slots: Slots, model: str, kind: Kind, fitting: set[str]
) -> None:
    await _serve(slots, model)
    assert list_fitting(slots, kind) == ([model] if model in fitting else [])
    if model in fitting:
        assert pick_fitting(slots, kind) == model
    else:
        with pytest.raises(ModelNotFound, match=f"finds {kind.words}; active: {model}"):
            pick_fitting(slots, kind)


async def test_each_kind_finds_its_own_among_many(slots: Slots) -> None:
    await _serve(slots, "cars", "ultra", "body", "gauge", "mask", "raw")
    assert [pick_fitting(slots, kind) for kind in (OBJECTS, FACES, CLASSES)] == ["cars", "ultra", "gauge"]
    with pytest.raises(ModelAmbiguous, match="body, cars, gauge, ultra"):
        pick_fitting(slots, ANYTHING)


async def test_of_several_that_fit_the_default_answers(slots: Slots) -> None:
    await _serve(slots, "cars", "cats", "gauge", "ultra")
    with pytest.raises(ModelAmbiguous, match="objects: cars, cats"):
        pick_fitting(slots, OBJECTS)
    slots.default_model = "cats"
    assert [pick_fitting(slots, kind) for kind in (OBJECTS, FACES, CLASSES)] == ["cats", "ultra", "gauge"]
    slots.default_model = "gauge"
    with pytest.raises(ModelAmbiguous):
        pick_fitting(slots, OBJECTS)


async def test_a_default_that_is_not_there_yet_is_waited_for_and_not_replaced(slots: Slots) -> None:
    assert pick_fitting(slots, OBJECTS) == ""
    await _serve(slots, "cars")
    slots.default_model = "later"
    assert pick_fitting(slots, OBJECTS) == ""


async def test_a_name_goes_before_all_and_other_words_do_not_count(slots: Slots) -> None:
    await _serve(slots, "cars", "cats", "mask")
    slots.default_model = "cars"
    assert pick_fitting(slots, OBJECTS, ["cats@2.0.0", "cars"]) == "cats@2.0.0"
    assert pick_fitting(slots, OBJECTS, ["Iteration3", "cats"]) == "cats"
    assert pick_fitting(slots, OBJECTS, ["Iteration3", "", "@"]) == "cars"
    for name in ("mask", "mask@1.0.0"):
        with pytest.raises(RequestInvalid, match=r"mask@1\.0\.0"):
            pick_fitting(slots, OBJECTS, [name])
        with pytest.raises(RequestInvalid):
            pick_named(slots, name)
    assert pick_named(slots, "nobody") == "nobody"


async def test_a_detector_of_faces_by_label_needs_no_family(slots: Slots) -> None:
    version = _make("cars")
    labels = LabelSpec(names=("BACKGROUND", "Face"))
    spec = ModelSpec(stages=(msgspec.structs.replace(version.spec.stages[0], labels=labels),))
    await slots.switch(StoredVersion("cars", "2.0.0", "cars2", version.folder, spec))
    assert pick_fitting(slots, FACES) == "cars"
