"""Golden truth as an operator gives it: pictures, and beside each a .json that says what is true of it.

Where the files lie is for `app/`; how answers are judged is `vision/golden.py`'s.

Rules:
- Truth comes from people. Nothing here ever asks the model that is being published.
- A truth is `{"objects": [{"label", "box"?}]}` or `{"label": ...}`, with an optional `tolerance` `{"iou"?, "share"?}`;
  a box is (top, left, bottom, right) in 0..1 of the upright picture. No objects at all: nothing may be found.
- A label that the model cannot answer is refused: such a truth could never be found.
- A picture must decode here, whole and within a device's limits: on a device it would refuse every version.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec

from edgeferry.errors import ConfigInvalid, RequestError
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Golden, Tolerance, TruthObject
from edgeferry.names import get_stem
from edgeferry.vision.image import read_picture

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
MAX_PICTURES = 64


class Truth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a .json beside a picture says: either `objects` or `label`."""

    objects: tuple[TruthObject, ...] | None = None
    label: str | None = None
    tolerance: Tolerance = Tolerance()

    def list_objects(self) -> tuple[TruthObject, ...]:
        """The objects; a label alone is one without a box."""
        return self.objects if self.objects is not None else (TruthObject(label=self.label or ""),)


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """Golden samples for a manifest, and the pictures to upload, by digest."""

    samples: tuple[Golden, ...] = ()
    pictures: Mapping[Digest, bytes] | None = None


def read_golden(files: Mapping[str, bytes]) -> GoldenSet:
    """Pairs pictures with their truths, in the order of their names.

    Args:
        files: name -> bytes of everything in the operator's folder; other files are left alone.

    Raises:
        ConfigInvalid: no picture at all, too many, one that does not decode or has no truth, or a truth that is none.
    """
    names = sorted(name for name in files if name.lower().endswith(PICTURE_SUFFIXES))
    if not names or len(names) > MAX_PICTURES:
        raise ConfigInvalid(
            f"expected 1 to {MAX_PICTURES} golden pictures with a .json beside each, found {len(names)}"
        )
    samples, pictures = [], {}
    for name in names:
        _check_picture(name, files[name])
        digest = Digest.of(files[name])
        truth = read_truth(name, files.get(f"{get_stem(name)}.json"))
        size = len(files[name])
        samples.append(Golden(input=str(digest), size=size, truth=truth.list_objects(), tolerance=truth.tolerance))
        pictures[digest] = files[name]
    if len(pictures) != len(samples):
        raise ConfigInvalid("expected different golden pictures, found the same bytes twice")
    return GoldenSet(tuple(samples), pictures)


def check_labels(samples: Collection[Golden], labels: Collection[str]) -> None:
    """Raises ConfigInvalid when a truth names a label that is not among the model's."""
    wanted = {truth.label for sample in samples for truth in sample.truth}
    unknown = sorted(wanted - set(labels))
    if unknown:
        known = ", ".join(sorted(labels))[:200] or "none"
        raise ConfigInvalid(
            f"golden truth names labels that this model cannot answer: {', '.join(unknown)[:200]}; it knows {known}"
        )


def _check_picture(name: str, data: bytes) -> None:
    try:
        read_picture(data)
    except RequestError as error:
        raise ConfigInvalid(f"the golden picture {name} cannot be read: {error}") from error


def read_truth(name: str, data: bytes | None) -> Truth:
    """The truth of the picture `name`; raises ConfigInvalid when there is none, or it is not as it must be."""
    if data is None:
        raise ConfigInvalid(f"expected {get_stem(name)}.json beside the golden picture {name}, found none")
    try:
        truth = msgspec.json.decode(data, type=Truth)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"expected golden truth in {get_stem(name)}.json: {error}") from error
    if (truth.objects is None) == (truth.label is None):
        raise ConfigInvalid(f"expected either 'objects' or 'label' in {get_stem(name)}.json")
    for one in truth.objects or ():
        _check_box(one, name)
    return truth


def _check_box(one: TruthObject, name: str) -> None:
    if one.box is None:
        return
    top, left, bottom, right = one.box
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ConfigInvalid(f"expected boxes (top, left, bottom, right) in 0..1 for {name}, found {one.box}")
