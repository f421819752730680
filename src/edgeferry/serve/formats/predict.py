"""Our own shape: the typed answer of any task, who gave it, and how long each step took."""

from __future__ import annotations

import msgspec

from edgeferry.serve.infer import Inference
from edgeferry.vision.answer import Answer


class PictureSize(msgspec.Struct, frozen=True):
    """The upright picture, in pixels: what boxes of 0..1 are to be multiplied with."""

    width: int
    height: int


class PredictAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one picture. `timings_ms` holds milliseconds by step; `queue` and `total` are always there."""

    model: str
    version: str
    answer: Answer
    picture: PictureSize
    timings_ms: dict[str, float]


def make_predict(inference: Inference) -> PredictAnswer:
    """The whole inference as one value."""
    reply = inference.reply
    timings_ms = {"queue": inference.queue_ms, **reply.timings_ms, "total": inference.total_ms}
    return PredictAnswer(
        model=inference.version.model,
        version=inference.version.version,
        answer=reply.answer,
        picture=PictureSize(reply.width, reply.height),
        timings_ms={step: round(duration_ms, 3) for step, duration_ms in timings_ms.items()},
    )
