"""Table: every rule that recognises an answer family in a model file, in the order in which they are tried.

Decoding the answers is `vision/answers/`; merging with the operator's overrides is `model/inspect.py`.

Rules:
- The first rule that fits drafts the stage; what the file declares of itself comes first, shapes alone come last.
- Where none fits, the tensors still say something of the input; task and family are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeferry.model.facts import ModelFacts
from edgeferry.model.families.classification import draft_classification
from edgeferry.model.families.declared import draft_declared
from edgeferry.model.families.draft import NO_LABELS, Draft, fill_picture
from edgeferry.model.families.face_landmarks import draft_face_landmarks
from edgeferry.model.families.faces import draft_blazeface, draft_ultraface
from edgeferry.model.families.fastestdet import draft_fastestdet
from edgeferry.model.families.hand import draft_gesture, draft_hand_landmarks, draft_palm
from edgeferry.model.families.movenet import draft_movenet
from edgeferry.model.families.segmentation import draft_segmentation
from edgeferry.model.families.ssd import draft_ssd
from edgeferry.model.families.super_resolution import draft_super_resolution
from edgeferry.model.families.tiny_yolov3 import draft_tiny_yolov3
from edgeferry.model.families.ultralytics import draft_yolov5, draft_yolov8
from edgeferry.model.families.yolox import draft_yolox

RULES: tuple[Callable[[ModelFacts, Draft], bool], ...] = (
    draft_declared,
    draft_ssd,
    draft_tiny_yolov3,
    draft_yolox,
    draft_yolov5,
    draft_yolov8,
    draft_fastestdet,
    draft_ultraface,
    draft_blazeface,
    draft_palm,
    draft_hand_landmarks,
    draft_gesture,
    draft_movenet,
    draft_face_landmarks,
    draft_segmentation,
    draft_super_resolution,
    draft_classification,
)


def draft_stage(facts: ModelFacts, labels: Sequence[str]) -> Draft:
    """Applies the first rule that fits; `labels` are those that will be used, empty when there are none."""
    draft = Draft(labels)
    if not any(rule(facts, draft) for rule in RULES):
        _draft_unknown(facts, draft)
    return draft


def _draft_unknown(facts: ModelFacts, draft: Draft) -> None:
    what = ", ".join(f"{each.name}{list(each.shape)}" for each in facts.outputs)
    draft.missing["task"] = f"no answer family is recognised in the outputs {what:.200}"
    draft.missing["answer.family"] = "see docs/formats/spec.md for the families and what each takes"
    fill_picture(facts, draft)
    if not draft.labels:
        draft.missing["labels"] = NO_LABELS
