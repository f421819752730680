"""The pipeline that all serve: a picture's bytes -> the bytes of the answer, with edgeferry's own vision code.

Every peer loads this file into its own process, so that what differs between them is how they serve, not what.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from edgeferry.model.spec import ModelSpec
from edgeferry.runtime.served import PictureSettings, ServedModel, load_served, make_terms
from edgeferry.runtime.session import EngineSettings
from edgeferry.serve.formats.score import make_score
from edgeferry.vision.image import PictureLimits
from edgeferry.vision.preprocess import get_enough
from edgeferry.wire.worker_frames import Terms

VARIABLE = "SERVED_MODEL"
"""Names the folder of the model and the spec.json beside it."""
CALLERS = 2


class Pipeline:
    """A loaded model; may be called from several threads."""

    def __init__(self, *, scale_jpeg: bool = True) -> None:
        folder = Path(os.environ[VARIABLE])
        spec = msgspec.json.decode((folder / "spec.json").read_bytes(), type=ModelSpec)
        engine, pictures = EngineSettings(threads=1, concurrency=CALLERS), PictureSettings(PictureLimits(), scale_jpeg)
        first = spec.stages[0].input
        self.enough = get_enough(first) if first is not None else None
        self._model: ServedModel = load_served(folder, spec, engine, pictures)
        self._terms: Terms = make_terms(folder, spec)

    def __call__(self, picture: bytes) -> bytes:
        """JSON of what was found."""
        return msgspec.json.encode(make_score(self._model.answer(picture, self._terms).answer))

    def find(self, picture: bytes) -> Any:
        """The same as plain values, for peers that make JSON themselves."""
        return json.loads(self(picture))
