"""Class map: for each pixel the class it belongs to, or the scores of all classes -> a mask. DeepLab and its like.

The output is the one that `answer.outputs["classes"]` names, else the only one:
- whole numbers [1, h, w], [1, h, w, 1] or [1, 1, h, w]: class indices, as an ArgMax in the graph leaves them;
- scores [1, h, w, c] or [1, c, h, w] with c > 1: the class of the greatest score. Which axis holds the classes says
  `answer.parameters["layout"]` (`nhwc` or `nchw`), else the layout of the input.

Rules:
- Scores that are no numbers lose against any other.
- Thresholds play no part: each pixel has a class.
"""

from __future__ import annotations

import numpy as np

from edgeferry.model.labels import find_label
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import SegmentationAnswer
from edgeferry.vision.answers.masks import ClassMap, cover_picture, find_output, make_class_map, make_segmentation
from edgeferry.vision.answers.objects import Outputs, Tensor, make_refusal
from edgeferry.vision.preprocess import Placement

_WANTED = "classes [1, h, w], or scores [1, h, w, c] or [1, c, h, w]"


def decode_class_map(
    stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]
) -> SegmentationAnswer:
    """See the module. Raises ModelUnsupported when the outputs are not those of this family."""
    values = find_output(stage, outputs, role="classes", wanted=_WANTED)
    if values.ndim not in (3, 4) or values.shape[0] != 1:
        raise make_refusal(_WANTED, outputs)
    classes = _choose_classes(values[0], _get_layout(stage))
    return make_segmentation(
        cover_picture(classes, placement), lambda index: find_label(labels, index, stage.labels.offset)
    )


def _get_layout(stage: Stage) -> str:
    declared = stage.answer.parameters.get("layout", "")
    return str(declared or (stage.input.layout if stage.input is not None else "nhwc"))


def _choose_classes(values: Tensor, layout: str) -> ClassMap:
    """[h, w], [h, w, c] or [c, h, w] -> class indices [h, w]."""
    if values.ndim == 2:
        return make_class_map(values)
    axis = 0 if layout == "nchw" else 2
    if 1 in (values.shape[0], values.shape[2]):
        return make_class_map(values[0] if values.shape[0] == 1 else values[:, :, 0])
    scores = np.where(np.isnan(values), -np.inf, values) if values.dtype.kind == "f" else values
    return make_class_map(scores.argmax(axis=axis))
