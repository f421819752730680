"""Pairs of nets trained here: two million weights, SGD and AdamW, few and many steps, and what else retraining does.

Leaves the trainings to `runs.py` (data) and `training.py` (torch, imported only when bytes are asked for).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scripts.delta_corpus import onnx_edits
from scripts.delta_corpus.pairs import Kind, Pair, Source, committed
from scripts.delta_corpus.runs import RUNS


def trained(run: str, form: str = "onnx") -> Source:
    """The net of a run, as "onnx" or as LiteRT "fp32", "fp16" or "int8"; KeyError when no run is called so."""
    RUNS[run]  # now, not after minutes of training

    def read(nets: Path) -> bytes:
        from scripts.delta_corpus.training import write_run

        return write_run(run, form, nets)

    return Source("onnx" if form == "onnx" else "tflite", read)


def drifting_detector(*, drifted: bool) -> Source:
    """The briefly trained detector, before or after its batch norm statistics moved."""

    def read(nets: Path) -> bytes:
        from scripts.delta_corpus.detector_drift import write_detector

        return write_detector(nets, drifted=drifted)

    return Source("onnx", read)


def list_pairs() -> list[Pair]:
    """The pairs of nets trained here."""
    return [*_list_plain(), *_list_thin(), *_list_small()]


def _list_plain() -> Iterator[Pair]:
    """Dense 3x3 convolutions."""
    v1 = trained("plain-v1")
    for run in ("sgd-few", "adamw-few", "sgd-many", "adamw-many"):
        yield Pair("fine-tune", f"plain-onnx-fp32-{run}", v1, trained(f"plain-{run}"))
    for run in ("sgd-many", "adamw-few"):
        v2 = trained(f"plain-{run}").edited(onnx_edits.to_half)
        yield Pair("fine-tune", f"plain-onnx-fp16-{run}", v1.edited(onnx_edits.to_half), v2)
    for run in ("sgd-few", "adamw-many"):
        v2 = trained(f"plain-{run}").edited(onnx_edits.to_int8)
        yield Pair("fine-tune", f"plain-onnx-int8-{run}", v1.edited(onnx_edits.to_int8), v2)
    base, target = trained("plain-v1", "int8"), trained("plain-adamw-few", "int8")
    yield Pair("fine-tune", "plain-tflite-int8-adamw-few", base, target)
    yield Pair("structure", "plain-onnx-batch-norm-drift", v1, trained("plain-drift"))
    yield Pair("structure", "plain-onnx-pruned", v1, v1.edited(onnx_edits.prune_each))
    yield Pair("retrained", "plain-onnx-fp32", v1, trained("plain-retrained"))
    v2 = trained("plain-retrained").edited(onnx_edits.to_int8)
    yield Pair("retrained-int8", "plain-onnx-int8", v1.edited(onnx_edits.to_int8), v2)
    rights = onnx_edits.set_properties(edgeferry__site="platform C", licence="as agreed in May")
    yield Pair("metadata", "plain-onnx-properties-added", v1, v1.edited(rights))


def _list_thin() -> Iterator[Pair]:
    """Depthwise and 1x1 convolutions."""
    v1 = trained("thin-v1")
    for run in ("sgd-few", "adamw-few"):
        yield Pair("fine-tune", f"thin-onnx-fp32-{run}", v1, trained(f"thin-{run}"))
    for form in ("fp32", "fp16"):
        base, target = trained("thin-v1", form), trained("thin-adamw-many", form)
        yield Pair("fine-tune", f"thin-tflite-{form}-adamw-many", base, target)
    yield Pair("head-only", "thin-onnx-fp32", v1, trained("thin-head"))
    yield Pair("head-only", "thin-tflite-fp16", trained("thin-v1", "fp16"), trained("thin-head", "fp16"))
    yield Pair("structure", "thin-onnx-batch-norm-drift", v1, trained("thin-drift"))
    yield Pair("structure", "thin-onnx-fp32-to-fp16", v1, v1.edited(onnx_edits.to_half))
    yield Pair("structure", "thin-tflite-fp32-to-int8", trained("thin-v1", "fp32"), trained("thin-v1", "int8"))
    yield Pair("metadata", "thin-onnx-reserialised", v1, v1.edited(onnx_edits.reserialise))


def _list_small() -> Iterator[Pair]:
    """Nets of the sizes that devices like best."""
    yield Pair("structure", "detector-onnx-batch-norm-drift", *(drifting_detector(drifted=d) for d in (False, True)))
    yield Pair("retrained", "gauge-onnx-fp32", committed("gauge/1.0.0/gauge.onnx"), trained("gauge-retrained"))
    kinds: tuple[tuple[Kind, str], ...] = (("retrained", "fp32"), ("retrained-int8", "int8"))
    for kind, form in kinds:
        base = committed(f"gauge/1.0.0/gauge-{form}.tflite")
        yield Pair(kind, f"gauge-tflite-{form}", base, trained("gauge-retrained", form))
