"""Rows of `predict` for answers of every task, and drawings of real models through the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from edgeferry.cli.answer_view import POINTS_MAX, tabulate_answer
from edgeferry.vision.answer import (
    Answer,
    ClassificationAnswer,
    ClassScore,
    DetectionAnswer,
    FoundObject,
    LandmarksAnswer,
    MaskClass,
    PictureAnswer,
    Point,
    PoseAnswer,
    SegmentationAnswer,
)

BOX = (0.1, 0.2, 0.3, 0.4)
SIDES = "top 0.100  left 0.200  bottom 0.300  right 0.400"


def make_object(points: int = 0, attributes: tuple[ClassScore, ...] = ()) -> FoundObject:
    placed = tuple(Point(name=f"joint {i}", x=0.5, y=0.25, score=0.75) for i in range(points))
    return FoundObject(class_index=0, label="person", score=0.9, box=BOX, points=placed, attributes=attributes)


CAT = ClassScore(class_index=0, label="cat", score=0.5)
MASK = SegmentationAnswer(
    width=4,
    height=2,
    classes=(MaskClass(class_index=1, label="cat", share=0.625, box=BOX),),
    runs=((1, 5), (0, 3)),
    png=b"",
)


@pytest.mark.parametrize(
    ("answer", "rows"),
    [
        (ClassificationAnswer(classes=(CAT,)), ["  0.500  cat"]),
        (DetectionAnswer(objects=(make_object(),)), [f"  0.900  person            {SIDES}"]),
        (DetectionAnswer(objects=()), []),
        (
            PoseAnswer(objects=(make_object(1),)),
            [f"  0.900  person            {SIDES}", "    0.750  joint 0         x 0.500  y 0.250"],
        ),
        (
            LandmarksAnswer(objects=(make_object(POINTS_MAX + 1, (CAT,)),)),
            [f"  0.900  person            {SIDES}", "    0.500  cat", "    41 points"],
        ),
        (MASK, ["  mask 4x2", f"   62.5%  cat               {SIDES}"]),
        (PictureAnswer(width=8, height=4, png=b"12345"), ["  made a picture of 8x4, 5 bytes as PNG (--draw OUT)"]),
    ],
)
def test_every_task_has_its_rows(answer: Answer, rows: list[str]) -> None:
    assert tabulate_answer(answer) == rows


def test_a_label_cannot_write_to_the_terminal() -> None:
    evil = "\x1b[2Jcat\r\n" + "x" * 999
    (shown,) = {
        row.split("  ")[2]
        for row in tabulate_answer(ClassificationAnswer(classes=(ClassScore(class_index=0, label=evil, score=0.5),)))
    }
    assert shown.startswith("?[2Jcat??xxx")
    assert len(shown) == 60


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    ("model", "photo", "said"),
    [
        ("pose/movenet_single_pose_lightning_ptq.tflite", "squat.png", "left_shoulder"),
        ("segmentation/selfie_segmentation.tflite", "grace_hopper.jpg", "person"),
        ("image2image/super_resolution.onnx", "cat.jpg", "made a picture of 672x378"),
    ],
)
def test_predict_tells_and_draws_what_a_model_without_any_spec_answers(
    shared_models: Path, tmp_path: Path, model: str, photo: str, said: str
) -> None:
    out = tmp_path / "out.png"
    path = shared_models / "images" / photo
    command = [sys.executable, "-m", "edgeferry.cli.main", "predict", shared_models / model, path, "--draw", out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    with Image.open(out) as drawn, Image.open(path) as given:
        assert drawn.format == "PNG"
        assert f"{drawn.width}x{drawn.height}" in done.stdout
        assert drawn.convert("RGB").tobytes() != given.convert("RGB").tobytes()
