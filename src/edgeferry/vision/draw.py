"""Draw: a picture with its answer drawn on it, for people to look at.

What this file leaves to others: decoding (`image.py`), what was found (`answer.py`).

Rules:
- Large pictures are made smaller first (`SIDE_MAX_PX`): this is for eyes, not for measuring.
- One colour per class, the same in every picture; text is black or white, whichever reads better on it.
- Pillow's built-in font, in a size that follows the picture; text keeps inside the picture.
"""

from __future__ import annotations

import io
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from edgeferry.vision.answer import Answer, ClassificationAnswer, FoundObject, list_objects
from edgeferry.vision.image import DEFAULT_LIMITS, PictureLimits, read_picture

SIDE_MAX_PX = 1600
CLASSES_MAX = 5

_COLOURS = (  # Okabe and Ito (2008), distinct also to colour-blind eyes; without their black
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip

_MARGIN_PX = 3

Media = Literal["png", "jpeg"]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_answer(
    data: bytes | bytearray, answer: Answer, *, media: Media = "png", limits: PictureLimits = DEFAULT_LIMITS
) -> bytes:
    """Draws boxes and labels on the upright picture and encodes it.

    Raises:
        PictureTooLarge, MediaTypeRefused, PictureUnreadable: as `read_picture` does.
    """
    image = Image.fromarray(read_picture(data, limits, enough=(SIDE_MAX_PX, SIDE_MAX_PX)).pixels)
    image.thumbnail((SIDE_MAX_PX, SIDE_MAX_PX), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(12, round(min(image.size) / 32)))
    if isinstance(answer, ClassificationAnswer):
        _draw_classes(draw, font, answer)
    else:
        for found in reversed(list_objects(answer)):  # the best last, on top
            _draw_object(draw, font, found, image.size)
    return _encode(image, media)


def _draw_object(draw: ImageDraw.ImageDraw, font: _Font, found: FoundObject, size: tuple[int, int]) -> None:
    width, height = size
    top, left, bottom, right = found.box
    corners = (left * (width - 1), top * (height - 1), right * (width - 1), bottom * (height - 1))
    colour = _COLOURS[found.class_index % len(_COLOURS)]
    draw.rectangle(corners, outline=colour, width=max(2, min(size) // 200))
    text = f"{found.label} {found.score:.0%}"
    _, _, text_width, text_height = _measure(draw, font, text)
    x = max(0.0, min(corners[0], width - text_width))
    above = corners[1] - text_height
    y = above if above >= 0 else min(corners[1], height - text_height)
    _draw_tag(draw, font, text=text, at=(x, y), colour=colour)


def _draw_classes(draw: ImageDraw.ImageDraw, font: _Font, answer: ClassificationAnswer) -> None:
    y = 0.0
    for one in answer.classes[:CLASSES_MAX]:
        text = f"{one.label} {one.score:.0%}"
        _draw_tag(draw, font, text=text, at=(0.0, y), colour=_COLOURS[one.class_index % len(_COLOURS)])
        y += _measure(draw, font, text)[3]


def _draw_tag(
    draw: ImageDraw.ImageDraw, font: _Font, *, text: str, at: tuple[float, float], colour: tuple[int, int, int]
) -> None:
    _, _, width, height = _measure(draw, font, text)
    draw.rectangle((at[0], at[1], at[0] + width, at[1] + height), fill=colour)
    light = colour[0] * 0.299 + colour[1] * 0.587 + colour[2] * 0.114 > 130
    draw.text((at[0] + _MARGIN_PX, at[1]), text, font=font, fill=(0, 0, 0) if light else (255, 255, 255))


def _measure(draw: ImageDraw.ImageDraw, font: _Font, text: str) -> tuple[float, float, float, float]:
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    return left, top, right + 2 * _MARGIN_PX, bottom + _MARGIN_PX


def _encode(image: Image.Image, media: Media) -> bytes:
    stream = io.BytesIO()
    if media == "png":
        image.save(stream, "PNG", compress_level=1)
    else:
        image.save(stream, "JPEG", quality=90)
    return stream.getvalue()
