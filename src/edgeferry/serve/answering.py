"""What every route that answers a picture shares, whatever it is called and however the picture came.

What this file leaves to others: reading the picture (`body.py`, `form.py`), the shape of the answer (`formats/`).
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from edgeferry import errors
from edgeferry.runtime.blocks import Body
from edgeferry.serve.edge import run_unless_gone
from edgeferry.serve.infer import Inference, infer
from edgeferry.serve.metrics import Metrics
from edgeferry.serve.ports import Drawn
from edgeferry.serve.slots import Slots

PICTURE_ERRORS: tuple[type[errors.EdgeferryError], ...] = (
    errors.PictureUnreadable,
    errors.RequestInvalid,
    errors.BodyTimeout,
    errors.ModelAmbiguous,
    errors.PictureTooLarge,
    errors.BodyTooLarge,
    errors.MediaTypeRefused,
    errors.ModelUnsupported,
    errors.InvariantBroken,
    errors.ModelNotReady,
    errors.QueueFull,
    errors.WorkerLost,
    errors.RequestTimeout,
)
"""What can become of a picture on any route."""


@dataclass(frozen=True, slots=True)
class Answering:
    """Answers pictures from `slots` within `timeout_s` and counts them."""

    slots: Slots
    metrics: Metrics
    timeout_s: float

    async def answer(self, request: Request, picture: Body, *, wanted: str = "", draw: Drawn = "") -> Inference:
        """Answers `picture`, which has been read whole, while its sender stays; raises as `infer`."""
        work = infer(self.slots, picture, wanted=wanted, timeout_s=self.timeout_s, draw=draw)
        inference = await run_unless_gone(request, work)
        self.metrics.count_inference(inference)
        return inference
