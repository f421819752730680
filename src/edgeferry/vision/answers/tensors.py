"""Tensors: the family of models that nobody reads here: they are served as raw tensors, and answer no pictures."""

from __future__ import annotations

from typing import NoReturn

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import Stage
from edgeferry.vision.answers.objects import Outputs
from edgeferry.vision.preprocess import Placement


def decode_tensors(stage: Stage, _: Outputs, __: Placement, ___: tuple[str, ...]) -> NoReturn:
    """Raises ModelUnsupported: there is no answer to a picture."""
    raise ModelUnsupported(
        f"expected an answer family for {stage.file!r:.80}, found plain tensors: ask for them by /v2"
    )
