"""Poses, face meshes, masks, cut-outs and super-resolution, on outputs that were made by hand."""

from __future__ import annotations

import io
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import AnswerSpec, Fit, InputSpec, LabelSpec, Parameter, Stage, Task, Thresholds
from edgeferry.vision.answer import (
    FoundObject,
    LandmarksAnswer,
    PictureAnswer,
    PoseAnswer,
    SegmentationAnswer,
    list_objects,
)
from edgeferry.vision.answers.masks import GROWTH_MAX, SIDE_MAX_PX
from edgeferry.vision.answers.movenet import JOINTS
from edgeferry.vision.answers.table import decode
from edgeferry.vision.image import Picture
from edgeferry.vision.preprocess import Placement, make_input

WHOLE = Placement(0.0, 0.0, 1.0, 1.0, 8, 8)
WIDE = Placement(0.0, 0.25, 1.0, 0.5, 16, 8)
"""A picture twice as wide as high, letterboxed into the middle of a square."""
LEVEL = Thresholds()


def make_stage(
    family: str,
    *,
    task: Task = "segmentation",
    side: int = 8,
    fit: Fit = "stretch",
    colour: str = "rgb",
    offset: int = 0,
    thresholds: Thresholds = LEVEL,
    outputs: dict[str, str] | None = None,
    **parameters: Parameter,
) -> Stage:
    return Stage(
        file="m.tflite",
        task=task,
        input=InputSpec(
            width=side, height=side, layout="nhwc", dtype="float32", colour=colour, fit=fit, mean=(0.0,), std=(255.0,)
        ),
        answer=AnswerSpec(family=family, parameters=parameters, outputs=outputs or {}),
        labels=LabelSpec(offset=offset),
        thresholds=thresholds,
    )


