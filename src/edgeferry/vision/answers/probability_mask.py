"""Probability mask: for each pixel how probably it belongs to what the model looks for -> a mask, or a cut-out.

The output is the one that `answer.outputs["mask"]` names, else the only one: [1, h, w, 1], [1, 1, h, w] or [1, h, w].
Task `segmentation` answers with the mask. Task `image` takes the background away: the answer is the picture itself
with the probability as its alpha channel.

Rules:
- `answer.parameters["activation"]`: "none" (default: 0..1 as they are) or "sigmoid" (to apply to logits).
- Pixels at or above `thresholds.score` are class 1, the others class 0. Class 1 is labelled by the line of class 1, or
  by the only line; class 0 is "background" where no label says otherwise.
- Values that are no numbers are 0.
- The cut-out has the size of the picture as it was decoded; colours stay, only alpha is new (bilinear).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import PictureAnswer, SegmentationAnswer
from edgeferry.vision.answers.masks import Plane, cover_picture, find_plane, make_segmentation
from edgeferry.vision.answers.objects import Outputs
from edgeferry.vision.image import encode_png, resize
from edgeferry.vision.preprocess import Placement

_BACKGROUND = "background"
_FOREGROUND = "foreground"


def decode_probability_mask(
    stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]
) -> SegmentationAnswer | PictureAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    plane = cover_picture(_activate(find_plane(stage, outputs, role="mask"), stage), placement)
    shades = np.rint(plane * 255).astype(np.uint8)
    if stage.task == "image":
        return _cut_out(shades, placement)
    classes = (plane >= stage.thresholds.score).astype(np.uint8)
    return make_segmentation(classes, _name_classes(labels, stage.labels.offset).__getitem__, shades=shades)


def _activate(values: Plane, stage: Stage) -> Plane:
    kind = stage.answer.parameters.get("activation", "none")
    if kind == "sigmoid":
        values = 1 / (1 + np.exp(-values.clip(-80, 80)))
    elif kind != "none":
        raise ModelUnsupported(f"expected answer.parameters.activation none or sigmoid, found {kind!r:.40}")
    return np.nan_to_num(values, nan=0.0).clip(0.0, 1.0)


def _name_classes(labels: tuple[str, ...], offset: int) -> tuple[str, str]:
    if len(labels) == 1:
        return _BACKGROUND, labels[0]
    lines = (labels[line] if 0 <= line < len(labels) else "" for line in (offset, offset + 1))
    background, foreground = lines
    return background or _BACKGROUND, foreground or _FOREGROUND


def _cut_out(shades: NDArray[np.uint8], placement: Placement) -> PictureAnswer:
    if placement.pixels is None:
        raise ModelUnsupported("expected the picture beside the mask, to cut out of it")
    height, width = placement.pixels.shape[:2]
    alpha = resize(shades, width, height)
    return PictureAnswer(width=width, height=height, png=encode_png(np.dstack([placement.pixels, alpha])))
