"""Tiny YOLOv3: the interface of the ONNX zoo: a picture and `image_shape` in, boxes, scores and indices out."""

from __future__ import annotations

from collections.abc import Sequence

from edgeferry.model.facts import ModelFacts, TensorFacts
from edgeferry.model.families.draft import Draft, fill_tensor, find_picture, fit_labels

_YOLO_SIDE = 416


def draft_tiny_yolov3(facts: ModelFacts, draft: Draft) -> bool:
    """As yolov3-tiny of the ONNX model zoo: letterboxed on grey 128, bicubic, 0..1, suppression in the graph."""
    picture = find_picture(facts)
    size = next((each for each in facts.inputs if each.name == "image_shape"), None)
    roles = _find_yolo_outputs(facts.outputs)
    if facts.format != "onnx" or picture is None or size is None or roles is None or len(facts.inputs) != 2:
        return False
    draft.stage["task"] = "detection"
    draft.answer |= {"family": "tiny_yolov3", "outputs": {role: tensor.name for role, tensor in roles.items()}}
    draft.thresholds["score"] = 0.0  # the graph has chosen already; what it answers counts
    fill_tensor(picture, facts, draft)
    for side in ("width", "height"):
        if draft.missing.pop(f"input.{side}", ""):
            draft.input[side] = _YOLO_SIDE
            draft.notes.append(f"input.{side}: {_YOLO_SIDE}, as published; the graph leaves it open")
    draft.input |= {"mean": [0.0], "std": [255.0], "fit": "letterbox", "pad": 128, "resample": "bicubic"}
    draft.input |= {"tensor": picture.name, "size_tensor": size.name}
    draft.notes.append(
        "recognised by its inputs and outputs as Tiny YOLOv3 of the ONNX model zoo: letterbox on grey 128, bicubic, "
        "RGB 0..1, thresholds in the graph"
    )
    classes = roles["scores"].shape[1]
    fit_labels(draft, classes)
    return True


def _find_yolo_outputs(outputs: Sequence[TensorFacts]) -> dict[str, TensorFacts] | None:
    """boxes [1, n, 4], scores [1, classes, n] and whole-numbered indices [m, 3] or [1, m, 3], in any order."""
    indices = [each for each in outputs if each.dtype in ("int32", "int64") and each.shape[-1:] == (3,)]
    floats = [each for each in outputs if each.dtype == "float32" and len(each.shape) == 3]
    if len(outputs) != 3 or len(indices) != 1 or len(floats) != 2:
        return None
    for boxes, scores in (floats, floats[::-1]):
        if boxes.shape[2] == 4 and boxes.shape[1] == scores.shape[2]:
            return {"boxes": boxes, "scores": scores, "indices": indices[0]}
    return None