def read_png(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


# --- poses ------------------------------------------------------------------------------------------------------------
def make_joints(score: float = 0.8) -> np.ndarray:
    """Joint i lies at y = 0.3 + i/100, x = 0.4 + i/100."""
    steps = np.arange(17) / 100
    return np.stack([0.3 + steps, 0.4 + steps, np.full(17, score)], axis=1).astype(np.float32)


def see_pose(values: np.ndarray, placement: Placement = WHOLE, **options: object) -> tuple[FoundObject, ...]:
    stage = make_stage("movenet", task="pose", **options)
    answer = decode(stage, {"out": values}, placement, ())
    assert isinstance(answer, PoseAnswer)
    return answer.objects


def test_a_pose_has_seventeen_named_joints_and_the_mean_of_their_scores() -> None:
    joints = make_joints()
    joints[3, 2] = 0.1
    (person,) = see_pose(joints[None, None])
    assert (person.label, [point.name for point in person.points]) == ("person", list(JOINTS))
    assert person.score == pytest.approx(joints[:, 2].mean())
    assert (person.points[16].x, person.points[16].y) == (pytest.approx(0.56), pytest.approx(0.46))
    assert person.points[3].score == pytest.approx(0.1)


def test_the_box_spans_the_joints_that_count_and_stays_in_the_picture() -> None:
    joints = make_joints()
    joints[0], joints[16] = (0.05, 0.05, 0.1), (0.9, 1.2, 0.9)
    (person,) = see_pose(joints[None, None])
    assert person.box == (pytest.approx(0.31), pytest.approx(0.41), pytest.approx(0.9), 1.0)
    assert person.points[16].x == pytest.approx(1.2)


def test_joints_come_back_out_of_the_letterbox() -> None:
    (person,) = see_pose(make_joints()[None, None], WIDE)
    assert (person.points[0].x, person.points[0].y) == (pytest.approx(0.4), pytest.approx((0.3 - 0.25) / 0.5))


@pytest.mark.parametrize("score", [0.4, float("nan")])
def test_a_body_below_the_threshold_is_not_answered(score: float) -> None:
    assert see_pose(make_joints(score)[None, None]) == ()


def test_several_bodies_come_best_first() -> None:
    rows = np.zeros((1, 6, 56), np.float32)
    for place, score in ((1, 0.6), (4, 0.9)):
        rows[0, place, :51] = make_joints(score).reshape(-1)
        rows[0, place, 55] = score
    assert [round(found.score, 2) for found in see_pose(rows)] == [0.9, 0.6]
    assert len(see_pose(rows, thresholds=Thresholds(max_results=1))) == 1


def test_the_label_of_a_pose_is_the_line_of_class_0() -> None:
    stage = make_stage("movenet", task="pose", offset=1)
    answer = decode(stage, {"out": make_joints()[None, None]}, WHOLE, ("???", "worker"))
    assert [found.label for found in list_objects(answer)] == ["worker"]


# --- face meshes ------------------------------------------------------------------------------------------------------
def make_mesh(presence: float = 4.0) -> dict[str, np.ndarray]:
    """Points of an input of 8 x 8 pixels, on a diagonal from (2, 1) to (6, 5), all at depth -2."""
    way = np.linspace(0, 4, 468)
    points = np.stack([2 + way, 1 + way, np.full(468, -2.0)], axis=1)
    return {
        "mesh": points.reshape(1, 1, 1, 1404).astype(np.float32),
        "sure": np.full((1, 1, 1, 1), presence, np.float32),
    }


def see_face(outputs: dict[str, np.ndarray], placement: Placement = WHOLE, **options: object) -> LandmarksAnswer:
    answer = decode(make_stage("face_landmarks", task="landmarks", **options), outputs, placement, ())
    assert isinstance(answer, LandmarksAnswer)
    return answer


def test_a_mesh_has_468_points_in_the_unit_of_the_picture_with_depths_in_its_widths() -> None:
    (face,) = see_face(make_mesh()).objects
    assert (face.label, len(face.points), face.points[467].name) == ("face", 468, "467")
    assert face.score == pytest.approx(1 / (1 + np.exp(-4)))
    assert face.box == pytest.approx((1 / 8, 2 / 8, 5 / 8, 6 / 8))
    last = face.points[467]
    assert (last.x, last.y, last.z) == (pytest.approx(0.75), pytest.approx(0.625), pytest.approx(-0.25))


def test_of_an_input_that_is_no_square_y_is_told_by_its_height_and_x_and_depth_by_its_width() -> None:
    stage = make_stage("face_landmarks", task="landmarks")
    assert stage.input is not None
    tall = msgspec.structs.replace(stage, input=msgspec.structs.replace(stage.input, height=16))
    (face,) = list_objects(decode(tall, make_mesh(), WHOLE, ()))
    last = face.points[467]
    assert (last.x, last.y, last.z) == (pytest.approx(0.75), pytest.approx(0.3125), pytest.approx(-0.25))


def test_where_the_input_shows_a_part_depths_shrink_with_the_picture() -> None:
    crop = Placement(-0.5, -0.5, 2.0, 2.0, 16, 16)
    (face,) = see_face(make_mesh(), crop).objects
    assert (face.points[0].x, face.points[0].z) == (pytest.approx((0.25 + 0.5) / 2), pytest.approx(-0.125))


def test_no_face_is_answered_without_presence() -> None:
    assert see_face(make_mesh(-1.0)).objects == ()
    assert see_face(make_mesh(float("nan"))).objects == ()
    assert len(see_face(make_mesh(0.7), activation="none").objects) == 1
    assert see_face(make_mesh(0.4), activation="none").objects == ()


def test_a_mesh_with_points_that_are_no_numbers_is_no_face() -> None:
    outputs = make_mesh()
    outputs["mesh"][0, 0, 0, 5] = np.inf
    assert see_face(outputs).objects == ()


# --- masks ------------------------------------------------------------------------------------------------------------
def see_mask(
    family: str, values: np.ndarray, placement: Placement = WHOLE, labels: tuple[str, ...] = (), **options: object
) -> SegmentationAnswer:
    answer = decode(make_stage(family, **options), {"out": values}, placement, labels)
    assert isinstance(answer, SegmentationAnswer)
    return answer


def unroll(answer: SegmentationAnswer) -> np.ndarray:
    """The class map that the run lengths tell."""
    row = [index for index, length in answer.runs for _ in range(length)]
    return np.array(row, np.uint8).reshape(answer.height, answer.width)


def make_classes() -> np.ndarray:
    """8 x 8: a block of class 2, three wide and two high, at row 3, column 4; one pixel of class 1 at the top left."""
    classes = np.zeros((8, 8), np.int64)
    classes[3:5, 4:7] = 2
    classes[0, 0] = 1
    return classes


LABELS = ("background", "cat", "dog")


def test_a_class_map_is_told_as_shares_boxes_runs_and_png() -> None:
    answer = see_mask("class_map", make_classes()[None], labels=LABELS)
    assert (answer.width, answer.height, answer.probability) == (8, 8, False)
    assert [(one.label, one.share) for one in answer.classes] == [
        ("background", 57 / 64), ("dog", 6 / 64), ("cat", 1 / 64),
    ]  # fmt: skip
    assert answer.classes[1].box == (3 / 8, 4 / 8, 5 / 8, 7 / 8)
    assert answer.runs[:3] == ((1, 1), (0, 27), (2, 3))
    assert (unroll(answer) == make_classes()).all()
    assert (read_png(answer.png) == make_classes()).all()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 8, 8, 1), (1, 1, 8, 8)])
