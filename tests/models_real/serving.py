"""What edgeferry makes of a real model and a photo, from the file to the answer, and how far that lies from an oracle.

An oracle is a few plain lines in a test, written from the model's own documentation; it uses nothing of edgeferry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgeferry.model.inspect import inspect_model, make_spec
from edgeferry.model.labels import read_labels
from edgeferry.model.spec import ModelSpec
from edgeferry.model.stage_labels import load_labels
from edgeferry.runtime.open import open_session
from edgeferry.runtime.served import PictureSettings, ServedModel
from edgeferry.runtime.session import EngineSettings
from edgeferry.vision.answer import Answer, list_objects
from edgeferry.vision.image import PictureLimits
from edgeferry.wire.worker_frames import Terms

Box = tuple[float, float, float, float]
PICTURES = PictureSettings(PictureLimits())
ALL_PIXELS = {"scale_jpeg": False}
"""Oracles see all of a photo."""


@dataclass(frozen=True)
class Seen:
    """An object, as an oracle sees it: box (top, left, bottom, right) in 0..1 of the photo, points (x, y)."""

    label: str
    score: float
    box: Box
    points: tuple[tuple[float, float], ...] = ()


def make_model_spec(model: Path, labels: Path | None, overrides: Mapping[str, Mapping[str, object]]) -> ModelSpec:
    """The spec as `publish --labels` makes it."""
    lines = read_labels(labels.read_bytes()) if labels else None
    return make_spec(
        inspect_model(model.name, model.read_bytes()),
        labels=lines,
        labels_file=labels.name if labels else "",
        overrides={**overrides, "input": ALL_PIXELS | dict(overrides.get("input", {}))},
    )


def answer_photo(model: Path, photo: Path, *, labels: Path | None = None, **overrides: Mapping[str, object]) -> Answer:
    """The answer of `model` to `photo`; `overrides` are fields of a spec file."""
    spec = make_model_spec(model, labels, overrides)
    files = {model.name: model} | ({labels.name: labels} if labels else {})
    lines = [load_labels(stage, lambda name: files[name].read_bytes()) for stage in spec.stages]
    shifted = tuple(each[stage.labels.offset :] for each, stage in zip(lines, spec.stages, strict=True))
    served = ServedModel(spec.stages, [open_session(model, EngineSettings()) for _ in spec.stages], PICTURES)
    terms = Terms(shifted, tuple(stage.thresholds for stage in spec.stages))
    return served.answer(photo.read_bytes(), terms).answer


def open_rgb(photo: Path) -> Image.Image:
    return Image.open(photo).convert("RGB")


def save_exact(photo: Path, folder: Path) -> Path:
    """The photo as a PNG: two decoders of JPEG differ by a level of grey, of PNG by nothing."""
    path = folder / f"{photo.stem}.png"
    open_rgb(photo).save(path)
    return path


def assert_alike(answer: Answer, wanted: Sequence[Seen], *, score: float, place: float) -> None:
    """Same objects in the same order, scores within `score`, sides and points within `place` of the photo's sides.

    Objects whose scores lie closer together than `score` may change places.
    """
    found = sorted(list_objects(answer), key=lambda one: (-round(one.score / score), one.label, one.box))
    wanted = sorted(wanted, key=lambda one: (-round(one.score / score), one.label, one.box))
    assert [one.label for one in found] == [one.label for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert abs(one.score - other.score) <= score, (one, other)
        assert np.abs(np.subtract(one.box, np.clip(other.box, 0, 1))).max() <= place, (one, other)
        spots = [(point.x, point.y) for point in one.points]
        assert len(spots) == len(other.points)
        assert not spots or np.abs(np.subtract(spots, other.points)).max() <= place, (spots, other.points)
