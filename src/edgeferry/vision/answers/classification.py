"""Classification: one row of scores -> classes, best first.

Rules:
- The output is the one that `answer.outputs["scores"]` names, else the only one: [1, classes], with more ones or not.
- `answer.parameters["activation"]`: "none" (scores are probabilities), "softmax" or "sigmoid" (to apply to logits).
  Where it is not declared, a row within 0..1 is taken as it is (quantised probabilities of 1001 classes may well add up
  to 0.6: small ones round to 0) and any other through softmax.
- Classes at or above the threshold are answered; at most `max_results`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeferry.errors import ModelUnsupported
from edgeferry.model.labels import find_label
from edgeferry.model.spec import Stage
from edgeferry.vision.answer import ClassificationAnswer, ClassScore
from edgeferry.vision.answers.objects import Outputs, make_refusal
from edgeferry.vision.preprocess import Placement


def decode_classification(
    stage: Stage, outputs: Outputs, placement: Placement, labels: tuple[str, ...]
) -> ClassificationAnswer:
    """See the module. Raises ModelUnsupported when there is no such output."""
    scores = _activate(_find_scores(stage, outputs), stage)
    scores = np.where(np.isfinite(scores), scores, 0.0).clip(0.0, 1.0)
    order = np.argsort(-scores, kind="stable")[: stage.thresholds.max_results]
    best = [int(index) for index in order if scores[index] >= stage.thresholds.score]
    return ClassificationAnswer(
        classes=tuple(
            ClassScore(class_index=i, label=find_label(labels, i, stage.labels.offset), score=float(scores[i]))
            for i in best
        )
    )


def _find_scores(stage: Stage, outputs: Outputs) -> NDArray[np.float64]:
    name = stage.answer.outputs.get("scores", "")
    found = outputs.get(name) if name else next(iter(outputs.values())) if len(outputs) == 1 else None
    if found is None or found.size == 0 or found.size != max(found.shape, default=0):
        raise make_refusal("scores [1, classes]", outputs)
    return found.reshape(-1).astype(np.float64)


def _activate(values: NDArray[np.float64], stage: Stage) -> NDArray[np.float64]:
    kind = stage.answer.parameters.get("activation", "")
    if kind == "none" or (not kind and _are_probabilities(values)):
        return values
    if kind == "sigmoid":
        return np.asarray(1.0 / (1.0 + np.exp(-values.clip(-500, 500))))
    if kind in ("", "softmax"):
        powers = np.exp(values - values.max())
        return np.asarray(powers / powers.sum())
    raise ModelUnsupported(f"expected answer.parameters.activation none, softmax or sigmoid, found {kind!r:.40}")


def _are_probabilities(values: NDArray[np.float64]) -> bool:
    return bool(values.min() >= 0 and values.max() <= 1.0)