def test_class_indices_come_in_any_type_and_with_axes_of_one(dtype: type, shape: tuple[int, ...]) -> None:
    answer = see_mask("class_map", make_classes().astype(dtype).reshape(shape))
    assert (unroll(answer) == make_classes()).all()


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_of_scores_the_greatest_wins_and_those_that_are_no_numbers_lose(layout: str) -> None:
    scores = np.eye(3, dtype=np.float32)[make_classes()]
    scores[scores == 0] = -1.0
    scores[7, 7] = (0.1, np.nan, 0.2)
    wanted = make_classes()
    wanted[7, 7] = 2
    values = scores if layout == "nhwc" else scores.transpose(2, 0, 1)
    assert (unroll(see_mask("class_map", values[None], layout=layout)) == wanted).all()


@pytest.mark.parametrize("worst", [-1, 256, np.nan])
def test_class_indices_that_no_byte_holds_are_refused(worst: float) -> None:
    classes = make_classes().astype(np.float64)
    classes[2, 2] = worst
    with pytest.raises(ModelUnsupported, match="255"):
        see_mask("class_map", classes[None])


def test_scores_are_not_taken_for_class_indices() -> None:
    with pytest.raises(ModelUnsupported, match="not whole"):
        see_mask("class_map", np.full((1, 8, 8), 0.7, np.float32))


def test_the_padding_of_a_letterbox_is_no_part_of_the_mask() -> None:
    answer = see_mask("class_map", make_classes()[None], WIDE, LABELS)
    assert (answer.width, answer.height) == (8, 4)
    assert (unroll(answer) == make_classes()[2:6]).all()
    assert [one.label for one in answer.classes] == ["background", "dog"]


def test_what_a_crop_left_out_is_class_0() -> None:
    crop = Placement(-0.5, 0.0, 2.0, 1.0, 16, 8)
    answer = see_mask("class_map", make_classes()[None], crop)
    assert (answer.width, answer.height) == (16, 8)
    wanted = np.zeros((8, 16))
    wanted[:, 4:12] = make_classes()
    assert (unroll(answer) == wanted).all()


def test_a_picture_a_thousand_times_as_wide_as_high_makes_no_huge_mask() -> None:
    answer = see_mask("class_map", make_classes()[None], Placement(-5000.0, 0.0, 10_000.0, 1.0, 10_000, 1))
    assert (answer.width, answer.height) == (8 * GROWTH_MAX, 8)


def test_a_mask_has_no_more_pixels_than_an_answer_can_hold_and_noise_is_refused() -> None:
    large = np.zeros((1, 2 * SIDE_MAX_PX, 8), np.uint8)
    large[0, SIDE_MAX_PX:] = 1
    answer = see_mask("class_map", large)
    assert (answer.width, answer.height) == (8, SIDE_MAX_PX)
    assert answer.runs == ((0, 4 * SIDE_MAX_PX), (1, 4 * SIDE_MAX_PX))
    noise = np.indices((SIDE_MAX_PX, SIDE_MAX_PX)).sum(axis=0) % 2
    with pytest.raises(ModelUnsupported, match="noise"):
        see_mask("class_map", noise[None])


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 4)))
def test_runs_png_and_shares_always_tell_the_same_mask(classes: np.ndarray) -> None:
    answer = see_mask("class_map", classes[None])
    assert (unroll(answer) == classes).all()
    assert (read_png(answer.png) == classes).all()
    assert sum(one.share for one in answer.classes) == pytest.approx(1)
    assert all(one[0] != other[0] for one, other in zip(answer.runs, answer.runs[1:], strict=False))


