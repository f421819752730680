"""Decoders of large pictures, in the environment that has OpenCV: argument FOLDER of pictures, one line of JSON out.

CPU seconds of OpenCV's whole decode and of ours at the size that the model needs, interleaved; and what the model finds
after our decode at that size against a whole one: boxes kept (same class, IoU > 0.5) and the largest shift of a score.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from pipeline import Pipeline

from edgeferry.vision.golden import get_iou
from edgeferry.vision.image import read_picture

ROUNDS = 25
"""Of each picture. One decode of 12 megapixels takes 0.1 s, and differs by a half from the next one."""


def take_cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this thread."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


def compare(whole: Any, scaled: Any) -> tuple[int, list[float]]:
    """How many objects were kept, and the shifts of their scores."""
    left, shifts = list(scaled), []
    for one in whole:
        same = [other for other in left if other["Class"] == one["Class"] and is_same_place(one, other)]
        if same:
            best = max(same, key=lambda other: get_iou(tuple(one["Location"]), tuple(other["Location"])))
            left.remove(best)
            shifts.append(abs(best["Score"] - one["Score"]))
    return len(shifts), shifts


def is_same_place(one: Any, other: Any) -> bool:
    """Whether two boxes overlap by more than half."""
    return get_iou(tuple(one["Location"]), tuple(other["Location"])) > 0.5


def main() -> None:
    """Measures, and prints."""
    cv2.setNumThreads(1)
    scaled, whole = Pipeline(), Pipeline(scale_jpeg=False)
    ratios, boxes, kept, shifts = [], 0, 0, [0.0]
    for path in sorted(Path(sys.argv[1]).glob("large-*.jpg")):
        data = path.read_bytes()
        raw = np.frombuffer(data, np.uint8)
        for _ in range(ROUNDS):
            theirs = take_cpu_s(lambda raw=raw: cv2.imdecode(raw, cv2.IMREAD_COLOR))
            ours = take_cpu_s(lambda data=data: read_picture(data, enough=scaled.enough))
            ratios.append(ours / theirs)
        found = whole.find(data)
        some, moved = compare(found, scaled.find(data))
        boxes, kept, shifts = boxes + len(found), kept + some, shifts + moved
    told = {"decode_ratio": median(ratios), "boxes": boxes, "kept": kept, "score_shift": max(shifts)}
    print(json.dumps({**told, "decode_ratios": sorted(ratios)}))


if __name__ == "__main__":
    main()
