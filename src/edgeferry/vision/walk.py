"""Walk: the way of a picture through the stages of a version, as a generator.

It yields which stage shall run on which tensors, is sent the outputs, and returns the answer: no engine here, and none
of this in the worker. What a single stage does stands in `answers/`; a pipeline of several is a row in `PIPELINES`.

Rules:
- Terms (labels, thresholds) come with each picture, one of each per stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import Stage
from edgeferry.vision.answers.table import decode, require_family
from edgeferry.vision.hand import walk_hand
from edgeferry.vision.image import Picture
from edgeferry.vision.preprocess import make_input, make_size_input
from edgeferry.vision.steps import Call, Labels, Pipeline, Walk, require_input

PIPELINES: dict[tuple[str, ...], Pipeline] = {
    ("palm", "hand_landmarks"): walk_hand,
    ("palm", "hand_landmarks", "gesture"): walk_hand,
}
"""Families of the stages, in order -> how a picture walks through them."""


def walk(stages: Sequence[Stage], labels: Sequence[Labels], picture: Picture) -> Walk:
    """The way of `picture` through `stages`; `labels` by stage. Raises ModelUnsupported."""
    return require_pipeline(stages)(stages, labels, picture)


def require_pipeline(stages: Sequence[Stage]) -> Pipeline:
    """How pictures walk through `stages`; raises ModelUnsupported where there is no such family or pipeline."""
    if len(stages) == 1:
        require_family(stages[0])
        if stages[0].answer.family != "tensors":
            require_input(stages[0])
        return _walk_single
    found = PIPELINES.get(tuple(stage.answer.family for stage in stages))
    if found is None:
        families = " -> ".join(stage.answer.family for stage in stages)
        known = ", ".join(" -> ".join(one) for one in PIPELINES) or "none"
        raise ModelUnsupported(f"expected a pipeline among {known}, found {families!r:.120}")
    return found


def _walk_single(stages: Sequence[Stage], labels: Sequence[Labels], picture: Picture) -> Walk:
    spec = require_input(stages[0])
    tensor, placement = make_input(picture, spec)
    outputs = yield Call(0, tensor, make_size_input(picture) if spec.size_tensor else None)
    return decode(stages[0], outputs, placement, labels[0])
