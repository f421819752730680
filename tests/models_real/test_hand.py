"""The hand pipeline answers as MediaPipe documents it: compared with `plain_hand.py`, which shares nothing with ours.

Tolerances, in pixels of the 384 x 512 photos, whose hands are about 80 pixels long:
- Fed by the same area filter: palm boxes 0.1, points 1.5 (the landmark model turns a grey level of its crop into about
  one pixel), depths 0.5, presence and gesture scores 0.02.
- Fed without a filter, as MediaPipe samples its own input: palm boxes 4, points 8, depths 4, scores 0.15.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeferry.model.bundle_spec import make_bundle_spec
from edgeferry.model.spec import ModelSpec, read_spec_toml
from edgeferry.runtime.served import PictureSettings, ServedAnswer, ServedModel, load_served, make_terms
from edgeferry.runtime.session import EngineSettings
from edgeferry.vision.answer import FoundObject, LandmarksAnswer, list_objects
from edgeferry.vision.image import PictureLimits
from models_real.plain_hand import PlainHand, find_plain_hands

pytestmark = pytest.mark.needs_shared

TOML = """
[[stages]]
file = "palm_detection_lite.tflite"
[[stages]]
file = "hand_landmark_lite.tflite"
[[stages]]
file = "keypoint_classifier.tflite"
labels.file = "keypoint_classifier_label.csv"
"""
PHOTOS = ("hand_call.jpg", "hand_rock.jpg")


@dataclass(frozen=True)
class Tolerance:
    box: float
    point: float
    depth: float
    score: float


FILTERED = Tolerance(box=0.1, point=1.5, depth=0.5, score=0.02)
UNFILTERED = Tolerance(box=4, point=8, depth=4, score=0.15)


def load(folder: Path, stages: slice) -> tuple[ServedModel, ModelSpec]:
    names = [path.name for path in folder.iterdir()]
    whole = make_bundle_spec(names, lambda name: (folder / name).read_bytes(), read_spec_toml(TOML))
    spec = ModelSpec(stages=whole.stages[stages])
    pictures = PictureSettings(PictureLimits(), scale_jpeg=False)  # alone, the palm detector would be shown less
    return load_served(folder, spec, EngineSettings(), pictures), spec


def ask(shared_models: Path, photo: str, stages: slice = slice(None)) -> ServedAnswer:
    folder = shared_models / "hand"
    model, spec = load(folder, stages)
    return model.answer((shared_models / "images" / photo).read_bytes(), make_terms(folder, spec))


def require_box(found: FoundObject, served: ServedAnswer, plain: PlainHand, off: float) -> None:
    top, left, bottom, right = found.box
    box = (left * served.width, top * served.height, right * served.width, bottom * served.height)
    assert box == pytest.approx(plain.box, abs=off)


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize(("filtered", "off"), [(True, FILTERED), (False, UNFILTERED)])
def test_palm_box_landmarks_and_gestures_are_those_of_the_documentation(
    shared_models: Path, photo: str, filtered: bool, off: Tolerance
) -> None:
    served = ask(shared_models, photo)
    (plain,) = find_plain_hands(shared_models / "hand", shared_models / "images" / photo, filtered=filtered)
    assert isinstance(served.answer, LandmarksAnswer)
    (found,) = served.answer.objects
    require_box(found, served, plain, off.box)
    assert found.score == pytest.approx(plain.presence, abs=off.score)
    assert found.label == ("right hand" if plain.right > 0.5 else "left hand")
    assert len(found.points) == len(plain.points) == 21
    for point, (x, y, z) in zip(found.points, plain.points, strict=True):
        assert (point.x * served.width, point.y * served.height) == pytest.approx((x, y), abs=off.point), point.name
        assert point.z * served.width == pytest.approx(z, abs=off.depth), point.name
    scores = {gesture.label: gesture.score for gesture in found.attributes}
    assert scores == pytest.approx(
        dict(zip(("Open", "Close", "Pointer", "OK"), plain.gestures, strict=True)), abs=off.score
    )
    assert [gesture.score for gesture in found.attributes] == sorted(scores.values(), reverse=True)


@pytest.mark.parametrize("photo", PHOTOS)
def test_the_palm_detector_alone_is_a_detector_with_points(shared_models: Path, photo: str) -> None:
    served = ask(shared_models, photo, slice(1))
    (plain,) = find_plain_hands(shared_models / "hand", shared_models / "images" / photo, filtered=True)
    (found,) = list_objects(served.answer)
    assert found.label == "palm"
    assert found.score == pytest.approx(plain.palm_score, abs=FILTERED.score)
    require_box(found, served, plain, FILTERED.box)
    assert [point.name for point in found.points][:3] == ["wrist", "index_mcp", "middle_mcp"]
    hand = {point.name: point for point in list_objects(ask(shared_models, photo).answer)[0].points}
    for point in found.points:  # both models mark the same joints: within a sixth of the palm's side
        assert abs(point.x - hand[point.name].x) * served.width < 14
        assert abs(point.y - hand[point.name].y) * served.height < 14


def test_the_landmark_model_alone_takes_a_hand_that_was_cut_out(shared_models: Path) -> None:
    (found,) = list_objects(ask(shared_models, "hand_crop.png", slice(1, 2)).answer)
    assert found.score > 0.9
    assert len(found.points) == 21
    top, left, bottom, right = found.box
    assert all(
        left - 1e-6 <= point.x <= right + 1e-6 and top - 1e-6 <= point.y <= bottom + 1e-6 for point in found.points
    )


def test_without_a_classifier_hands_have_no_gestures(shared_models: Path) -> None:
    whole, two = (list_objects(ask(shared_models, PHOTOS[0], stages).answer)[0] for stages in (slice(3), slice(2)))
    assert (two.points, two.box, two.attributes) == (whole.points, whole.box, ())


@pytest.mark.parametrize("photo", ["cat.jpg", "bird.png"])
def test_where_there_is_no_hand_none_is_found(shared_models: Path, photo: str) -> None:
    assert ask(shared_models, photo).answer == LandmarksAnswer(objects=())
