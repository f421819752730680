from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edgeferry.errors import PictureUnreadable
from edgeferry.vision.answer import ClassificationAnswer, ClassScore, DetectionAnswer, FoundObject
from edgeferry.vision.draw import SIDE_MAX_PX, draw_answer


def make_png(width: int = 320, height: int = 200) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (40, 40, 40)).save(stream, "PNG")
    return stream.getvalue()


def make_found(label: str = "worker", box: tuple[float, float, float, float] = (0.25, 0.25, 0.75, 0.5)) -> FoundObject:
    return FoundObject(class_index=0, label=label, score=0.87, box=box)


def read(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_the_outline_lies_where_the_box_is_and_the_rest_stays() -> None:
    drawn = read(draw_answer(make_png(), DetectionAnswer(objects=(make_found(),))))
    assert drawn.shape == (200, 320, 3)
    changed = np.abs(drawn - 40).max(axis=2) > 20
    assert changed[100, 80]
    assert changed[100, 159]
    assert changed[149, 120]
    assert not changed[100, 120]
    assert not changed[160:].any()
    assert not changed[:, 260:].any()


@pytest.mark.parametrize(
    "box",
    [(0.0, 0.0, 1.0, 1.0), (0.0, 0.9, 0.1, 1.0), (0.95, 0.0, 1.0, 0.05), (0.5, 0.5, 0.5001, 0.5001)],
)
def test_labels_at_every_edge_stay_inside(box: tuple[float, float, float, float]) -> None:
    answer = DetectionAnswer(objects=(make_found("a label that is longer than the box — ümlaut ✓", box),))
    drawn = read(draw_answer(make_png(), answer))
    assert (np.abs(drawn - 40).max(axis=2) > 20).sum() > 200


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (12, 12)])
def test_tiny_pictures_can_be_drawn_on(size: tuple[int, int]) -> None:
    assert read(draw_answer(make_png(*size), DetectionAnswer(objects=(make_found(),)))).shape[:2] == size[::-1]


def test_the_classes_are_written_on_a_classified_picture() -> None:
    scores = tuple(ClassScore(class_index=i, label=f"class {i}", score=0.5) for i in range(9))
    drawn = read(draw_answer(make_png(), ClassificationAnswer(classes=scores)))
    changed = np.abs(drawn - 40).max(axis=2) > 20
    assert changed[:20, :60].any()
    assert not changed[150:].any()


def test_an_empty_answer_leaves_the_picture_as_it_is() -> None:
    assert (read(draw_answer(make_png(), DetectionAnswer(objects=()))) == 40).all()


def test_large_pictures_are_made_smaller() -> None:
    drawn = read(draw_answer(make_png(4000, 1000), DetectionAnswer(objects=()), media="jpeg"))
    assert drawn.shape[:2] == (SIDE_MAX_PX // 4, SIDE_MAX_PX)


def test_the_encoding_is_the_one_asked_for() -> None:
    answer = DetectionAnswer(objects=())
    assert draw_answer(make_png(), answer).startswith(b"\x89PNG")
    assert draw_answer(make_png(), answer, media="jpeg").startswith(b"\xff\xd8\xff")


def test_what_cannot_be_read_cannot_be_drawn_on() -> None:
    with pytest.raises(PictureUnreadable):
        draw_answer(b"no picture", DetectionAnswer(objects=()))