def make_probabilities() -> np.ndarray:
    plane = np.full((8, 8), 0.1, np.float32)
    plane[2:6, 2:6] = 0.9
    plane[0, 0] = np.nan
    return plane


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (1, 1, 8, 8), (1, 8, 8)])
def test_a_probability_mask_keeps_the_probabilities_and_parts_them_at_the_threshold(shape: tuple[int, ...]) -> None:
    answer = see_mask("probability_mask", make_probabilities().reshape(shape), labels=("person",))
    assert answer.probability
    assert [(one.label, one.share) for one in answer.classes] == [("background", 0.75), ("person", 0.25)]
    assert (unroll(answer) == (np.nan_to_num(make_probabilities()) > 0.5)).all()
    assert set(read_png(answer.png).reshape(-1).tolist()) == {0, 26, 230}


@pytest.mark.parametrize(("score", "share"), [(0.05, 63 / 64), (0.8, 0.25), (0.95, 0.0)])
def test_the_threshold_of_a_mask_is_the_one_that_is_declared(score: float, share: float) -> None:
    answer = see_mask("probability_mask", make_probabilities()[None], thresholds=Thresholds(score=score))
    assert sum(one.share for one in answer.classes if one.class_index == 1) == share


def test_logits_of_a_mask_go_through_the_sigmoid_that_is_declared() -> None:
    answer = see_mask("probability_mask", make_probabilities()[None] - 0.5, activation="sigmoid")
    assert answer.classes[1].share == 0.25
    with pytest.raises(ModelUnsupported, match="activation"):
        see_mask("probability_mask", make_probabilities()[None], activation="softmax")


@pytest.mark.parametrize(
    ("labels", "offset", "named"),
    [
        ((), 0, ["background", "foreground"]),
        (("person",), 0, ["background", "person"]),
        (("nothing", "person"), 0, ["nothing", "person"]),
        (("", "person"), 0, ["background", "person"]),
        (("person", "unused"), -1, ["background", "person"]),
    ],
)
def test_the_classes_of_a_probability_mask_are_named(labels: tuple[str, ...], offset: int, named: list[str]) -> None:
    answer = see_mask("probability_mask", make_probabilities()[None], labels=labels, offset=offset)
    assert [one.label for one in answer.classes] == named


def test_whoever_knows_boxes_alone_sees_the_classes_of_a_mask_but_its_background_and_specks() -> None:
    classes = np.zeros((20, 20), np.uint8)
    classes[5:9, 5:15], classes[0, 0] = 2, 1
    (dog,) = list_objects(see_mask("class_map", classes[None], labels=LABELS))
    assert (dog.label, dog.score, dog.box) == ("dog", 1.0, (0.25, 0.25, 0.45, 0.75))


# --- pictures ---------------------------------------------------------------------------------------------------------
def make_photo(width: int = 16, height: int = 8) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 6 + 40, columns * 4 + 30, rows * 2 + columns * 2 + 60], axis=2).astype(np.uint8)


def test_the_cut_out_keeps_all_colours_and_takes_the_probability_as_alpha() -> None:
    photo = make_photo()
    placement = replace(WHOLE, picture_width=16, pixels=photo)
    stage = make_stage("probability_mask", task="image")
    answer = decode(stage, {"out": make_probabilities()[None]}, placement, ())
    assert isinstance(answer, PictureAnswer)
    assert (answer.width, answer.height) == (16, 8)
    made = read_png(answer.png)
    assert (made[:, :, :3] == photo).all()
    assert (made[3, 7, 3], made[7, 15, 3]) == (230, 26)


def enlarge(photo: np.ndarray, fit: Fit, *, gain: float = 1.0) -> np.ndarray:
    """What the answer is when a model enlarges luma threefold, as bicubic as everyone else."""
    stage = make_stage("super_resolution", task="image", side=24, fit=fit, colour="grey")
    assert stage.input is not None
    tensor, placement = make_input(Picture(photo, photo.shape[1], photo.shape[0]), stage.input)
    luma = Image.fromarray(tensor[0, :, :, 0]).resize((72, 72), Image.Resampling.BICUBIC)
    answer = decode(stage, {"out": np.asarray(luma)[None, None] * gain}, placement, ())
    assert isinstance(answer, PictureAnswer)
    made = read_png(answer.png)
    assert made.shape == (answer.height, answer.width, 3)
    return made.astype(int)


