"""MoveNet: one picture in; 17 joints (y, x, score) of one body out, [1, 1, 17, 3], or [1, 6, 56] of several.

Another number of rows of 56 is another model: YOLO's poses are thousands of them.
"""

from __future__ import annotations

from edgeferry.model.facts import ModelFacts
from edgeferry.model.families.draft import Draft, fill_tensor, find_picture

_SINGLE = (1, 1, 17, 3)
_MULTI = ((1, 6, 56), (None, 6, 56), (1, None, 56), (None, None, 56))
_SCORE = 0.3


def draft_movenet(facts: ModelFacts, draft: Draft) -> bool:
    """As TensorFlow Hub documents it: RGB 0..255, letterboxed on black; joints count from 0.3 on."""
    shape = facts.outputs[0].shape
    if len(facts.outputs) != 1 or shape not in (_SINGLE, *_MULTI) or len(facts.inputs) != 1 or "task" in facts.metadata:
        return False
    picture = find_picture(facts)
    if picture is None:
        return False
    draft.stage["task"] = "pose"
    draft.answer["family"] = "movenet"
    draft.thresholds["score"] = _SCORE
    draft.fill_names("person")
    fill_tensor(picture, facts, draft)
    draft.input |= {"colour": "rgb", "mean": [0.0], "std": [1.0], "fit": "letterbox", "pad": 0}
    draft.notes.append(
        "recognised by its output as MoveNet: letterbox on black, RGB 0..255, joints from 0.3 on, as published"
    )
    return True
