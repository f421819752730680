"""Measures slim versions: bytes against loss on our demo detector's fine-tune, against disagreement on a public pair.

`measure_slim()` is part of `make bench-delta`; alone it prints its section and exits non-zero naming each shortfall.

Rules:
- Bytes are those of whole patches; what they are compared with is our own best lossless patch of the same pair.
- The detector's loss is measured twice: by the search, and anew with the runners and the arithmetic of `models/`, on
  the 300 test scenes. The worse of the two counts.
- The public pair has no labelled pictures: photos, their crops and mirror images, and disagreement with v2 itself.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from models.evaluate import mean_average_precision, suppress  # noqa: E402
from models.runners import open_detector  # noqa: E402
from models.spec import DETECTOR_LABELS  # noqa: E402
from models.train.dataset import SceneSet, make_scene_set  # noqa: E402

from edgeferry.model.inspect import inspect_model, make_spec  # noqa: E402
from edgeferry.model.manifest import TruthObject  # noqa: E402
from edgeferry.publish.examiner import EvalSet, Examiner  # noqa: E402
from edgeferry.publish.slim import Level, SlimSearch, search_slim  # noqa: E402
from edgeferry.runtime.open import open_session  # noqa: E402
from edgeferry.runtime.session import EngineSettings  # noqa: E402
from edgeferry.vision.answer import DetectionAnswer, FoundObject  # noqa: E402
from edgeferry.vision.measure import measure_difference, measure_disagreement  # noqa: E402

SHARED = Path(os.environ.get("EDGEFERRY_SHARED", ROOT.parent / "shared")) / "models"
DETECTOR_FILES = ("detector.onnx", "detector-fp32.tflite")
SCENES = 300
ASKED = {0.5: 1 / 5, 0.1: 1 / 4}
"""Points of mAP that may be lost -> the most of the lossless bytes."""
YOLOX_SIDE, YOLOX_PAD, YOLOX_SCORE, YOLOX_LOSS = 416, 114, 0.1, 5.0
STRIDES = (8, 16, 32)
DIFFERENCE_PICTURES = 16


@dataclass(frozen=True, slots=True)
class SlimRow:
    """One search: bytes of the lossless patch and of the slim one, and what is lost in points (by `checked`: anew)."""

    pair: str
    metric: str
    max_loss: float
    lossless_bytes: int
    slim_bytes: int
    loss: float
    checked: float
    asked: float

    @property
    def share(self) -> float:
        """Of the lossless bytes."""
        return self.slim_bytes / self.lossless_bytes

    def find_shortfalls(self) -> Iterator[str]:
        """A sentence for each thing that is asked and does not hold."""
        name = f"slim {self.pair} at {self.max_loss:g} points"
        if self.share > self.asked:
            yield f"{name}: {self.share:.3f} of the lossless bytes, asked {self.asked:.3f}"
        if max(self.loss, self.checked) > self.max_loss:
            yield f"{name}: {max(self.loss, self.checked):.2f} points of {self.metric} lost"


@dataclass(frozen=True, slots=True)
class SlimFindings:
    """All that was measured."""

    rows: list[SlimRow]
    levels: dict[str, tuple[Level, ...]]
    notes: list[str]

    @property
    def shortfalls(self) -> list[str]:
        """What falls short, in words; a pair that was not measured does."""
        found = [line for row in self.rows for line in row.find_shortfalls()]
        return found + [f"slim: {note}" for note in self.notes]

    def make_section(self) -> str:
        """Markdown for docs/benchmarks.md."""
        return "\n\n".join(_list_parts(self))


def measure_slim() -> SlimFindings:
    """Runs every search; some minutes of one core."""
    rows: list[SlimRow] = []
    levels: dict[str, tuple[Level, ...]] = {}
    scenes = make_scene_set("test", SCENES)
    for file in DETECTOR_FILES:
        for max_loss, asked in ASKED.items():
            row, search = measure_detector(file, scenes, max_loss=max_loss, asked=asked)
            rows.append(row)
            levels.setdefault(f"demo detector 1.0.0 -> 1.2.0, {file}, loss of mAP@0.5", search.levels)
    yolox = measure_yolox()
    if yolox is None:
        return SlimFindings(rows, levels, ["the public pair and its photos are not here"])
    levels["public YOLOX fine-tune, disagreement with v2"] = yolox.levels
    return SlimFindings(rows, levels, [])


# --- our detector -----------------------------------------------------------------------------------------------------
def measure_detector(file: str, scenes: SceneSet, *, max_loss: float, asked: float) -> tuple[SlimRow, SlimSearch]:
    """Searches for one file of the demo detector, and measures what was found anew."""
    base, target = ((ROOT / "models" / "detector" / version / file).read_bytes() for version in ("1.0.0", "1.2.0"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = make_spec(inspect_model(file, target))
        examiner = Examiner(spec, {file: target}, make_eval_set(scenes), folder=folder)
        search = search_slim(base, target, examiner, max_loss=max_loss, say=_say)
        checked = _measure_map(folder / file, target, scenes) - _measure_map(folder / file, search.data, scenes)
    taken = search.levels[search.taken]
    lossless = search.levels[0].size_bytes
    pair = f"demo detector 1.0.0 -> 1.2.0 {file}"
    return SlimRow(pair, examiner.metric, max_loss, lossless, taken.size_bytes, taken.loss, checked, asked), search


def make_eval_set(scenes: SceneSet) -> EvalSet:
    """The scenes as an operator would give them."""
    truths = tuple(
        tuple(_make_truth(box, label) for box, label in zip(boxes, labels, strict=True))
        for boxes, labels in zip(scenes.boxes, scenes.labels, strict=True)
    )
    return EvalSet(tuple(_make_png(pixels) for pixels in scenes.pixels), truths)


def _make_truth(box: NDArray[np.float32], label: np.int64) -> TruthObject:
    top, left, bottom, right = (min(1.0, max(0.0, float(side))) for side in box)
    return TruthObject(label=DETECTOR_LABELS[label], box=(top, left, bottom, right))


def _make_png(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _measure_map(path: Path, data: bytes, scenes: SceneSet) -> float:
    """Points, by the arithmetic that checks the committed files."""
    path.unlink()  # an engine may still map the old one
    path.write_bytes(data)
    detect = open_detector(path)
    return 100 * mean_average_precision([detect(each) for each in scenes.pixels], scenes, len(DETECTOR_LABELS)).mean


# --- a public pair ----------------------------------------------------------------------------------------------------
class YoloxJudge:
    """Asks YOLOX files about photos; the family is decoded here, as plainly as its paper says (arXiv 2107.08430)."""

    def __init__(self, target: bytes, pictures: Sequence[NDArray[np.float32]], folder: Path) -> None:
        self._pictures, self._path = pictures, folder / "yolox.onnx"
        self._grid = _make_yolox_grid()
        self._own = self._ask(target, len(pictures))
        self.objects = sum(one.score >= YOLOX_SCORE for answer in self._own for one in answer.objects)

    def measure_difference(self, data: bytes) -> float:
        """See `edgeferry.publish.slim.Judge`."""
        count = min(DIFFERENCE_PICTURES, len(self._own))
        step = len(self._own) // count
        return measure_difference(self._own[::step], self._ask(data, len(self._own), step))

    def measure_loss(self, data: bytes) -> float:
        """See `edgeferry.publish.slim.Judge`."""
        return measure_disagreement(self._own, self._ask(data, len(self._own)), score=YOLOX_SCORE)

    def _ask(self, data: bytes, count: int, step: int = 1) -> list[DetectionAnswer]:
        self._path.unlink(missing_ok=True)
        self._path.write_bytes(data)
        session = open_session(self._path, EngineSettings())
        return [self._decode(session.run({"images": each})["output"][0]) for each in self._pictures[:count:step]]

    def _decode(self, output: NDArray[np.float32]) -> DetectionAnswer:
        corner, stride = self._grid
        centre, size = (output[:, :2] + corner) * stride, np.exp(output[:, 2:4]) * stride
        sides = np.concatenate([centre - size / 2, centre + size / 2], 1)[:, [1, 0, 3, 2]] / YOLOX_SIDE
        found = suppress(sides.clip(0, 1), output[:, 4:5] * output[:, 5:])
        rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
        objects = (FoundObject(class_index=at, label=str(at), score=score, box=tuple(box)) for box, score, at in rows)
        return DetectionAnswer(objects=tuple(objects))


def measure_yolox() -> SlimSearch | None:
    """Bytes against disagreement on the public fine-tune; None without it."""
    pair, photos = SHARED / "pairs" / "yolox_fp32_finetune", sorted((SHARED / "images").glob("*.*"))
    if not (pair / "v2.onnx").is_file() or not photos:
        return None
    base, target = ((pair / f"{version}.onnx").read_bytes() for version in ("v1", "v2"))
    with tempfile.TemporaryDirectory() as folder:
        judge = YoloxJudge(target, [each for path in photos for each in read_views(path)], Path(folder))
        _say(f"{judge.objects} objects in {len(photos)} photos and their crops")
        return search_slim(base, target, judge, max_loss=YOLOX_LOSS, say=_say)


def read_views(path: Path) -> Iterator[NDArray[np.float32]]:
    """The photo, overlapping parts of it of two sizes, and the mirror image of each, as YOLOX takes them."""
    with Image.open(path) as image:
        whole = np.asarray(image.convert("RGB"))
    for share, across in ((1.0, 1), (0.66, 2), (0.4, 3)):
        height, width = (max(1, int(side * share)) for side in whole.shape[:2])
        for down in range(across):
            for right in range(across):
                y = (whole.shape[0] - height) * down // max(1, across - 1)
                x = (whole.shape[1] - width) * right // max(1, across - 1)
                view = whole[y : y + height, x : x + width]
                yield _make_yolox_input(view)
                yield _make_yolox_input(view[:, ::-1])


def _make_yolox_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """BGR 0..255, in the top left corner of a grey square."""
    scale = YOLOX_SIDE / max(pixels.shape[:2])
    size = (max(1, int(pixels.shape[1] * scale)), max(1, int(pixels.shape[0] * scale)))
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    canvas = np.full((YOLOX_SIDE, YOLOX_SIDE, 3), YOLOX_PAD, np.float32)
    canvas[: size[1], : size[0]] = small[:, :, ::-1]
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None])


def _make_yolox_grid() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    corners, strides = [], []
    for stride in STRIDES:
        side = YOLOX_SIDE // stride
        y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
        corners.append(np.stack([x.ravel(), y.ravel()], 1))
        strides.append(np.full((side * side, 1), stride))
    return np.concatenate(corners).astype(np.float32), np.concatenate(strides).astype(np.float32)


# --- showing ----------------------------------------------------------------------------------------------------------
def _list_parts(found: SlimFindings) -> Iterator[str]:
    yield "### Slim versions: bytes against loss"
    yield "\n".join(
        [
            "| pair | may lose | lossless bytes | slim bytes | share | asked | lost | measured anew |",
            "|---|---|---|---|---|---|---|---|",
            *(
                f"| {row.pair} | {row.max_loss:g} points of {row.metric} | {row.lossless_bytes:,} | {row.slim_bytes:,} "
                f"| {row.share:.3f} | <= {row.asked:.3f} | {row.loss:.2f} | {row.checked:.2f} |"
                for row in found.rows
            ),
        ]
    )
    for name, levels in found.levels.items():
        yield f"Levels of {name} (bytes with ~ are estimated):"
        yield "\n".join(
            ["| bytes | of lossless | bits per number | points |", "|---|---|---|---|", *_list_rows(levels)]
        )


def _list_rows(levels: Sequence[Level]) -> Iterator[str]:
    for at, level in enumerate(levels):
        bits = f"{level.bits_per_number:.2f}" if at else "lossless"
        share = level.size_bytes / levels[0].size_bytes
        yield f"| {'' if level.exact else '~ '}{level.size_bytes:,} | {share:.3f} | {bits} | {level.loss:.2f} |"


def _say(text: str) -> None:
    if not text.startswith("measuring"):
        print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Runs it alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    given = parser.parse_args()
    found = measure_slim()
    print(found.make_section())
    if given.json:
        facts: dict[str, Any] = {"rows": [asdict(row) for row in found.rows], "shortfalls": found.shortfalls}
        given.json.write_text(json.dumps(facts, indent=1))
    for line in found.shortfalls:
        print(f"short: {line}", file=sys.stderr)
    return 1 if found.shortfalls else 0


if __name__ == "__main__":
    sys.exit(main())
