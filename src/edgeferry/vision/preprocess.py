"""Preprocess: pixels of a picture -> the input tensor of a model, and where the picture came to lie in it.

What this file leaves to others: decoding and resizing (`image.py`), which numbers a model wants (its ModelSpec).

Rules:
- Sizes are always (width, height) as arguments and [height, width] as array shapes.
- `value = (pixel - mean) / std` on 0..255, then for integer inputs `rint(value / quant_scale) + quant_zero`, clipped.
- A Placement maps boxes in 0..1 of the input back to 0..1 of the upright picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeferry.model.spec import InputSpec
from edgeferry.vision.image import Picture, Pixels, resize

Tensor = NDArray[Any]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601, as JPEG and Pillow weigh RGB."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the whole picture lies in the input, as fractions of the input's width and height (crop: beyond 0..1).

    `picture_width`, `picture_height`: the upright original in pixels. `pixels`: the picture as it was decoded, for
    families that answer with a picture.
    """

    left: float
    top: float
    width: float
    height: float
    picture_width: int
    picture_height: int
    pixels: Pixels | None = field(default=None, compare=False)

    def to_picture(self, boxes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Boxes [n, 4] (top, left, bottom, right) in 0..1 of the input -> 0..1 of the picture, not clipped."""
        start = np.array([self.top, self.left, self.top, self.left])
        extent = np.array([self.height, self.width, self.height, self.width])
        placed: NDArray[np.float64] = (boxes.astype(np.float64) - start) / extent
        return placed


def get_enough(spec: InputSpec) -> tuple[int, int]:
    """(width, height) in pixels below which a decoded picture would be too small for this input."""
    least = spec.resize_to if spec.fit == "crop" else 0
    return max(spec.width, least), max(spec.height, least)


def make_input(picture: Picture, spec: InputSpec) -> tuple[Tensor, Placement]:
    """Fits, colours and normalises a picture.

    Returns:
        The tensor, [1, h, w, c] or [1, c, h, w] as `spec.layout` says, of dtype `spec.dtype`; and the Placement.
    """
    pixels, placement = _FITS[spec.fit](picture, spec)
    return make_tensor(pixels, spec), replace(placement, pixels=picture.pixels)


def make_tensor(pixels: Pixels, spec: InputSpec) -> Tensor:
    """Pixels [height, width, 3] of the input's size -> the tensor that `make_input` describes."""
    return _normalise(_recolour(pixels, spec), spec)


def make_size_input(picture: Picture) -> NDArray[np.float32]:
    """The second input of Tiny YOLOv3: (height, width) of the upright original, float32 [1, 2]."""
    return np.array([[picture.height, picture.width]], np.float32)


def _stretch(picture: Picture, spec: InputSpec) -> tuple[Pixels, Placement]:
    pixels = resize(picture.pixels, spec.width, spec.height, resample=spec.resample)
    return pixels, Placement(0.0, 0.0, 1.0, 1.0, picture.width, picture.height)


def _letterbox(picture: Picture, spec: InputSpec) -> tuple[Pixels, Placement]:
    width, height = _get_inner_size(picture, spec)
    return _pad(picture, spec, (width, height), ((spec.width - width) // 2, (spec.height - height) // 2))


def _letterbox_top_left(picture: Picture, spec: InputSpec) -> tuple[Pixels, Placement]:
    return _pad(picture, spec, _get_inner_size(picture, spec), (0, 0))


def _letterbox_edge(picture: Picture, spec: InputSpec) -> tuple[Pixels, Placement]:
    """Centred, and what is left over repeats the edge: a line of another grey there would be seen in a made picture."""
    canvas, place = _letterbox(picture, spec)
    left, top = round(place.left * spec.width), round(place.top * spec.height)
    right, bottom = left + round(place.width * spec.width), top + round(place.height * spec.height)
    around = ((top, spec.height - bottom), (left, spec.width - right), (0, 0))
    return np.pad(canvas[top:bottom, left:right], around, "edge"), place


def _get_inner_size(picture: Picture, spec: InputSpec) -> tuple[int, int]:
    """The largest (width, height) of the picture's shape inside the input; rounded as YOLOv3 rounds it in its graph."""
    scale = min(spec.width / picture.width, spec.height / picture.height)
    sides = (round(picture.width * scale), round(picture.height * scale))
    return min(max(sides[0], 1), spec.width), min(max(sides[1], 1), spec.height)


def _pad(picture: Picture, spec: InputSpec, size: tuple[int, int], corner: tuple[int, int]) -> tuple[Pixels, Placement]:
    (width, height), (left, top) = size, corner
    canvas = np.full((spec.height, spec.width, 3), spec.pad, np.uint8)
    canvas[top : top + height, left : left + width] = resize(picture.pixels, width, height, resample=spec.resample)
    placement = Placement(
        left / spec.width,
        top / spec.height,
        width / spec.width,
        height / spec.height,
        picture.width,
        picture.height,
    )
    return canvas, placement


def _crop(picture: Picture, spec: InputSpec) -> tuple[Pixels, Placement]:
    """Shorter side to `resize_to` (at least so that the crop is covered), then the centre; done as one resize."""
    height, width = picture.pixels.shape[:2]
    scale = max(spec.width / width, spec.height / height, spec.resize_to / min(width, height))
    across, down = min(spec.width / scale, width), min(spec.height / scale, height)
    left, top = (width - across) / 2, (height - down) / 2
    box = (left, top, left + across, top + down)
    pixels = resize(picture.pixels, spec.width, spec.height, resample=spec.resample, box=box)
    place = Placement(-left / across, -top / down, width / across, height / down, picture.width, picture.height)
    return pixels, place


_FITS = {
    "stretch": _stretch,
    "letterbox": _letterbox,
    "letterbox_top_left": _letterbox_top_left,
    "letterbox_edge": _letterbox_edge,
    "crop": _crop,
}


def _recolour(pixels: Pixels, spec: InputSpec) -> Pixels:
    """RGB [h, w, 3] -> the colour order of the model, [h, w, 3] or [h, w, 1]."""
    if spec.colour == "bgr":
        return pixels[:, :, ::-1]
    if spec.colour == "grey":
        grey: Pixels = np.rint(pixels @ LUMA).astype(np.uint8)[:, :, None]
        return grey
    return pixels


def _normalise(pixels: Pixels, spec: InputSpec) -> Tensor:
    if spec.dtype in ("uint8", "int8"):
        tensor = _quantise(pixels, spec)
        return np.ascontiguousarray(tensor[None] if spec.layout == "nhwc" else tensor.transpose(2, 0, 1)[None])
    planes = _scale(pixels, spec)
    return planes if spec.dtype == "float32" else planes.astype(np.float16)


def _scale(pixels: Pixels, spec: InputSpec) -> NDArray[np.float32]:
    """uint8 [h, w, c] -> float32 in the model's layout, one pass per channel and no copy between."""
    height, width, channels = pixels.shape
    planar = spec.layout == "nchw"
    out = np.empty((1, channels, height, width) if planar else (1, height, width, channels), np.float32)
    for channel in range(channels):
        mean, std = (float(values[channel % len(values)]) for values in (spec.mean, spec.std))
        target = out[0, channel] if planar else out[0, :, :, channel]
        np.multiply(pixels[:, :, channel], np.float32(1.0 / std), out=target)
        if mean:
            target -= np.float32(mean / std)
    return out


def _quantise(pixels: Pixels, spec: InputSpec) -> Tensor:
    """uint8 [h, w, c] -> uint8 or int8 [h, w, c] through a table of the 256 possible values per channel."""
    tables = [_make_table(spec, channel) for channel in range(pixels.shape[2])]
    if all(np.array_equal(table, np.arange(256)) for table in tables):
        return pixels
    return np.stack([table[pixels[:, :, channel]] for channel, table in enumerate(tables)], axis=2)


def _make_table(spec: InputSpec, channel: int) -> Tensor:
    mean, std = spec.mean[channel % len(spec.mean)], spec.std[channel % len(spec.std)]
    values = (np.arange(256) - mean) / std
    if spec.quant_scale:
        values = np.rint(values / spec.quant_scale) + spec.quant_zero
    limits = np.iinfo(np.dtype(spec.dtype))
    table: Tensor = np.clip(np.rint(values), limits.min, limits.max).astype(spec.dtype)
    return table
