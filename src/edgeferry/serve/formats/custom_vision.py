"""The prediction of Azure Custom Vision: what its containers and its service answer.

Rules (docs/formats/vision-apis.md):
- Boxes are left, top, width, height in 0..1 of the upright picture; null where a class was found.
- `id`, `project`, `iteration` and `tagId` are UUIDs, as clients in typed languages parse them. All but `id` are made
  from names (RFC 9562, version 5): the same model, version or label has the same one on every device.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from functools import lru_cache

import msgspec

from edgeferry.model.stored import StoredVersion
from edgeferry.vision.answer import Answer, ClassificationAnswer, FoundObject, list_objects

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:edgeferry:custom-vision")


class BoundingBox(msgspec.Struct, frozen=True):
    """Each 0..1 of the upright picture."""

    left: float
    top: float
    width: float
    height: float


class Prediction(msgspec.Struct, frozen=True, rename="camel"):
    """One thing found. `probability` 0..1; `bounding_box` is null for a class of the whole picture."""

    probability: float
    tag_id: str
    tag_name: str
    bounding_box: BoundingBox | None = None


class ImagePrediction(msgspec.Struct, frozen=True):
    """All that was found in one picture, best first."""

    id: str
    project: str
    iteration: str
    created: datetime
    predictions: list[Prediction]


def make_image_prediction(
    answer: Answer, version: StoredVersion, *, id_: uuid.UUID, created: datetime
) -> ImagePrediction:
    """The answer of `version` in Custom Vision's words; `id_` and `created` (UTC) are this answer's own."""
    if isinstance(answer, ClassificationAnswer):
        found = [Prediction(each.score, _make_tag(version, each.label), each.label) for each in answer.classes]
    else:
        found = [_make_prediction(each, version) for each in list_objects(answer)]
    return ImagePrediction(str(id_), make_id(version.model), make_id(str(version)), created, found)


@lru_cache(maxsize=4096)
def make_id(name: str) -> str:
    """The UUID of a model, a `model@version`, or a `model/label`."""
    return str(uuid.uuid5(NAMESPACE, name))


def _make_tag(version: StoredVersion, label: str) -> str:
    return make_id(f"{version.model}/{label}")


def _make_prediction(found: FoundObject, version: StoredVersion) -> Prediction:
    top, left, bottom, right = found.box
    box = BoundingBox(left=left, top=top, width=right - left, height=bottom - top)
    return Prediction(found.score, _make_tag(version, found.label), found.label, box)
