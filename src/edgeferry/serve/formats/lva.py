"""The inference schema of Live Video Analytics / Video Analyzer HTTP extensions, whose contract samples still use.

Rules (docs/formats/score.md):
- Poses, landmarks and masks are entities too, as `score.py` lists them; gestures and other attributes go with theirs.
- Boxes are left, top, width, height in 0..1 of the upright picture. Nothing found is no body at all (204), so the
  function returns None.
"""

from __future__ import annotations

import msgspec

from edgeferry.vision.answer import Answer, ClassificationAnswer, FoundObject, list_objects

_ATTRIBUTE = "class"


class LvaTag(msgspec.Struct, frozen=True):
    """A label and how sure the model is of it, 0..1."""

    value: str
    confidence: float


class LvaBox(msgspec.Struct, frozen=True):
    """Left, top, width, height, each 0..1."""

    l: float  # noqa: E741 - the schema's name
    t: float
    w: float
    h: float


class LvaAttribute(msgspec.Struct, frozen=True):
    """Something more of an entity: its name, what it is, and how sure the model is of that, 0..1."""

    name: str
    value: str
    confidence: float


class LvaEntity(msgspec.Struct, frozen=True, omit_defaults=True):
    """An object and where it is."""

    tag: LvaTag
    box: LvaBox
    attributes: list[LvaAttribute] = []


class LvaClassification(msgspec.Struct, frozen=True):
    """A class of the whole picture."""

    tag: LvaTag


class EntityInference(msgspec.Struct, frozen=True, tag_field="type", tag="entity"):
    """One found object."""

    entity: LvaEntity


class ClassificationInference(msgspec.Struct, frozen=True, tag_field="type", tag="classification"):
    """One class of the whole picture."""

    classification: LvaClassification


class LvaAnswer(msgspec.Struct, frozen=True):
    """All that was found in one frame."""

    inferences: list[EntityInference | ClassificationInference]


def make_lva(answer: Answer) -> LvaAnswer | None:
    """The answer in the schema's words; None when nothing was found."""
    if isinstance(answer, ClassificationAnswer):
        found: list[EntityInference | ClassificationInference] = [
            ClassificationInference(LvaClassification(LvaTag(item.label, item.score))) for item in answer.classes
        ]
    else:
        found = [_make_entity(item) for item in list_objects(answer)]
    return LvaAnswer(found) if found else None


def _make_entity(found: FoundObject) -> EntityInference:
    top, left, bottom, right = found.box
    box = LvaBox(l=left, t=top, w=right - left, h=bottom - top)
    attributes = [LvaAttribute(_ATTRIBUTE, one.label, one.score) for one in found.attributes]
    return EntityInference(LvaEntity(LvaTag(found.label, found.score), box, attributes))
