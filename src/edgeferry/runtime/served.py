"""served: one model version, loaded: picture bytes in, answer out. Lives in the worker process only.

What this file leaves to others: the socket, threads and limits (`worker.py`), engines (`open.py`), pixels and answers
(`vision/`).

Rules:
- A spec that does not fit the model file is found when loading, not at the first request.
- Labels and thresholds come with each call (Terms), where line i is the label of class i: the spec's offset is applied
  once, when terms are made, so that versions that differ in labels alone share a loaded model.
- One stage for now; a pipeline of several is ModelUnsupported.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgeferry.errors import ModelUnreadable, ModelUnsupported
from edgeferry.model.inspect import load_labels
from edgeferry.model.manifest import Golden
from edgeferry.model.spec import LabelSpec, ModelSpec, Stage
from edgeferry.runtime.open import open_session
from edgeferry.runtime.session import EngineSettings, Session, Tensor, TensorInfo
from edgeferry.vision.answer import Answer
from edgeferry.vision.answers.table import decode, require_family
from edgeferry.vision.draw import draw_answer
from edgeferry.vision.golden import GoldenReport, judge
from edgeferry.vision.image import Picture, PictureLimits, read_picture
from edgeferry.vision.preprocess import get_enough, make_input, make_size_input
from edgeferry.wire.worker_frames import Draw, GoldenInput, Terms


@dataclass(frozen=True, slots=True)
class PictureSettings:
    """How pictures are read: their limits, and whether large JPEGs are decoded at a smaller scale."""

    limits: PictureLimits
    scale_jpeg: bool = True


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """An answer, the size of the upright picture, what each step took (ms), and the drawn picture if asked for."""

    answer: Answer
    width: int
    height: int
    timings_ms: dict[str, float]
    drawn: bytes = b""


class ServedModel:
    """A loaded version. Methods may be called from several threads."""

    def __init__(self, stage: Stage, session: Session, pictures: PictureSettings) -> None:
        self._stage = msgspec.structs.replace(stage, labels=LabelSpec())
        self._session = session
        self._pictures = pictures
        self._input = _find_input(stage, session)
        self._enough = get_enough(stage.input) if pictures.scale_jpeg else None

    def answer(self, data: bytes | bytearray, terms: Terms, draw: Draw = "") -> ServedAnswer:
        """Decodes, fits, infers, reads the outputs, and draws if asked to.

        Raises:
            PictureUnreadable, PictureTooLarge, MediaTypeRefused: the picture.
            ModelUnsupported: the engine fails on it, or the outputs are not those of the answer family.
        """
        watch = _Watch()
        picture = read_picture(data, self._pictures.limits, enough=self._enough)
        watch.lap("decode")
        tensor, placement = make_input(picture, self._stage.input)
        inputs = self._make_inputs(tensor, picture)
        watch.lap("prepare")
        outputs = self._session.run(inputs)
        watch.lap("infer")
        stage = msgspec.structs.replace(self._stage, thresholds=terms.thresholds[0])
        answer = decode(stage, outputs, placement, terms.labels[0])
        watch.lap("answer")
        drawn = draw_answer(data, answer, media=draw, limits=self._pictures.limits) if draw else b""
        if draw:
            watch.lap("draw")
        return ServedAnswer(answer, picture.width, picture.height, watch.laps_ms, drawn)

    def warm_up(self) -> None:
        """Runs the engine on a black picture until a first request would be no slower than a second."""
        spec = self._stage.input
        black = Picture(np.zeros((spec.height, spec.width, 3), np.uint8), spec.width, spec.height)
        self._session.warm_up(self._make_inputs(make_input(black, spec)[0], black))

    def prove(self, terms: Terms, golden: Iterable[GoldenInput]) -> GoldenReport:
        """Answers the golden pictures and judges the answers.

        Raises:
            ModelUnreadable: a golden picture is missing or unreadable on this device.
            ModelUnsupported: as `answer`.
        """
        return judge(self._answer_golden(terms, golden))

    def _answer_golden(self, terms: Terms, golden: Iterable[GoldenInput]) -> Iterator[tuple[Golden, Answer]]:
        for sample in golden:
            yield sample.golden, self.answer(_read_golden(sample), terms).answer

    def _make_inputs(self, tensor: Tensor, picture: Picture) -> dict[str, Tensor]:
        inputs = {self._input.name: tensor}
        if self._stage.input.size_tensor:
            inputs[self._stage.input.size_tensor] = make_size_input(picture)
        return inputs


class _Watch:
    """Milliseconds from lap to lap."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._at = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps_ms[name] = round((now - self._at) * 1000, 3)
        self._at = now


def load_served(folder: Path, spec: ModelSpec, engine: EngineSettings, pictures: PictureSettings) -> ServedModel:
    """Loads the version in `folder`.

    Raises:
        ModelUnreadable: the engine does not take the file.
        ModelUnsupported: the spec does not fit the file, or asks for what this release does not have.
        ToolMissing: the engine is not installed.
    """
    stage = require_stage(spec)
    require_family(stage)
    return ServedModel(stage, open_session(folder / stage.file, engine), pictures)


def require_stage(spec: ModelSpec) -> Stage:
    """The only stage of a spec; raises ModelUnsupported when there are several."""
    if len(spec.stages) != 1:
        raise ModelUnsupported(f"expected one stage, found {len(spec.stages)}: pipelines are not served yet")
    return spec.stages[0]


def make_terms(folder: Path, spec: ModelSpec) -> Terms:
    """Reads the labels of a version; line i of the result is the label of class i.

    Raises:
        BundleUnreadable, BundleTooLarge, ModelUnreadable: the label file, or the model file that should hold it.
    """
    labels = (
        _shift(load_labels(stage, lambda name: _read(folder / name)), stage.labels.offset) for stage in spec.stages
    )
    return Terms(labels=tuple(labels), thresholds=tuple(stage.thresholds for stage in spec.stages))


def _shift(labels: tuple[str, ...], offset: int) -> tuple[str, ...]:
    return labels[offset:] if offset >= 0 else ("",) * -offset + labels


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelUnreadable(f"cannot read {path.name}: {error.strerror}") from error


def _read_golden(sample: GoldenInput) -> bytes:
    path = Path(sample.path)
    data = _read(path)
    if len(data) != sample.golden.size:
        raise ModelUnreadable(f"expected {sample.golden.size} bytes of golden input {path.name}, found {len(data)}")
    return data


def _find_input(stage: Stage, session: Session) -> TensorInfo:
    spec = stage.input
    by_name = {info.name: info for info in session.inputs}
    others = [info for info in session.inputs if info.name != spec.size_tensor]
    wanted = {spec.size_tensor, spec.tensor} - {""}
    if not wanted <= by_name.keys() or len(others) != 1:
        raise ModelUnsupported(f"expected inputs as in the spec {sorted(wanted)}, found {list(by_name)!r:.200}")
    channels = 1 if spec.colour == "grey" else 3
    planar = (1, channels, spec.height, spec.width)
    shape = planar if spec.layout == "nchw" else (1, spec.height, spec.width, channels)
    _require_fit(others[0], shape, spec.dtype)
    return others[0]


def _require_fit(info: TensorInfo, shape: tuple[int, ...], dtype: str) -> None:
    fits = len(info.shape) == len(shape) and all(a in (None, b) for a, b in zip(info.shape, shape, strict=True))
    if not fits or info.dtype != dtype:
        raise ModelUnsupported(
            f"expected the spec's input {dtype}{list(shape)} to fit the model,"
            f" found that {info.name!r:.80} takes {info.dtype}{list(info.shape)}"
        )