@pytest.mark.parametrize(
    ("fit", "size"),
    [("stretch", (72, 72)), ("letterbox", (72, 36)), ("letterbox_top_left", (72, 36)), ("crop", (72, 72))],
)
def test_a_larger_picture_shows_what_the_model_has_seen_in_its_colours(fit: Fit, size: tuple[int, int]) -> None:
    photo = make_photo(48, 24)
    made = enlarge(photo, fit)
    seen = Image.fromarray(photo if fit != "crop" else photo[:, 12:36])
    wanted = np.asarray(seen.resize(size, Image.Resampling.BICUBIC)).astype(int)
    assert made.shape == wanted.shape
    assert np.abs(made - wanted)[6:-6, 6:-6].max() <= 4  # the luma was rounded once more; at edges padding shows


def test_where_the_edge_is_repeated_a_larger_picture_has_no_frame() -> None:
    photo = make_photo(48, 24)
    wanted = np.asarray(Image.fromarray(photo).resize((72, 36), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(enlarge(photo, "letterbox_edge") - wanted).max() <= 4


def test_luma_is_in_the_unit_of_the_input() -> None:
    photo = make_photo(24, 24)
    stage = make_stage("super_resolution", task="image", side=24, colour="grey")
    assert stage.input is not None
    spec = msgspec.structs.replace(stage.input, mean=(127.5,), std=(64.0,))
    tensor, placement = make_input(Picture(photo, 24, 24), spec)
    answer = decode(msgspec.structs.replace(stage, input=spec), {"out": tensor}, placement, ())
    assert isinstance(answer, PictureAnswer)
    assert np.abs(read_png(answer.png).astype(int) - photo).max() <= 1


def test_luma_beyond_its_range_is_clipped() -> None:
    assert enlarge(make_photo(48, 24), "stretch", gain=4.0).max() == 255


@pytest.mark.parametrize("family", ["probability_mask", "super_resolution"])
def test_a_made_picture_needs_the_given_one(family: str) -> None:
    with pytest.raises(ModelUnsupported, match="picture"):
        decode(make_stage(family, task="image"), {"out": make_probabilities()[None]}, WHOLE, ())


def test_a_picture_of_values_that_are_no_numbers_is_refused() -> None:
    placement = replace(WHOLE, pixels=make_photo())
    with pytest.raises(ModelUnsupported, match="finite"):
        decode(make_stage("super_resolution", task="image"), {"out": make_probabilities()[None]}, placement, ())


# --- outputs that do not fit ------------------------------------------------------------------------------------------
WRONG = {
    "movenet": {"out": np.zeros((1, 1, 16, 3), np.float32)},
    "face_landmarks": {"mesh": np.zeros((1, 1404), np.float32)},
    "class_map": {"out": np.zeros((2, 8, 8), np.int64)},
    "probability_mask": {"out": np.zeros((1, 8, 8, 2), np.float32)},
    "super_resolution": {"out": np.zeros((1, 3, 8, 8), np.float32)},
}


@pytest.mark.parametrize("family", list(WRONG))
def test_other_outputs_are_refused_naming_their_shapes(family: str) -> None:
    with pytest.raises(ModelUnsupported, match="expected the outputs"):
        decode(make_stage(family), WRONG[family], WHOLE, ())
    with pytest.raises(ModelUnsupported, match="expected the outputs"):
        decode(make_stage(family), WRONG[family] | {"more": np.zeros((1, 5), np.float32)}, WHOLE, ())


def test_among_several_outputs_the_named_one_counts() -> None:
    outputs = {"features": np.zeros((1, 8, 8, 32), np.float32), "map": make_classes()[None]}
    stage = make_stage("class_map", outputs={"classes": "map"})
    answer = decode(stage, outputs, WHOLE, ())
    assert isinstance(answer, SegmentationAnswer)
    assert (unroll(answer) == make_classes()).all()
