"""served: one model version, loaded: picture bytes in, answer out. Lives in the worker process only.

What this file leaves to others: the socket, threads and limits (`worker.py`), engines (`open.py`), pixels and answers
(`vision/`).

Rules:
- A spec that does not fit the model file is found when loading, not at the first request.
- Labels and thresholds come with each call (Terms), where line i is the label of class i: the spec's offset is applied
  once, when terms are made, so that versions that differ in labels alone share a loaded model.
- How a picture walks through the stages is `vision/walk.py`'s; this file runs the engines that it asks for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgeferry.errors import ModelUnreadable, ModelUnsupported, PictureTooLarge, RequestInvalid
from edgeferry.model.manifest import Golden
from edgeferry.model.spec import InputSpec, LabelSpec, ModelSpec, Stage
from edgeferry.model.stage_labels import load_labels
from edgeferry.runtime.open import open_session
from edgeferry.runtime.session import EngineSettings, Session, Tensor, TensorInfo
from edgeferry.runtime.tensors import TensorsAnswer, describe_tensors, run_tensors, warm_up_tensors
from edgeferry.vision.answer import Answer
from edgeferry.vision.golden import GoldenReport, judge
from edgeferry.vision.image import Data, PictureLimits, make_black_jpeg, read_picture
from edgeferry.vision.preprocess import get_enough
from edgeferry.vision.steps import Call, Walk, pick_numbers
from edgeferry.vision.walk import require_pipeline, walk
from edgeferry.wire.worker_frames import AskTensors, Draw, GoldenInput, ModelTensors, Terms


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

    def __init__(self, stages: Sequence[Stage], sessions: Sequence[Session], pictures: PictureSettings) -> None:
        self._stages = tuple(msgspec.structs.replace(stage, labels=LabelSpec()) for stage in stages)
        self._sessions = tuple(sessions)
        self._pictures = pictures
        self._inputs = tuple(_find_input(*pair) for pair in zip(stages, sessions, strict=True))
        self._enough = _find_enough(stages) if pictures.scale_jpeg else None

    def answer(self, data: Data, terms: Terms, draw: Draw = "") -> ServedAnswer:
        """Decodes, fits, infers, reads the outputs, and draws if asked to.

        Raises:
            PictureUnreadable, PictureTooLarge, MediaTypeRefused: the picture.
            ModelUnsupported: the engine fails on it, or the outputs are not those of the answer family.
        """
        watch = _Watch()
        picture = read_picture(data, self._pictures.limits, enough=self._enough)
        watch.lap("decode")
        answer = self._walk(walk(self._put_thresholds(terms), terms.labels, picture), watch)
        drawn = b""
        if draw:
            from edgeferry.vision.draw import draw_answer  # a fifteenth of what a load costs; most devices never draw

            drawn = draw_answer(data, answer, media=draw, limits=self._pictures.limits)
            watch.lap("draw")
        return ServedAnswer(answer, picture.width, picture.height, watch.laps_ms, drawn)

    def answer_tensors(self, data: Data, ask: AskTensors) -> TensorsAnswer:
        """Runs the only stage on tensors as they are; raises RequestInvalid as `tensors.run_tensors`."""
        if len(self._sessions) != 1:
            raise RequestInvalid(f"expected a picture for a model of {len(self._sessions)} stages, found tensors")
        return run_tensors(self._sessions[0], data, ask)

    def describe_tensors(self) -> ModelTensors:
        """What goes into the only stage and comes out; nothing where there are several."""
        return describe_tensors(self._stages[0].file, self._sessions[0]) if len(self._sessions) == 1 else ModelTensors()

    def warm_up(self) -> None:
        """Runs the engines on zeros until a first request would be no slower than a second."""
        for stage, session in zip(self._stages, self._sessions, strict=True):
            if stage.task == "tensors":
                warm_up_tensors(session)
            else:
                session.warm_up({info.name: _make_blank(info, stage.input) for info in session.inputs})

    def answer_example(self, terms: Terms) -> None:
        """Answers a black picture, for the sake of what is cold on the calling thread.

        Raises:
            ModelUnsupported: as `answer`.
        """
        with suppress(PictureTooLarge):  # a device that takes smaller ones only
            if self._stages[0].task != "tensors":
                self.answer(make_black_jpeg(), terms)

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

    def _put_thresholds(self, terms: Terms) -> list[Stage]:
        pairs = zip(self._stages, terms.thresholds, strict=True)
        return [msgspec.structs.replace(stage, thresholds=thresholds) for stage, thresholds in pairs]

    def _walk(self, steps: Walk, watch: _Watch) -> Answer:
        try:
            call = next(steps)
            watch.lap("prepare")
            while True:
                outputs = pick_numbers(self._sessions[call.stage].run(self._make_inputs(call)))
                watch.lap("infer")
                call = steps.send(outputs)
                watch.lap("prepare")
        except StopIteration as end:
            watch.lap("answer")
            answer: Answer = end.value
            return answer

    def _make_inputs(self, call: Call) -> dict[str, Tensor]:
        inputs = {self._inputs[call.stage].name: call.tensor}
        spec = self._stages[call.stage].input
        if call.size is not None and spec is not None:
            inputs[spec.size_tensor] = call.size
        return inputs


class _Watch:
    """Milliseconds from lap to lap; laps of one name add up."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._at = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps_ms[name] = round(self.laps_ms.get(name, 0.0) + (now - self._at) * 1000, 3)
        self._at = now


