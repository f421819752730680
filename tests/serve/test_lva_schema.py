"""What `/score?format=lva` answers fits docs/formats/lva.schema.json, and that schema refuses what does not fit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.app.local_models import open_local_versions
from edgeferry.app.serving import serve_models
from edgeferry.serve.formats.lva import make_lva
from edgeferry.vision.answer import (
    Answer,
    Box,
    ClassificationAnswer,
    ClassScore,
    DetectionAnswer,
    FoundObject,
    LandmarksAnswer,
    Point,
    PoseAnswer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs" / "formats" / "lva.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SHARES = st.floats(0, 1)
CLASSES = st.builds(ClassScore, class_index=st.integers(0, 90), label=st.text(), score=SHARES)
POINTS = st.builds(Point, name=st.text(), x=st.floats(-1, 2), y=st.floats(-1, 2), score=SHARES)


@st.composite
def _boxes(draw: st.DrawFn) -> Box:
    top, bottom = sorted((draw(SHARES), draw(SHARES)))
    left, right = sorted((draw(SHARES), draw(SHARES)))
    return top, left, bottom, right


OBJECTS = st.builds(
    FoundObject,
    class_index=st.integers(0, 90),
    label=st.text(),
    score=SHARES,
    box=_boxes(),
    points=st.lists(POINTS, max_size=3).map(tuple),
    attributes=st.lists(CLASSES, max_size=2).map(tuple),
)
FOUND = st.lists(OBJECTS, max_size=3).map(tuple)
ANSWERS: st.SearchStrategy[Answer] = st.one_of(
    st.builds(DetectionAnswer, objects=FOUND),
    st.builds(PoseAnswer, objects=FOUND),
    st.builds(LandmarksAnswer, objects=FOUND),
    st.builds(ClassificationAnswer, classes=st.lists(CLASSES, max_size=3).map(tuple)),
)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@given(ANSWERS)
def test_every_answer_fits_or_is_none_at_all(answer: Answer) -> None:
    found = make_lva(answer)
    count = len(answer.classes if isinstance(answer, ClassificationAnswer) else answer.objects)  # type: ignore[union-attr]
    assert (found is None) == (count == 0)
    if found is not None:
        VALIDATOR.validate(json.loads(msgspec.json.encode(found)))
        assert len(found.inferences) == count


async def test_what_the_demo_models_answer_over_http_fits(demo_models: Path) -> None:
    paths = [demo_models / "detector" / "1.1.0" / "detector.onnx", demo_models / "gauge" / "1.0.0" / "gauge.onnx"]
    kinds: set[str] = set()
    for path in paths:
        with open_local_versions([path]) as versions:
            async with serve_models(versions, port=0) as address, aiohttp.ClientSession() as session:
                for picture in sorted((demo_models / "scenes").glob("*.jpg")):
                    async with session.post(f"{address.url}/score?format=lva", data=picture.read_bytes()) as response:
                        if response.status == 204:
                            continue
                        assert response.status == 200
                        said = await response.json()
                    VALIDATOR.validate(said)
                    kinds |= {each["type"] for each in said["inferences"]}
    assert kinds == {"entity", "classification"}


ENTITY = {
    "type": "entity",
    "entity": {"tag": {"value": "cat", "confidence": 0.5}, "box": {"l": 0, "t": 0, "w": 1, "h": 1}},
}
GOOD = {
    "inferences": [ENTITY, {"type": "classification", "classification": {"tag": {"value": "low", "confidence": 1}}}]
}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda said: said.pop("inferences"),
        lambda said: said["inferences"].clear(),
        lambda said: said.update(more=1),
        lambda said: said["inferences"][0].update(type="classification"),
        lambda said: said["inferences"][0]["entity"].pop("box"),
        lambda said: said["inferences"][0]["entity"]["box"].update(w=1.1),
        lambda said: said["inferences"][0]["entity"]["box"].update(l=-0.1),
        lambda said: said["inferences"][0]["entity"]["box"].pop("h"),
        lambda said: said["inferences"][0]["entity"]["tag"].update(confidence="0.5"),
        lambda said: said["inferences"][0]["entity"].update(attributes=[{"name": "x"}]),
        lambda said: said["inferences"][1]["classification"]["tag"].pop("value"),
        lambda said: said["inferences"][1].pop("type"),
    ],
)
def test_the_schema_refuses_what_does_not_fit(spoil: Callable[[Any], object]) -> None:
    said = copy.deepcopy(GOOD)
    VALIDATOR.validate(said)
    spoil(said)
    assert not VALIDATOR.is_valid(said)
