"""Draw: a picture with its answer drawn on it, for people to look at.

What this file leaves to others: decoding (`image.py`), what was found (`answer.py`), what is joined by lines
(`limbs.py`).

Rules:
- A picture that the model made is the drawing itself, all of its pixels.
- Otherwise large pictures are made smaller first (`SIDE_MAX_PX`): this is for eyes, not for measuring.
- One colour per class, the same in every picture; of a body the left side is blue, the right one orange. Text is black
  or white, whichever reads better on it.
- The background of a mask is not tinted; its other classes are, and named at the top left with their share.
- Pillow's built-in font, in a size that follows the picture; text keeps inside the picture.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from edgeferry.vision.answer import (
    Answer,
    ClassificationAnswer,
    FoundObject,
    MaskClass,
    PictureAnswer,
    Point,
    SegmentationAnswer,
    list_objects,
    list_regions,
)
from edgeferry.vision.image import DEFAULT_LIMITS, Data, PictureLimits, read_picture, resize
from edgeferry.vision.limbs import list_limbs, list_sure

SIDE_MAX_PX = 1600
CLASSES_MAX = 5
MASKS_MAX = 20
_DOTS_FROM = 40
"""So many points are small dots: a face mesh would hide the face."""

_COLOURS = (  # Okabe and Ito (2008), distinct also to colour-blind eyes; without their black
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
_LEFT, _RIGHT = _COLOURS[1], _COLOURS[0]
_DARK, _LIGHT = (20, 20, 20), (255, 255, 255)
_TINT = 0.5

_MARGIN_PX = 3

Media = Literal["png", "jpeg"]
_Colour = tuple[int, int, int]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_answer(data: Data, answer: Answer, *, media: Media = "png", limits: PictureLimits = DEFAULT_LIMITS) -> bytes:
    """Draws the answer on the upright picture and encodes it; a picture that the model made is encoded as it is.

    Raises:
        PictureTooLarge, MediaTypeRefused, PictureUnreadable: as `read_picture` does.
    """
    if isinstance(answer, PictureAnswer):
        return answer.png if media == "png" else _encode(_open_made(answer), media)
    image = Image.fromarray(read_picture(data, limits, enough=(SIDE_MAX_PX, SIDE_MAX_PX)).pixels)
    image.thumbnail((SIDE_MAX_PX, SIDE_MAX_PX), Image.Resampling.BILINEAR)
    if isinstance(answer, SegmentationAnswer):
        image = _tint(image, answer)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(12, round(min(image.size) / 32)))
    if isinstance(answer, ClassificationAnswer):
        _draw_legend(draw, font, ((one.class_index, f"{one.label} {one.score:.0%}") for one in answer.classes))
    elif isinstance(answer, SegmentationAnswer):
        _draw_legend(draw, font, ((one.class_index, f"{one.label} {one.share:.0%}") for one in list_regions(answer)))
    else:
        for found in reversed(list_objects(answer)):  # the best last, on top
            _draw_object(draw, font, found, image.size)
    return _encode(image, media)


def _open_made(answer: PictureAnswer) -> Image.Image:
    limits = PictureLimits(len(answer.png), answer.width * answer.height)
    return Image.fromarray(read_picture(answer.png, limits).pixels)


# --- objects and their points -----------------------------------------------------------------------------------------
def _draw_object(draw: ImageDraw.ImageDraw, font: _Font, found: FoundObject, size: tuple[int, int]) -> None:
    width, height = size
    top, left, bottom, right = found.box
    corners = (left * (width - 1), top * (height - 1), right * (width - 1), bottom * (height - 1))
    colour = _get_colour(found.class_index)
    draw.rectangle(corners, outline=colour, width=max(2, min(size) // 200))
    _draw_points(draw, found, size)
    text = f"{found.label} {found.score:.0%}" + "".join(
        f", {one.label} {one.score:.0%}" for one in found.attributes[:1]
    )
    _, _, text_width, text_height = _measure(draw, font, text)
    x = max(0.0, min(corners[0], width - text_width))
    above = min([corners[1], *(_place(point, size)[1] for point in list_sure(found.points))]) - text_height
    y = above if above >= 0 else max(0.0, min(corners[1], height - text_height))
    _draw_tag(draw, font, text=text, at=(x, y), colour=colour)


def _draw_points(draw: ImageDraw.ImageDraw, found: FoundObject, size: tuple[int, int]) -> None:
    points = list_sure(found.points)
    thick = _pick_thickness([_place(point, size) for point in points], size)
    own = _get_colour(found.class_index)
    limbs = [(_place(one, size), _place(other, size), _pick_side(one, other, own)) for one, other in list_limbs(points)]
    for start, end, _ in limbs:  # a dark edge below all of them, so that they stand out on any ground
        draw.line((*start, *end), fill=_DARK, width=thick + 2)
    for start, end, colour in limbs:
        draw.line((*start, *end), fill=colour, width=thick)
    for point in points:
        x, y = _place(point, size)
        if len(points) < _DOTS_FROM:
            draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=_LIGHT, outline=_DARK)
        else:
            draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=_LIGHT)


def _pick_thickness(places: list[tuple[float, float]], size: tuple[int, int]) -> int:
    """Of lines, and the radius of dots: by the picture, less for what is small in it and for many points."""
    if len(places) >= _DOTS_FROM:
        return max(1, min(size) // 400)
    usual = max(2, min(size) // 150)
    reach = max((max(axis) - min(axis) for axis in zip(*places, strict=True)), default=0.0)
    return min(usual, max(1, round(reach / 40))) if reach else usual


def _place(point: Point, size: tuple[int, int]) -> tuple[float, float]:
    """Pixels; a point far outside comes nearer, where lines to it still leave the picture about where they should."""
    return (max(-1.0, min(point.x, 2.0)) * (size[0] - 1), max(-1.0, min(point.y, 2.0)) * (size[1] - 1))


def _pick_side(one: Point, other: Point, own: _Colour) -> _Colour:
    for side, colour in (("left_", _LEFT), ("right_", _RIGHT)):
        named = [point.name.startswith(side) for point in (one, other)]
        if all(named) or (any(named) and "nose" in (one.name, other.name)):
            return colour
    return own


# --- masks ------------------------------------------------------------------------------------------------------------
def _tint(image: Image.Image, answer: SegmentationAnswer) -> Image.Image:
    """The classes of the mask in their colours over the picture, each with its outline."""
    indices, lengths = np.array(answer.runs, np.int64).T
    classes = np.repeat(indices, lengths).reshape(answer.height, answer.width)
    pixels = np.asarray(image).astype(np.float32)
    for one in list_regions(answer)[:MASKS_MAX]:
        _tint_class(pixels, classes == one.class_index, one)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _tint_class(pixels: NDArray[np.float32], mask: NDArray[np.bool_], one: MaskClass) -> None:
    height, width = pixels.shape[:2]
    smooth = Image.fromarray(resize(mask.astype(np.uint8) * np.uint8(255), width, height))
    core = np.asarray(smooth.filter(ImageFilter.MinFilter(2 * max(1, min(width, height) // 250) + 1))) > 127
    inside = np.asarray(smooth) > 127
    colour = np.array(_get_colour(one.class_index), np.float32)
    pixels[inside] += (colour - pixels[inside]) * _TINT
    pixels[inside & ~core] = colour


# --- text -------------------------------------------------------------------------------------------------------------
def _draw_legend(draw: ImageDraw.ImageDraw, font: _Font, lines: Iterable[tuple[int, str]]) -> None:
    """A line for each class (its index and what to say of it), from the top left down; the first few."""
    y = 0.0
    for (class_index, text), _ in zip(lines, range(CLASSES_MAX), strict=False):
        _draw_tag(draw, font, text=text, at=(0.0, y), colour=_get_colour(class_index))
        y += _measure(draw, font, text)[3]


def _draw_tag(draw: ImageDraw.ImageDraw, font: _Font, *, text: str, at: tuple[float, float], colour: _Colour) -> None:
    _, _, width, height = _measure(draw, font, text)
    draw.rectangle((at[0], at[1], at[0] + width, at[1] + height), fill=colour)
    light = colour[0] * 0.299 + colour[1] * 0.587 + colour[2] * 0.114 > 130
    draw.text((at[0] + _MARGIN_PX, at[1]), text, font=font, fill=(0, 0, 0) if light else (255, 255, 255))


def _measure(draw: ImageDraw.ImageDraw, font: _Font, text: str) -> tuple[float, float, float, float]:
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    return left, top, right + 2 * _MARGIN_PX, bottom + _MARGIN_PX


def _get_colour(class_index: int) -> _Colour:
    return _COLOURS[class_index % len(_COLOURS)]


def _encode(image: Image.Image, media: Media) -> bytes:
    stream = io.BytesIO()
    if media == "png":
        image.save(stream, "PNG", compress_level=1)
    else:
        image.save(stream, "JPEG", quality=90)
    return stream.getvalue()
