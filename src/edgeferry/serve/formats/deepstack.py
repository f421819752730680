"""What DeepStack and CodeProject.AI answer: labels, confidences, and boxes in pixels of the picture that was posted.

Rules (docs/formats/vision-apis.md):
- Pixels are whole numbers inside the upright picture. A class of the whole picture has the whole picture as its box.
- The fields that CodeProject.AI adds are there for all; DeepStack's clients pass over them.
"""

from __future__ import annotations

import msgspec

from edgeferry.serve.formats.score import make_score
from edgeferry.serve.infer import Inference


class VisionPrediction(msgspec.Struct, frozen=True):
    """One thing found. `confidence` 0..1; the rest are pixels."""

    label: str
    confidence: float
    x_min: int
    y_min: int
    x_max: int
    y_max: int


class VisionAnswer(
    msgspec.Struct,
    frozen=True,
    rename={
        "inference_ms": "inferenceMs",
        "process_ms": "processMs",
        "analysis_ms": "analysisRoundTripMs",
        "module_id": "moduleId",
    },
):
    """All that was found, best first. `moduleId` is `model@version`, `code` the status; times in milliseconds."""

    predictions: list[VisionPrediction]
    count: int
    message: str
    inference_ms: int
    process_ms: int
    module_id: str
    code: int = 200
    success: bool = True


class VisionModels(msgspec.Struct, frozen=True, rename={"module_id": "moduleId"}):
    """The models that `/v1/vision/custom/{model}` takes."""

    models: list[str]
    module_id: str = "edgeferry"
    code: int = 200
    success: bool = True


def make_vision_answer(inference: Inference, *, min_confidence: float) -> VisionAnswer:
    """What was found with at least `min_confidence`."""
    reply = inference.reply
    found = [
        VisionPrediction(each.label, each.score, *_make_pixels(each.location, reply.width, reply.height))
        for each in make_score(reply.answer)
        if each.score >= min_confidence
    ]
    return VisionAnswer(
        found,
        len(found),
        _say(found),
        inference_ms=round(reply.timings_ms.get("infer", 0.0)),
        process_ms=round(inference.total_ms),
        module_id=str(inference.version),
    )


def _make_pixels(location: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    top, left, bottom, right = location
    scaled = ((left, width), (top, height), (right, width), (bottom, height))
    x_min, y_min, x_max, y_max = (min(max(round(share * side), 0), side) for share, side in scaled)
    return x_min, y_min, x_max, y_max


def _say(found: list[VisionPrediction]) -> str:
    if not found:
        return "Nothing found"
    return "Found " + ", ".join(dict.fromkeys(each.label for each in found))
