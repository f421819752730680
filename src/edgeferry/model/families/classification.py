"""Classification: one picture in, one row of n numbers out, and labels for n classes."""

from __future__ import annotations

from edgeferry.model.facts import ModelFacts
from edgeferry.model.families.draft import Draft, fill_picture, find_picture, fit_labels

_PROBABILITIES = ("Softmax", "SOFTMAX", "Sigmoid", "LOGISTIC")


def draft_classification(facts: ModelFacts, draft: Draft) -> bool:
    """Drafts a classifier; False for any other shape."""
    classes = count_classes(facts)
    if classes is None or len(facts.inputs) != 1 or find_picture(facts) is None:
        return False
    draft.stage["task"] = "classification"
    draft.answer["family"] = "classification"
    if facts.outputs[0].made_by in _PROBABILITIES:
        draft.answer["parameters"] = {"activation": "none"}
    else:
        draft.notes.append("answer.parameters.activation: rows that are no probabilities go through softmax")
    fill_picture(facts, draft)
    fit_labels(draft, classes)
    return True


def count_classes(facts: ModelFacts) -> int | None:
    """n of a single output [1, n], with more ones before or after; None for anything else."""
    sizes = [size for size in facts.outputs[0].shape[1:] if size != 1]
    if len(facts.outputs) != 1 or facts.outputs[0].shape[:1] not in ((1,), (None,)) or len(sizes) != 1:
        return None
    return sizes[0]
