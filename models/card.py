"""Prints the tables of the model card and writes `models/README.md` from `card.md.in`."""

import hashlib
from collections.abc import Iterable, Sequence

from models.check import ROOT, DetectorReport, GaugeReport
from models.spec import DETECTOR_LABELS

TEMPLATE, CARD = ROOT / "card.md.in", ROOT / "README.md"


def make_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_detector_table(reports: list[DetectorReport]) -> str:
    """One line per file: mAP, average precision per class, true objects found."""
    head = ["version", "file", "mAP@0.5", *DETECTOR_LABELS, "golden found", "scenes found"]
    return make_table(head, [_detector_row(report) for report in reports])


def _detector_row(report: DetectorReport) -> list[str]:
    precisions = [f"{value:.3f}" for value in report.precision.per_class]
    precisions += ["-"] * (len(DETECTOR_LABELS) - len(precisions))
    mean = f"**{report.precision.mean:.3f}**"
    return [report.version, report.file, mean, *precisions, str(report.golden), str(report.scenes)]


def make_gauge_table(reports: list[GaugeReport]) -> str:
    """One line per file: accuracy, golden pictures named rightly."""
    rows = [[report.file, f"{report.accuracy:.3f}", str(report.golden)] for report in reports]
    return make_table(["file", "accuracy", "golden right"], rows)


def make_files_table() -> str:
    """Size and SHA-256 of every committed model file."""
    paths = sorted(p for pattern in ("*.onnx", "*.tflite") for p in ROOT.rglob(pattern))
    rows = []
    for path in paths:
        data = path.read_bytes()
        rows.append([str(path.relative_to(ROOT)), f"{len(data):,}", f"`{hashlib.sha256(data).hexdigest()}`"])
    return make_table(["file", "bytes", "SHA-256"], rows)


def write_card(detectors: list[DetectorReport], gauges: list[GaugeReport]) -> None:
    """Rewrites the model card with today's numbers."""
    text = TEMPLATE.read_text()
    tables = {
        "{{detectors}}": make_detector_table(detectors),
        "{{gauges}}": make_gauge_table(gauges),
        "{{files}}": make_files_table(),
    }
    for mark, table in tables.items():
        text = text.replace(mark, table)
    CARD.write_text(text)
