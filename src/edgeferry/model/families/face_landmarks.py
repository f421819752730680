"""Face landmarks: one picture in; the 1404 numbers of MediaPipe's face mesh (468 points) and a presence out."""

from __future__ import annotations

from math import prod

from edgeferry.model.facts import ModelFacts, TensorFacts
from edgeferry.model.families.draft import Draft, fill_picture, find_picture

_NUMBERS = 3 * 468
_PROBABILITIES = ("LOGISTIC", "Sigmoid")


def draft_face_landmarks(facts: ModelFacts, draft: Draft) -> bool:
    """As MediaPipe's face_landmark graph: RGB 0..1 of a face that fills the picture; presence is a logit."""
    points = [each for each in facts.outputs if _count(each) == _NUMBERS]
    presence = [each for each in facts.outputs if _count(each) == 1]
    if len(points) != 1 or len(presence) != 1 or len(facts.outputs) != 2 or find_picture(facts) is None:
        return False
    activation = "none" if presence[0].made_by in _PROBABILITIES else "sigmoid"
    draft.stage["task"] = "landmarks"
    draft.answer |= {
        "family": "face_landmarks",
        "outputs": {"points": points[0].name, "presence": presence[0].name},
        "parameters": {"activation": activation},
    }
    draft.fill_names("face")
    fill_picture(facts, draft)
    draft.fill_published(
        {"mean": [0.0], "std": [255.0], "fit": "stretch"}, "RGB 0..1, stretched, as MediaPipe feeds it"
    )
    draft.notes.append("recognised by its outputs as a face mesh: it takes pictures that a face fills")
    return True


def _count(tensor: TensorFacts) -> int:
    """Numbers in a tensor; 0 where its shape is open beyond the batch."""
    sides = tensor.shape[1:] if tensor.shape[:1] == (None,) else tensor.shape
    return prod(side or 0 for side in sides)
