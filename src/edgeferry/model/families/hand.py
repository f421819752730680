"""The three stages of the hand pipeline: MediaPipe's palm detector and hand landmarks, and a gesture classifier.

Recognised by their tensors: these numbers of points and anchors are no other model's. Each is fed as MediaPipe's
documented graphs feed it: RGB 0..1, the palm detector's picture centred on black.
"""

from __future__ import annotations

from edgeferry.model.facts import ModelFacts, TensorFacts
from edgeferry.model.families.draft import NO_LABELS, Draft, fill_tensor, find_layout, find_picture, name_classes
from edgeferry.model.families.faces import count_anchors

_PALM_NUMBERS = 18
_PALM_STRIDES = {8: 2, 16: 6}
"""Stride -> anchors in each cell; another count is another model."""
_HAND_NUMBERS = 63
_GESTURE_NUMBERS = 42


def draft_palm(facts: ModelFacts, draft: Draft) -> bool:
    """boxes [1, n, 18] and scores [1, n, 1], n as the strides make it of the input."""
    boxes = [each for each in facts.outputs if len(each.shape) == 3 and each.shape[2] == _PALM_NUMBERS]
    scores = [each for each in facts.outputs if len(each.shape) == 3 and each.shape[2] == 1]
    if [len(facts.outputs), len(boxes), len(scores)] != [2, 1, 1]:
        return False
    if not boxes[0].shape[1] == scores[0].shape[1] == _count_anchors(facts) or not _fill_unit_picture(facts, draft):
        return False
    draft.stage["task"] = "detection"
    draft.answer |= {"family": "palm", "outputs": {"boxes": boxes[0].name, "scores": scores[0].name}}
    draft.input |= {"fit": "letterbox", "pad": 0}
    draft.thresholds |= {"score": 0.5, "iou": 0.3, "max_results": 2}
    draft.notes.append("recognised by its outputs as MediaPipe's palm detection: RGB 0..1, letterbox on black")
    name_classes(draft, "palm")
    return True


def _count_anchors(facts: ModelFacts) -> int:
    picture = find_picture(facts)
    sides = dict(zip(find_layout(picture, facts), picture.shape, strict=True)) if picture else {}
    return count_anchors((sides.get("h"), sides.get("w")), _PALM_STRIDES)


def draft_hand_landmarks(facts: ModelFacts, draft: Draft) -> bool:
    """points [1, 63], presence [1, 1], side [1, 1] and points in metres [1, 63], in this order."""
    shapes = [tensor.shape[1:] for tensor in facts.outputs]
    if shapes != [(_HAND_NUMBERS,), (1,), (1,), (_HAND_NUMBERS,)] or not _fill_unit_picture(facts, draft):
        return False
    names = [tensor.name for tensor in facts.outputs]
    draft.stage["task"] = "landmarks"
    draft.answer |= {
        "family": "hand_landmarks",
        "outputs": dict(zip(("points", "presence", "side"), names, strict=False)),
    }
    draft.input["fit"] = "letterbox"
    draft.notes.append("recognised by its outputs as MediaPipe's hand landmarks: RGB 0..1")
    name_classes(draft, "left hand", "right hand")
    return True


def draft_gesture(facts: ModelFacts, draft: Draft) -> bool:
    """21 points [1, 42] in, one row of scores out."""
    inputs, outputs = facts.inputs, facts.outputs
    if not (len(inputs) == len(outputs) == 1 and _is_row(inputs[0], _GESTURE_NUMBERS) and _is_row(outputs[0])):
        return False
    draft.stage["task"] = "classification"
    draft.answer |= {"family": "gesture", "outputs": {"scores": outputs[0].name}}
    draft.thresholds["score"] = 0.0
    draft.notes.append("recognised by its input as a classifier of a hand's 21 points; every score is answered")
    if not draft.labels:
        draft.missing["labels"] = NO_LABELS
    return True


def _is_row(tensor: TensorFacts, count: int | None = None) -> bool:
    return (
        tensor.dtype == "float32"
        and len(tensor.shape) == 2
        and tensor.shape[0] in (1, None)
        and tensor.shape[1] is not None
        and (count is None or tensor.shape[1] == count)
    )


def _fill_unit_picture(facts: ModelFacts, draft: Draft) -> bool:
    """Fills a float picture of 0..1; False when there is none."""
    picture = find_picture(facts)
    if picture is None or picture.dtype != "float32":
        return False
    fill_tensor(picture, facts, draft)
    draft.input |= {"colour": "rgb", "mean": [0.0], "std": [255.0]}
    return True
