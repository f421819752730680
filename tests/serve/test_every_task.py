"""What the API makes of answers of every task: poses, masks and made pictures beside objects and classes."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from edgeferry.app.local_models import open_local_versions
from edgeferry.runtime.child import Terms
from edgeferry.serve.engine import ChildEngine
from edgeferry.serve.fake import FakeEngine
from edgeferry.serve.slots import Slots, SlotsSettings
from edgeferry.vision.answer import (
    Answer,
    ClassScore,
    FoundObject,
    LandmarksAnswer,
    MaskClass,
    PictureAnswer,
    Point,
    PoseAnswer,
    SegmentationAnswer,
)

if TYPE_CHECKING:
    from tests.serve.conftest import ApiClient, MakeVersion, OpenClient

NOSE = Point(name="nose", x=0.25, y=0.5, score=0.75)
POSE = PoseAnswer(
    objects=(FoundObject(class_index=0, label="person", score=0.5, box=(0.0, 0.25, 0.5, 0.75), points=(NOSE,)),)
)
HAND = LandmarksAnswer(
    objects=(
        FoundObject(
            class_index=1,
            label="right",
            score=0.75,
            box=(0.0, 0.25, 0.5, 0.75),
            attributes=(ClassScore(class_index=0, label="open", score=0.5),),
        ),
    )
)
MASK = SegmentationAnswer(
    width=4,
    height=1,
    classes=(
        MaskClass(class_index=0, label="background", share=0.5, box=(0.0, 0.0, 1.0, 1.0)),
        MaskClass(class_index=1, label="cat", share=0.495, box=(0.0, 0.5, 1.0, 1.0)),
        MaskClass(class_index=2, label="speck", share=0.005, box=(0.0, 0.5, 1.0, 0.75)),
    ),
    runs=((0, 2), (1, 2)),
    png=b"\x89PNG mask",
)
MADE = PictureAnswer(width=8, height=4, png=b"\x89PNG made")
HALF = [0.0, 0.25, 0.5, 0.75]
LVA_HALF = {"l": 0.25, "t": 0.0, "w": 0.5, "h": 0.5}


@pytest.fixture
async def answering(client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion) -> ApiClient:
    """The API, answering with `engine.answer`."""
    await slots.switch(make_version())
    return client


def say(engine: FakeEngine, answer: Answer) -> None:
    def answer_all(_: bytes, __: Terms) -> Answer:
        return answer

    engine.answer = answer_all


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (POSE, [{"Class": "person", "Score": 0.5, "Location": HALF}]),
        (HAND, [{"Class": "right", "Score": 0.75, "Location": HALF}]),
        (MASK, [{"Class": "cat", "Score": 1.0, "Location": [0.0, 0.5, 1.0, 1.0]}]),
        (MADE, []),
    ],
)
async def test_score_tells_what_has_a_place(
    answering: ApiClient, engine: FakeEngine, answer: Answer, wanted: list[object]
) -> None:
    say(engine, answer)
    assert (await answering.post("/score")).json == wanted
    assert len((await answering.post("/score?format=classic")).json) == len(wanted)


async def test_the_classic_shape_has_the_box_of_a_mask_in_pixels(answering: ApiClient, engine: FakeEngine) -> None:
    say(engine, MASK)
    (line,) = (await answering.post("/score?format=classic")).json
    assert line == "{'Class': 'cat','Score': '1.0','Location': '[  0. 320. 480. 640.]'}"


async def test_lva_tells_bodies_masks_and_the_gestures_of_hands_as_entities(
    answering: ApiClient, engine: FakeEngine
) -> None:
    say(engine, HAND)
    (found,) = (await answering.post("/score?format=lva")).json["inferences"]
    assert found["entity"] == {
        "tag": {"value": "right", "confidence": 0.75},
        "box": LVA_HALF,
        "attributes": [{"name": "class", "value": "open", "confidence": 0.5}],
    }
    say(engine, POSE)
    (found,) = (await answering.post("/score?format=lva")).json["inferences"]
    assert found == {"type": "entity", "entity": {"tag": {"value": "person", "confidence": 0.5}, "box": LVA_HALF}}
    say(engine, MASK)
    (found,) = (await answering.post("/score?format=lva")).json["inferences"]
    assert found["entity"]["tag"] == {"value": "cat", "confidence": 1.0}
    say(engine, MADE)
    assert (await answering.post("/score?format=lva")).status == 204


async def test_predict_tells_all_of_a_pose_a_mask_and_a_picture(answering: ApiClient, engine: FakeEngine) -> None:
    say(engine, POSE)
    (person,) = (await answering.post("/v1/models/detector/predict")).json["answer"]["objects"]
    assert person["points"] == [{"name": "nose", "x": 0.25, "y": 0.5, "score": 0.75}]
    say(engine, MASK)
    mask = (await answering.post("/v1/models/detector/predict")).json["answer"]
    assert (mask["task"], mask["runs"], mask["probability"]) == ("segmentation", [[0, 2], [1, 2]], False)
    assert mask["classes"][1] == {"class_index": 1, "label": "cat", "share": 0.495, "box": [0.0, 0.5, 1.0, 1.0]}
    assert base64.b64decode(mask["png"]) == MASK.png
    say(engine, MADE)
    made = (await answering.post("/v1/models/detector/predict")).json["answer"]
    assert made == {"task": "image", "width": 8, "height": 4, "png": base64.b64encode(MADE.png).decode()}


# --- real models ------------------------------------------------------------------------------------------------------
@pytest.fixture
async def cutting(shared_models: Path, tmp_path: Path, open_client: OpenClient) -> AsyncIterator[ApiClient]:
    """The API, answering with selfie segmentation as a background remover."""
    spec = tmp_path / "spec.toml"
    spec.write_text('task = "image"')
    slots = Slots(ChildEngine(), SlotsSettings())
    with open_local_versions([shared_models / "segmentation" / "selfie_segmentation.tflite"], spec=spec) as versions:
        await slots.switch(versions[0])
        async with open_client(slots) as client:
            yield client
        await slots.close()


PREDICT = "/v1/models/selfie_segmentation/predict"


@pytest.mark.needs_shared
async def test_a_made_picture_is_the_drawing_whichever_way_it_is_asked_for(
    cutting: ApiClient, shared_models: Path
) -> None:
    photo = (shared_models / "images" / "grace_hopper.jpg").read_bytes()
    said = (await cutting.post(PREDICT, photo)).json["answer"]
    drawn = await cutting.post(PREDICT, photo, headers={"Accept": "image/png"})
    assert drawn.headers["Content-Type"] == "image/png"
    assert drawn.body == base64.b64decode(said["png"])
    with Image.open(io.BytesIO(drawn.body)) as image:
        assert (image.size, image.mode) == ((512, 600), "RGBA") == ((said["width"], said["height"]), "RGBA")
    flat = await cutting.post(PREDICT, photo, headers={"Accept": "image/jpeg"})
    with Image.open(io.BytesIO(flat.body)) as image:
        assert (image.size, image.format) == ((512, 600), "JPEG")
        assert min(image.getpixel((2, 2))) > 240  # the background is gone: white
    assert (await cutting.post("/score", photo)).json == []
