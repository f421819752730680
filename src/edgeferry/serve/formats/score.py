"""The guide's shape, as real JSON: `[{"Class", "Score", "Location": [top, left, bottom, right]}]`.

Rules (docs/formats/score.md):
- Scores are 0..1; locations are 0..1 of the upright picture; best first.
- A class that a classifier found is located in the whole picture: `[0, 0, 1, 1]`.
- Of a pose or landmarks it is the body, face or hand: label, score and box.
- Of a mask it is each class but the background, from 1 % of the picture on, in the box of its pixels, largest first.
  Its score is 1: a mask says of each pixel what it is, not how sure that is.
- A made picture has no elements.
"""

from __future__ import annotations

import msgspec

from edgeferry.vision.answer import Answer, Box, ClassificationAnswer, list_objects

WHOLE_PICTURE: Box = (0.0, 0.0, 1.0, 1.0)


class ScoreElement(msgspec.Struct, frozen=True, rename={"label": "Class", "score": "Score", "location": "Location"}):
    """One thing found. `Location` is [top, left, bottom, right], each 0..1 of the upright picture."""

    label: str
    score: float
    location: Box


def make_score(answer: Answer) -> list[ScoreElement]:
    """The elements of the answer, best first."""
    if isinstance(answer, ClassificationAnswer):
        return [ScoreElement(found.label, found.score, WHOLE_PICTURE) for found in answer.classes]
    return [ScoreElement(found.label, found.score, found.box) for found in list_objects(answer)]
