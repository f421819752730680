"""Steps: the words in which a walk through stages is told: what it asks for, and what it is.

What this file leaves to others: which walk a version takes (`walk.py`), the walks of pipelines (`hand.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from edgeferry.errors import ModelUnsupported
from edgeferry.model.spec import InputSpec, Stage
from edgeferry.vision.answer import Answer
from edgeferry.vision.answers.objects import Outputs, Tensor
from edgeferry.vision.image import Picture

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Run stage number `stage` on `tensor`; `size` goes into its `size_tensor`, where it has one."""

    stage: int
    tensor: Tensor
    size: Tensor | None = None


def pick_numbers(outputs: Outputs) -> Outputs:
    """What a walk is sent of a model's outputs: truths as 0 and 1, and no texts, since no family reads any."""
    whole = {name: value.view(np.uint8) if value.dtype.kind == "b" else value for name, value in outputs.items()}
    return {name: value for name, value in whole.items() if value.dtype.kind in "iuf"}


Walk = Generator[Call, Outputs, Answer]
Pipeline = Callable[[Sequence[Stage], Sequence[Labels], Picture], Walk]


def require_input(stage: Stage) -> InputSpec:
    """The picture input of a stage; raises ModelUnsupported when it takes none."""
    if stage.input is None:
        raise ModelUnsupported(f"expected a picture input in the stage of {stage.file!r:.80}, found none")
    return stage.input
