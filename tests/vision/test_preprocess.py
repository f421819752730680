from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.model.spec import InputSpec
from edgeferry.vision.image import Picture
from edgeferry.vision.preprocess import Placement, get_enough, make_input, make_size_input


def make_picture(width: int, height: int, *, mark: tuple[int, int, int, int] | None = None) -> Picture:
    """A black picture; `mark` (top, left, bottom, right in pixels) is white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    if mark:
        pixels[mark[0] : mark[2], mark[1] : mark[3]] = 255
    return Picture(pixels, width, height)


def make_spec(**fields: object) -> InputSpec:
    return InputSpec(**({"width": 64, "height": 32, "layout": "nhwc", "dtype": "uint8"} | fields))


def find_box(plane: np.ndarray) -> np.ndarray:
    """(top, left, bottom, right) in 0..1 of the bright part of a plane [h, w]."""
    rows, columns = np.nonzero(plane > 127)
    height, width = plane.shape
    return np.array(
        [[rows.min() / height, columns.min() / width, (rows.max() + 1) / height, (columns.max() + 1) / width]]
    )


@pytest.mark.parametrize(("layout", "shape"), [("nhwc", (1, 32, 64, 3)), ("nchw", (1, 3, 32, 64))])
@pytest.mark.parametrize("fit", ["stretch", "letterbox", "letterbox_top_left", "letterbox_edge", "crop"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16", "float32"])
def test_width_and_height_are_never_swapped(layout: str, shape: tuple[int, ...], fit: str, dtype: str) -> None:
    tensor, _ = make_input(make_picture(100, 70), make_spec(layout=layout, fit=fit, dtype=dtype))
    assert tensor.shape == shape
    assert tensor.dtype == np.dtype(dtype)
    assert tensor.flags.c_contiguous


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "letterbox_top_left", "letterbox_edge", "crop"])
@pytest.mark.parametrize("size", [(200, 100), (100, 200), (97, 61), (640, 480), (90, 120)])
def test_a_box_found_in_the_input_maps_back_to_where_it_is_in_the_picture(fit: str, size: tuple[int, int]) -> None:
    width, height = size
    mark = (round(height * 0.4), round(width * 0.45), round(height * 0.6), round(width * 0.6))
    picture = make_picture(width, height, mark=mark)
    tensor, placement = make_input(picture, make_spec(width=320, height=160, fit=fit))
    truth = np.array([[mark[0] / height, mark[1] / width, mark[2] / height, mark[3] / width]])
    assert np.abs(placement.to_picture(find_box(tensor[0, :, :, 0])) - truth).max() < 0.02


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    fit=st.sampled_from(["letterbox", "letterbox_top_left", "letterbox_edge"]),
)
@settings(max_examples=30, deadline=None)
def test_a_letterbox_keeps_the_shape_and_stays_inside(width: int, height: int, fit: str) -> None:
    _, placement = make_input(Picture(np.zeros((4, 4, 3), np.uint8), width, height), make_spec(fit=fit))
    assert placement.left >= 0
    assert placement.top >= 0
    assert placement.left + placement.width <= 1.0 + 1e-9
    assert placement.top + placement.height <= 1.0 + 1e-9
    assert placement.width == 1.0 or placement.height == 1.0
    inner_width, inner_height = placement.width * 64, placement.height * 32
    assert abs(inner_width * height - inner_height * width) <= max(width, height)  # one pixel of rounding


def test_a_letterbox_is_centred_on_the_pad_and_the_other_kind_begins_in_the_corner() -> None:
    picture = make_picture(32, 32, mark=(0, 0, 32, 32))
    centred, _ = make_input(picture, make_spec(fit="letterbox", pad=128))
    assert (centred[0, :, 16:48] == 255).all()
    assert (centred[0, :, :16] == 128).all()
    assert (centred[0, :, 48:] == 128).all()
    flat, _ = make_input(make_picture(64, 16, mark=(0, 0, 16, 64)), make_spec(fit="letterbox", pad=128))
    assert (flat[0, 8:24] == 255).all()
    assert (flat[0, :8] == 128).all()
    assert (flat[0, 24:] == 128).all()
    corner, _ = make_input(picture, make_spec(fit="letterbox_top_left", pad=114))
    assert (corner[0, :, :32] == 255).all()
    assert (corner[0, :, 32:] == 114).all()


@pytest.mark.parametrize(("width", "height"), [(64, 16), (61, 17), (3, 90)])
def test_beside_a_letterbox_the_edge_may_be_repeated(width: int, height: int) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    plain, placement = make_input(Picture(pixels, width, height), make_spec(fit="letterbox"))
    repeated, same = make_input(Picture(pixels, width, height), make_spec(fit="letterbox_edge"))
    assert same == placement
    top, left = round(placement.top * 32), round(placement.left * 64)
    bottom, right = top + round(placement.height * 32), left + round(placement.width * 64)
    rows, columns = np.arange(32).clip(top, bottom - 1), np.arange(64).clip(left, right - 1)
    assert (repeated[0] == plain[0][np.ix_(rows, columns)]).all()
    assert (repeated != plain).any()


def test_a_crop_takes_the_centre_after_the_shorter_side_was_resized() -> None:
    picture = make_picture(400, 200, mark=(100, 200, 200, 400))  # the lower right quarter
    tensor, placement = make_input(picture, make_spec(width=50, height=50, fit="crop", resize_to=100))
    assert (tensor[0, 27:, 27:] == 255).all()
    assert (tensor[0, :23, :23] == 0).all()
    whole = placement.to_picture(np.array([[0.0, 0.0, 1.0, 1.0]]))
    assert np.allclose(whole, [[0.25, 0.375, 0.75, 0.625]])


def test_the_whole_picture_maps_to_the_whole_picture() -> None:
    _, placement = make_input(make_picture(50, 90), make_spec())
    assert placement.to_picture(np.array([[0.0, 0.0, 1.0, 1.0]])).tolist() == [[0.0, 0.0, 1.0, 1.0]]
    assert placement == Placement(0.0, 0.0, 1.0, 1.0, 50, 90)


def make_colour(red: int, green: int, blue: int) -> Picture:
    return Picture(np.full((4, 4, 3), (red, green, blue), np.uint8), 4, 4)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_normalisation_is_per_channel_in_the_colour_order_of_the_model(layout: str) -> None:
    spec = make_spec(layout=layout, dtype="float32", colour="bgr", mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0))
    tensor, _ = make_input(make_colour(40, 100, 200), spec)
    channels = tensor[0, 0, 0] if layout == "nhwc" else tensor[0, :, 0, 0]
    assert np.allclose(channels, [(200 - 10) / 2, (100 - 20) / 4, (40 - 30) / 5], atol=1e-5)


def test_one_mean_and_one_std_serve_all_channels() -> None:
    spec = make_spec(dtype="float32", mean=(127.5,), std=(127.5,))
    tensor, _ = make_input(make_colour(0, 255, 51), spec)
    assert np.allclose(tensor[0, 0, 0], [-1.0, 1.0, -0.6], atol=1e-6)


def test_grey_is_weighed_as_jpeg_weighs_it() -> None:
    tensor, _ = make_input(make_colour(255, 0, 0), make_spec(colour="grey", layout="nchw"))
    assert tensor.shape == (1, 1, 32, 64)
    assert tensor[0, 0, 0, 0] == 76


def test_integer_inputs_are_quantised_and_clipped() -> None:
    spec = make_spec(dtype="int8", std=(255.0,), quant_scale=1 / 255, quant_zero=-128)
    tensor, _ = make_input(make_colour(0, 128, 255), spec)
    assert tensor[0, 0, 0].tolist() == [-128, 0, 127]
    beyond = make_spec(dtype="uint8", mean=(0.0,), std=(255.0,), quant_scale=0.001, quant_zero=0)
    assert make_input(make_colour(0, 10, 255), beyond)[0][0, 0, 0].tolist() == [0, 39, 255]


def test_pixels_for_a_plain_uint8_input_are_passed_as_they_are() -> None:
    tensor, _ = make_input(make_colour(1, 2, 3), make_spec(width=4, height=4))
    assert (tensor == (1, 2, 3)).all()


def test_the_size_input_is_height_then_width_of_the_original() -> None:
    picture = Picture(np.zeros((10, 20, 3), np.uint8), 2000, 1000)
    size = make_size_input(picture)
    assert size.dtype == np.float32
    assert size.tolist() == [[1000.0, 2000.0]]


def test_enough_is_the_input_or_what_is_cropped_from() -> None:
    assert get_enough(make_spec()) == (64, 32)
    assert get_enough(make_spec(fit="crop", resize_to=256)) == (256, 256)
