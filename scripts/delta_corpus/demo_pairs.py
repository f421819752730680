"""Pairs made from the committed demo models by edits: seconds for all of them, no torch.

Rules:
- 1.0.0 -> 1.1.0 changed the head only; 1.0.0 -> 1.2.0 is a full fine-tune (`models/README.md`). 1.1.0 -> 1.2.0 is one
  too, of the same target: its figures are within 0.3 % of the other's, so that it would only count twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from scripts.delta_corpus import onnx_edits, opaque_edits, tflite_edits
from scripts.delta_corpus.pairs import Pair, Source, committed

FORMS = {
    "onnx-fp32": "detector.onnx",
    "tflite-fp32": "detector-fp32.tflite",
    "tflite-fp16": "detector-fp16.tflite",
    "tflite-int8": "detector-int8.tflite",
}
GAUGE = committed("gauge/1.0.0/gauge.onnx")


def detector(version: str, form: str) -> Source:
    """A committed detector."""
    return committed(f"detector/{version}/{FORMS[form]}")


def list_pairs() -> list[Pair]:
    """The pairs from the demo models."""
    return [*_list_trained(), *_list_structure(), *_list_metadata(), *_list_unrelated()]


def _list_trained() -> Iterator[Pair]:
    """Head only and full fine-tunes, as committed; ONNX also in half precision and int8."""
    for form in FORMS:
        yield Pair("head-only", f"detector-{form}", detector("1.0.0", form), detector("1.1.0", form))
    for form in FORMS:
        yield Pair("fine-tune", f"detector-{form}-from-1.0.0", detector("1.0.0", form), detector("1.2.0", form))
    v1, v2 = detector("1.0.0", "onnx-fp32"), detector("1.2.0", "onnx-fp32")
    for form, edit in (("onnx-fp16", onnx_edits.to_half), ("onnx-int8", onnx_edits.to_int8)):
        yield Pair("fine-tune", f"detector-{form}-from-1.0.0", v1.edited(edit), v2.edited(edit))


def _list_structure() -> Iterator[Pair]:
    """Precision changed, or weights pruned; nothing was trained."""
    onnx, tflite = detector("1.2.0", "onnx-fp32"), detector("1.2.0", "tflite-fp32")
    half, gauge_tflite = detector("1.2.0", "tflite-fp16"), committed("gauge/1.0.0/gauge-fp32.tflite")
    yield Pair("structure", "detector-onnx-fp32-to-fp16", onnx, onnx.edited(onnx_edits.to_half))
    yield Pair("structure", "detector-tflite-fp32-to-fp16", tflite, half)
    yield Pair("structure", "detector-onnx-fp32-to-int8", onnx, onnx.edited(onnx_edits.to_int8))
    yield Pair("structure", "detector-tflite-fp32-to-int8", tflite, detector("1.2.0", "tflite-int8"))
    yield Pair("structure", "gauge-tflite-fp32-to-int8", gauge_tflite, committed("gauge/1.0.0/gauge-int8.tflite"))
    yield Pair("structure", "detector-onnx-pruned", onnx, onnx.edited(onnx_edits.prune_each))
    yield Pair("structure", "detector-onnx-pruned-globally", onnx, onnx.edited(onnx_edits.prune_together))
    yield Pair("structure", "detector-tflite-pruned", tflite, tflite.edited(tflite_edits.prune_each))
    yield Pair("structure", "detector-tflite-fp16-pruned", half, half.edited(tflite_edits.prune_each))


def _list_metadata() -> Iterator[Pair]:
    """No weight changed: properties, opset, nodes at the end, the same net written by another tool."""
    onnx = detector("1.2.0", "onnx-fp32")
    one = onnx_edits.set_properties(edgeferry__version="1.2.1")
    more = onnx_edits.set_properties(edgeferry__threshold="0.45", site="platform C", reviewed="by two people, in May")
    for name, edit in (
        ("property-changed", one),
        ("properties-added", more),
        ("producer", onnx_edits.set_producer),
        ("opset-converted", onnx_edits.convert_opset),
        ("identity-added", onnx_edits.add_identity),
        ("cast-added", onnx_edits.add_cast),
        ("reordered", onnx_edits.reorder),
        ("nodes-renamed", onnx_edits.rename_nodes),
        ("reserialised", onnx_edits.reserialise),
    ):
        yield Pair("metadata", f"detector-onnx-{name}", onnx, onnx.edited(edit))
    yield Pair("metadata", "gauge-onnx-opset-number", GAUGE, GAUGE.edited(onnx_edits.set_opset))
    yield Pair("metadata", "gauge-onnx-output-added", GAUGE, GAUGE.edited(onnx_edits.add_answer))
    quantised = onnx.edited(onnx_edits.to_int8)
    yield Pair("metadata", "detector-onnx-int8-property-changed", quantised, quantised.edited(one))
    for form in ("tflite-fp32", "tflite-int8"):
        source = detector("1.2.0", form)
        for name, change in (
            ("version", tflite_edits.set_version),
            ("description", tflite_edits.set_description),
            ("label-renamed", tflite_edits.rename_label),
            ("relu-added", tflite_edits.add_relu),
            ("reordered", tflite_edits.reorder),
        ):
            yield Pair("metadata", f"detector-{form}-{name}", source, source.edited(change))


def _list_unrelated() -> Iterator[Pair]:
    """Files that are no two versions of one model, or no model at all."""
    onnx, tflite = detector("1.2.0", "onnx-fp32"), detector("1.2.0", "tflite-fp32")
    yield Pair("unrelated", "detector-to-gauge-onnx", onnx, GAUGE)
    yield Pair("unrelated", "gauge-to-detector-tflite-int8", GAUGE, detector("1.2.0", "tflite-int8"))
    yield Pair("unrelated", "detector-onnx-cut", detector("1.0.0", "onnx-fp32"), onnx.edited(opaque_edits.cut))
    yield Pair("unrelated", "detector-tflite-damaged", tflite, tflite.edited(opaque_edits.damage))
    text = Source("txt", committed("../LICENSE").read)
    yield Pair("unrelated", "text-wrapped", text, text.edited(opaque_edits.wrap))