def load_served(folder: Path, spec: ModelSpec, engine: EngineSettings, pictures: PictureSettings) -> ServedModel:
    """Loads the version in `folder`.

    Raises:
        ModelUnreadable: the engine does not take the file.
        ModelUnsupported: the spec does not fit the file, or asks for what this release does not have.
        ToolMissing: the engine is not installed.
    """
    require_pipeline(spec.stages)
    return ServedModel(spec.stages, [open_session(folder / stage.file, engine) for stage in spec.stages], pictures)


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


def _find_enough(stages: Sequence[Stage]) -> tuple[int, int] | None:
    """Pixels that suffice of a picture; None: all, where its spec says so, or where more than the input looks at them.

    Later stages look closer at parts of it, and a made picture has all pixels of the given one.
    """
    first = stages[0].input
    suffices = first is not None and first.scale_jpeg and len(stages) == 1 and stages[0].task != "image"
    return get_enough(first) if first is not None and suffices else None


def _find_input(stage: Stage, session: Session) -> TensorInfo:
    spec = stage.input
    if stage.task == "tensors" and session.inputs:
        return session.inputs[0]
    if spec is None:
        return _find_only_input(session)
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


def _make_blank(info: TensorInfo, spec: InputSpec | None) -> Tensor:
    """Zeros as an input wants them; the sides that the model leaves open are the spec's."""
    if spec is not None and info.name == spec.size_tensor:
        return np.array([[spec.height, spec.width]], np.float32)
    sides = [1 if side is None else side for side in info.shape]
    if spec is not None and len(sides) == 4:
        down, across = (2, 3) if spec.layout == "nchw" else (1, 2)
        sides[down], sides[across] = spec.height, spec.width
    return np.zeros(sides, info.dtype)


def _find_only_input(session: Session) -> TensorInfo:
    if len(session.inputs) != 1:
        raise ModelUnsupported(f"expected one input, found {[info.name for info in session.inputs]!r:.200}")
    return session.inputs[0]


def _require_fit(info: TensorInfo, shape: tuple[int, ...], dtype: str) -> None:
    fits = len(info.shape) == len(shape) and all(a in (None, b) for a, b in zip(info.shape, shape, strict=True))
    if not fits or info.dtype != dtype:
        raise ModelUnsupported(
            f"expected the spec's input {dtype}{list(shape)} to fit the model,"
            f" found that {info.name!r:.80} takes {info.dtype}{list(info.shape)}"
        )
