"""Super-resolution on luma: a grey picture in, a larger one out, made by a pixel shuffle."""

from __future__ import annotations

from edgeferry.model.facts import ModelFacts, TensorFacts
from edgeferry.model.families.draft import Draft, fill_picture, find_layout, find_picture

_SHUFFLES = ("DepthToSpace", "DEPTH_TO_SPACE")
_TURNS, _RESHAPES = ("Transpose", "TRANSPOSE"), ("Reshape", "RESHAPE")
"""A shuffle written out: reshape, turn, reshape. A turn alone may as well change the order of axes."""


def draft_super_resolution(facts: ModelFacts, draft: Draft) -> bool:
    """As the sub-pixel network of PyTorch's tutorial and the ONNX zoo: Y in 0..1, three times as wide and high."""
    picture = find_picture(facts)
    if picture is None or len(facts.inputs) != 1 or len(facts.outputs) != 1 or not picture.dtype.startswith("float"):
        return False
    layout = find_layout(picture, facts)
    if picture.shape[layout.index("c")] != 1 or not _shuffles(facts):
        return False
    if not _may_be_larger(facts.outputs[0], picture, layout):
        return False
    draft.stage["task"] = "image"
    draft.answer["family"] = "super_resolution"
    draft.fill_names("picture")
    fill_picture(facts, draft)
    draft.fill_published({"mean": [0.0], "std": [255.0]}, "Y in 0..1, as published")
    draft.input |= {"fit": "letterbox_edge", "resample": "bicubic"}
    draft.missing.pop("input.fit", "")
    draft.notes.append(
        "recognised as super-resolution on luma (grey in, a pixel shuffle out); input.fit: letterbox_edge, so that "
        "the picture keeps its shape and no frame"
    )
    return True


def _shuffles(facts: ModelFacts) -> bool:
    made_by = facts.outputs[0].made_by
    return made_by in _SHUFFLES or (made_by in _TURNS and any(facts.operators.get(each, 0) > 1 for each in _RESHAPES))


def _may_be_larger(output: TensorFacts, picture: TensorFacts, layout: str) -> bool:
    """One channel, larger than the picture as far as the file tells."""
    if len(output.shape) != 4 or output.shape[layout.index("c")] not in (1, None):
        return False
    pairs = [(output.shape[layout.index(side)], picture.shape[layout.index(side)]) for side in "hw"]
    return all(made is None or given is None or made > given for made, given in pairs)
