"""Segmentation: one picture in; for each of its pixels a class, the scores of all classes, or a probability out.

Recognised are whole-numbered class maps in the size of the input, scores in that size whose classes are told by a
softmax or by as many labels, and single probabilities in that size of a picture in colour. A map in another size may as
well be a head of a detector, three channels without labels a picture, and one beside a grey picture that picture made
anew: those are for the operator to say.
"""

from __future__ import annotations

from edgeferry.model.facts import ModelFacts, TensorFacts
from edgeferry.model.families.draft import Draft, fill_picture, find_layout, find_picture
from edgeferry.model.labels import is_placeholder

_ARG_MAX = ("ARG_MAX", "ArgMax")
_SOFTMAX = ("SOFTMAX", "Softmax")
_SIGMOID = ("LOGISTIC", "Sigmoid")
_SELFIE = "selfiesegmentation"
"""In the producer that MediaPipe's selfie segmentation carries."""


def draft_segmentation(facts: ModelFacts, draft: Draft) -> bool:
    """Drafts a mask in the size of the input; False for any other shape."""
    picture = find_picture(facts)
    if picture is None or len(facts.inputs) != 1 or len(facts.outputs) != 1:
        return False
    layout = find_layout(picture, facts)
    sides = (picture.shape[layout.index("h")], picture.shape[layout.index("w")])
    output = facts.outputs[0]
    if None in sides or output.shape[:1] not in ((1,), (None,)):
        return False
    if output.made_by in _ARG_MAX and _drop_ones(output.shape[1:]) == sides:
        return _draft_classes(facts, draft, None)
    return _draft_scores(facts, draft, output, layout=layout, sides=sides)


def _draft_scores(
    facts: ModelFacts, draft: Draft, output: TensorFacts, *, layout: str, sides: tuple[int | None, ...]
) -> bool:
    """Scores [1, h, w, c] or [1, c, h, w]."""
    both = {"nhwc": (output.shape[1:3], output.shape[3:]), "nchw": (output.shape[2:], output.shape[1:2])}
    if len(output.shape) != 4:
        return False
    found = [(each, size) for each, (plane, channels) in both.items() for size in channels if size and plane == sides]
    if len(found) != 1:
        return False
    written, classes = found[0]
    if classes == 1:
        return output.made_by in _SIGMOID and _draft_probability(facts, draft)
    if output.made_by not in _SOFTMAX and len(draft.labels) not in (classes, classes + 1):
        return False
    if written != layout:
        draft.answer["parameters"] = {"layout": written}
    return _draft_classes(facts, draft, classes)


def _draft_classes(facts: ModelFacts, draft: Draft, classes: int | None) -> bool:
    draft.stage["task"] = "segmentation"
    draft.answer["family"] = "class_map"
    fill_picture(facts, draft)
    _fit_mask_labels(draft, classes)
    return True


def _draft_probability(facts: ModelFacts, draft: Draft) -> bool:
    picture = find_picture(facts)
    if picture is None or picture.shape[find_layout(picture, facts).index("c")] == 1:
        return False
    draft.stage["task"] = "segmentation"
    draft.answer["family"] = "probability_mask"
    fill_picture(facts, draft)
    draft.fill_names("person" if _SELFIE in facts.producer else "foreground")
    if _SELFIE in facts.producer:
        draft.fill_published({"mean": [0.0], "std": [255.0]}, "RGB 0..1, as MediaPipe feeds selfie segmentation")
    draft.notes.append('answer: a mask; task = "image" answers with the picture cut out instead')
    return True


def _fit_mask_labels(draft: Draft, classes: int | None) -> None:
    """Line i is class i (the first may well be the background); of one line more than classes the first is no class."""
    lines = draft.labels
    if classes is not None and len(lines) == classes + 1 and is_placeholder(lines[0]):
        draft.offset = 1
        draft.notes.append(
            f"labels.offset: 1, since line 1 of {len(lines)} stands for no class and classes are {classes}"
        )
    elif classes is not None and lines and len(lines) != classes:
        draft.missing["labels.offset"] = (
            f"the mask has {classes} classes, the labels {len(lines)} lines: say which line is class 0"
        )
    elif lines:
        draft.notes.append(f"labels.offset: 0, line 1 ({lines[0]!r:.20}) is class 0 of the mask")


def _drop_ones(shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """[h, w], [h, w, 1] or [1, h, w] -> (h, w)."""
    if len(shape) == 3 and 1 in (shape[0], shape[2]):
        return shape[:2] if shape[2] == 1 else shape[1:]
    return shape
