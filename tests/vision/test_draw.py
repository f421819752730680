from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgeferry.errors import PictureUnreadable
from edgeferry.vision.answer import (
    ClassificationAnswer,
    ClassScore,
    DetectionAnswer,
    FoundObject,
    LandmarksAnswer,
    MaskClass,
    PictureAnswer,
    Point,
    PoseAnswer,
    SegmentationAnswer,
)
from edgeferry.vision.draw import SIDE_MAX_PX, draw_answer
from edgeferry.vision.limbs import list_limbs


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


# --- points -----------------------------------------------------------------------------------------------------------
def make_point(name: str, x: float, y: float, score: float = 0.9) -> Point:
    return Point(name=name, x=x, y=y, score=score)


def find_changed(drawn: bytes) -> np.ndarray:
    return np.abs(read(drawn) - 40).max(axis=2) > 20


def draw_points(*points: Point) -> np.ndarray:
    found = FoundObject(class_index=0, label="p", score=0.9, box=(0.0, 0.0, 0.02, 0.02), points=points)
    return find_changed(draw_answer(make_png(), PoseAnswer(objects=(found,))))


def test_joints_are_dots_and_limbs_lines_between_them() -> None:
    changed = draw_points(make_point("left_hip", 0.25, 0.5), make_point("left_knee", 0.75, 0.5))
    assert changed[99, 80]
    assert changed[99, 160]
    assert changed[99, 239]
    assert not changed[110:].any()
    alone = draw_points(make_point("left_hip", 0.25, 0.5), make_point("left_ankle", 0.75, 0.5))
    assert alone[99, 239]
    assert not alone[99, 160]


def test_the_label_hides_no_joint_above_the_box() -> None:
    hand = msgspec.structs.replace(make_found("hand", (0.5, 0.2, 0.7, 0.4)), points=(make_point("wrist", 0.3, 0.4),))
    drawn = read(draw_answer(make_png(), DetectionAnswer(objects=(hand,))))
    assert (drawn[80, 96] == 255).all()
    assert (drawn[68, 66] == (230, 159, 0)).all()


def test_a_joint_that_the_model_is_not_sure_of_is_not_drawn() -> None:
    changed = draw_points(make_point("left_hip", 0.25, 0.5), make_point("left_knee", 0.75, 0.5, 0.29))
    assert not changed[99, 120:].any()


def test_points_far_outside_the_picture_can_be_drawn() -> None:
    changed = draw_points(make_point("left_hip", 0.5, 0.5), make_point("left_knee", 1e30, 0.5))
    assert changed[99, 250:310].all()


def test_a_face_mesh_is_fine_dots_with_oval_eyes_and_lips() -> None:
    points = tuple(make_point(str(n), 0.2 + n % 26 / 50, 0.2 + n // 26 / 30) for n in range(468))
    found = FoundObject(class_index=0, label="face", score=0.9, box=(0.1, 0.1, 0.9, 0.9), points=points)
    changed = find_changed(draw_answer(make_png(1000, 1000), LandmarksAnswer(objects=(found,))))
    assert changed[200, 200]
    assert not changed[190, 190]
    assert len(list_limbs(points)) == 36 + 2 * 16 + 2 * 20


def test_the_best_attribute_stands_beside_the_label() -> None:
    plain = make_found("hand", (0.5, 0.0, 0.9, 0.1))
    gestures = tuple(ClassScore(class_index=i, label=f"gesture {i}", score=0.5) for i in range(2))
    found = FoundObject(class_index=0, label="hand", score=0.87, box=plain.box, attributes=gestures)
    widths = [
        find_changed(draw_answer(make_png(), DetectionAnswer(objects=(one,))))[98].nonzero()[0].max()
        for one in (plain, found)
    ]
    assert widths[0] + 40 < widths[1] < widths[0] + 120


# --- masks and made pictures ------------------------------------------------------------------------------------------
def make_mask(label: str = "cat") -> SegmentationAnswer:
    """The lower right quarter is class 1, the rest class 0; the picture is four times as large."""
    runs = ((0, 80 * 25), *((0, 40), (1, 40)) * 25)
    box = (0.5, 0.5, 1.0, 1.0)
    classes = (
        MaskClass(class_index=0, label="background", share=0.75, box=(0.0, 0.0, 1.0, 1.0)),
        MaskClass(class_index=1, label=label, share=0.25, box=box),
    )
    return SegmentationAnswer(width=80, height=50, classes=classes, runs=runs, png=b"")


def test_a_class_is_tinted_with_an_outline_and_the_background_is_not() -> None:
    drawn = read(draw_answer(make_png(), make_mask()))
    assert drawn.shape == (200, 320, 3)
    inside, edge = drawn[150, 240], drawn[150, 160]
    assert np.abs(inside - (40 + np.array([86, 180, 233])) / 2).max() <= 1
    assert (edge == (86, 180, 233)).all()
    assert (drawn[110:, :155] == 40).all()
    assert (drawn[150, 318] == inside).all()  # no outline where the picture ends
    assert (drawn[:15, :30] != 40).any()  # its name


def test_a_mask_of_background_alone_leaves_the_picture_as_it_is() -> None:
    assert (read(draw_answer(make_png(), make_mask("background"))) == 40).all()


def make_cut_out() -> PictureAnswer:
    image = Image.new("RGBA", (2000, 30), (10, 200, 30, 0))
    image.paste((10, 200, 30, 255), (0, 0, 1000, 30))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return PictureAnswer(width=2000, height=30, png=stream.getvalue())


def test_a_made_picture_is_the_drawing_and_lies_on_white_as_jpeg() -> None:
    answer = make_cut_out()
    assert draw_answer(make_png(), answer) == answer.png
    drawn = read(draw_answer(make_png(), answer, media="jpeg"))
    assert drawn.shape == (30, 2000, 3)
    assert np.abs(drawn[15, 500] - (10, 200, 30)).max() < 12
    assert (drawn[15, 1500] > 250).all()
