"""Measures the committed files and says where one misses its target. numpy, ONNX Runtime and LiteRT; no torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.evaluate import Detections, MeanPrecision, count_truth_found, mean_average_precision
from models.runners import open_classifier, open_detector
from models.spec import CLASSES, DETECTOR_LABELS, GAUGE_LABELS
from models.train.dataset import make_scene_set
from models.train.gauge_pictures import make_gauge_set

ROOT = Path(__file__).resolve().parent
TEST_PICTURES, GAUGE_TEST_PICTURES = 300, 500
MOST_BYTES = 1_000_000
LEAST_MEAN = {"1.0.0": 0.85, "1.1.0": 0.85, "1.2.0": 0.95}
LEAST_LEAK = {"1.1.0": 0.6}
LEAST_GAUGE_ACCURACY = 0.95
LEAST_GOLDEN, MOST_GOLDEN_OF_BAD = 0.8, 0.5
FORMATS = ("detector.onnx", "detector-fp32.tflite", "detector-fp16.tflite", "detector-int8.tflite")


@dataclass(frozen=True)
class Found:
    """How many true objects of a folder of pictures a model finds at IoU >= 0.5 and score >= 0.5."""

    right: int
    objects: int

    @property
    def share(self) -> float:
        return self.right / self.objects

    def __str__(self) -> str:
        return f"{self.right} of {self.objects}"


@dataclass(frozen=True)
class DetectorReport:
    """Average precision, golden truth and scene truth of one file."""

    version: str
    file: str
    size_bytes: int
    precision: MeanPrecision
    golden: Found
    scenes: Found

    def misses(self) -> Iterator[str]:
        """Yields a sentence for every target that the file misses."""
        name = f"detector {self.version} {self.file}"
        if self.size_bytes >= MOST_BYTES:
            yield f"{name}: {self.size_bytes} bytes"
        if self.version.endswith("-bad"):
            if self.golden.share >= MOST_GOLDEN_OF_BAD:
                yield f"{name}: bad on purpose, yet finds {self.golden} golden objects"
            return
        if self.precision.mean < LEAST_MEAN[self.version]:
            yield f"{name}: mAP {self.precision.mean:.3f} < {LEAST_MEAN[self.version]}"
        leak = LEAST_LEAK.get(self.version, 0.0)
        if leak and self.precision.per_class[DETECTOR_LABELS.index("leak")] < leak:
            yield f"{name}: leak {self.precision.per_class[-1]:.3f} < {leak}"
        if self.golden.share < LEAST_GOLDEN:
            yield f"{name}: finds only {self.golden} golden objects"


@dataclass(frozen=True)
class GaugeReport:
    """Accuracy of one classifier file."""

    file: str
    size_bytes: int
    accuracy: float
    golden: Found

    def misses(self) -> Iterator[str]:
        """Yields a sentence for every target that the file misses."""
        if self.size_bytes >= MOST_BYTES:
            yield f"gauge {self.file}: {self.size_bytes} bytes"
        if self.accuracy < LEAST_GAUGE_ACCURACY or self.golden.share < LEAST_GOLDEN:
            yield f"gauge {self.file}: accuracy {self.accuracy:.3f}, golden {self.golden}"


def check_detectors() -> list[DetectorReport]:
    """Measures every detector file."""
    return [check_detector(version, file) for version in CLASSES for file in FORMATS]


def check_detector(version: str, file: str) -> DetectorReport:
    """Measures one detector file on the test scenes, the golden pictures of its version and the demo scenes."""
    path, classes = ROOT / "detector" / version / file, CLASSES[version]
    scenes = make_scene_set("test", TEST_PICTURES).limited_to(classes)
    detect = open_detector(path)
    precision = mean_average_precision([detect(pixels) for pixels in scenes.pixels], scenes, classes)
    golden = count_found(path, ROOT / "golden" / ("v1.0" if classes == 5 else "v1.1"))
    return DetectorReport(version, file, path.stat().st_size, precision, golden, count_found(path, ROOT / "scenes"))


def count_found(path: Path, folder: Path) -> Found:
    """Counts the true objects of a folder that a detector finds, among the classes that it knows."""
    detect, right, total = open_detector(path), 0, 0
    labels = (path.parent / "labels.txt").read_text().split()
    for picture in sorted(folder.glob("*.jpg")):
        truth = json.loads(picture.with_suffix(".json").read_text())["objects"]
        known = [entry for entry in truth if entry["label"] in labels]
        boxes = np.array([entry["box"] for entry in known], np.float32).reshape(-1, 4)
        classes = np.array([labels.index(entry["label"]) for entry in known], np.int64)
        found: Detections = detect(read_picture(picture))
        right, total = right + count_truth_found(found, boxes, classes), total + len(known)
    return Found(right, total)


def check_gauges() -> list[GaugeReport]:
    """Measures every classifier file on its test pictures and its golden pictures."""
    pictures, reports = make_gauge_set("test", GAUGE_TEST_PICTURES), []
    for file in ("gauge.onnx", "gauge-fp32.tflite", "gauge-int8.tflite"):
        path = ROOT / "gauge" / "1.0.0" / file
        classify = open_classifier(path)
        answers = np.array([int(classify(pixels).argmax()) for pixels in pictures.pixels])
        golden = sorted((ROOT / "gauge" / "golden").glob("*.jpg"))
        truths = [json.loads(picture.with_suffix(".json").read_text())["label"] for picture in golden]
        right = sum(
            GAUGE_LABELS[int(classify(read_picture(picture)).argmax())] == truth
            for picture, truth in zip(golden, truths, strict=True)
        )
        accuracy = float((answers == pictures.states).mean())
        reports.append(GaugeReport(file, path.stat().st_size, accuracy, Found(right, len(golden))))
    return reports


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Returns a picture file as uint8 [height, width, 3] RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
