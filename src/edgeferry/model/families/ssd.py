"""SSD: an operator TFLite_Detection_PostProcess; its outputs are known by its own order, whatever the graph's."""

from __future__ import annotations

from edgeferry.model.facts import ModelFacts
from edgeferry.model.families.draft import Draft, fill_picture, fit_labels


def draft_ssd(facts: ModelFacts, draft: Draft) -> bool:
    """Drafts a detector with the operator; False without one."""
    operator = facts.post_process
    if operator is None:
        return False
    draft.stage["task"] = "detection"
    draft.answer["family"] = "ssd"
    written = {tensor.name for tensor in facts.outputs}
    if len(operator.outputs) == 4 and written.issuperset(operator.outputs):
        draft.answer["outputs"] = dict(zip(("boxes", "classes", "scores", "count"), operator.outputs, strict=True))
    fill_picture(facts, draft)
    if operator.num_classes is None:
        draft.missing["labels.offset"] = "the detection operator does not say its number of classes"
    fit_labels(draft, operator.num_classes)
    return True
