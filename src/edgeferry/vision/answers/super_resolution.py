"""Super-resolution on luma: the brightness of a larger picture out, the colours of the given one -> a picture.

The output is the one that `answer.outputs["luma"]` names, else the only one: [1, 1, h, w], [1, h, w, 1] or [1, h, w],
in the unit of the input (`value = (luma - mean) / std`). As Shi et al. (2016, "... Efficient Sub-Pixel Convolutional
Neural Network", section 3) show colour pictures: Y comes from the model, Cb and Cr are enlarged bicubic.

Rules:
- The answer holds what the model has seen: padding of a letterbox is cut off, a crop stays a crop, a stretch stays one.
- YCbCr is linear in RGB: a new Y with Cb and Cr as they are moves red, green and blue alike.
- The output goes a little beyond its range: it is clipped.
"""

from __future__ import annotations

import numpy as np

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import PictureAnswer
from edgeferry.vision.answers.masks import Plane, find_plane
from edgeferry.vision.answers.objects import Outputs
from edgeferry.vision.image import Pixels, encode_png, resize
from edgeferry.vision.preprocess import LUMA, Placement


def decode_super_resolution(
    stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]
) -> PictureAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    luma = _cut_padding(_to_bytes_range(find_plane(stage, outputs, role="luma"), stage), placement)
    height, width = luma.shape
    enlarged = _enlarge(placement, width, height).astype(np.float32)
    shift = luma - enlarged @ LUMA
    pixels = np.rint(enlarged + shift[:, :, None]).clip(0, 255).astype(np.uint8)
    return PictureAnswer(width=width, height=height, png=encode_png(pixels))


def _to_bytes_range(plane: Plane, stage: Stage) -> Plane:
    """The unit of the input -> 0..255, not rounded."""
    if not np.isfinite(plane).all():
        raise ModelUnsupported("expected a picture of finite numbers, found others")
    mean, std = (stage.input.mean[0], stage.input.std[0]) if stage.input is not None else (0.0, 1.0)
    return (plane * np.float32(std) + np.float32(mean)).clip(0.0, 255.0)


def _cut_padding(plane: Plane, placement: Placement) -> Plane:
    height, width = plane.shape
    rows = _get_span(placement.top, placement.height, height)
    return plane[rows, _get_span(placement.left, placement.width, width)]


def _get_span(start: float, extent: float, side: int) -> slice:
    first, last = max(round(start * side), 0), min(round((start + extent) * side), side)
    return slice(first, max(last, first + 1))


def _enlarge(placement: Placement, width: int, height: int) -> Pixels:
    """What the model has seen of the picture, in the size of its answer."""
    if placement.pixels is None:
        raise ModelUnsupported("expected the picture beside its luma, to take the colours from")
    tall, wide = placement.pixels.shape[:2]
    left, top = max(-placement.left / placement.width, 0.0), max(-placement.top / placement.height, 0.0)
    right, bottom = (1.0 - placement.left) / placement.width, (1.0 - placement.top) / placement.height
    box = (left * wide, top * tall, min(right, 1.0) * wide, min(bottom, 1.0) * tall)
    return resize(placement.pixels, width, height, resample="bicubic", box=box)
