"""What `make bench-delta` measures, by name: the corpus made on this machine, third-party pairs, and the peers.

Rules:
- A pair names files; nothing is read here but the corpus's index.
- What is missing is said, never skipped silently.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / ".cache" / "delta-corpus" / "corpus.json"
SHARED = Path(os.environ.get("EDGEFERRY_SHARED", ROOT.parent / "shared")) / "models" / "pairs"
KINDS = ("fine-tune", "structure", "head-only", "retrained", "retrained-int8", "metadata", "unrelated")
WITHOUT_BASE = ("ZIP -9", "xz -9e", "zstd -19")
GENERIC = (*WITHOUT_BASE, "patch-from", "bsdiff", "xdelta3", "hdiffpatch")
RESEARCH = ("FM-Delta-like", "BitX-like")
SHARED_KINDS = {
    "yolox_fp32_finetune": "fine-tune",
    "teachable_fp32_head_retrain": "head-only",
    "fastestdet_fp32_retrain": "retrained",
    "facelandmark_fp16_reserialised": "metadata",
    "mobilenetv2_quant_reserialised": "metadata",
    "ssdv1_metadata_only": "metadata",
}
THIRD_PARTY = "third-party: "
_SUFFIXES = (".onnx", ".tflite")
MODELS = ROOT / "models"


@dataclass(frozen=True, slots=True)
class VersionPair:
    """Two versions of a model; `kind` is the class of change, one of KINDS."""

    kind: str
    name: str
    base: Path
    target: Path


def read_corpus(index: Path) -> list[VersionPair]:
    """The pairs of an index, whose paths are relative to it.

    Raises:
        SystemExit: there is no index, or it names a class that has no figure.
    """
    if not index.is_file():
        raise SystemExit(f"{index} is not here: run `make bench-delta`, which makes the corpus first")
    pairs = [
        VersionPair(row["class"], row["name"], index.parent / row["base"], index.parent / row["target"])
        for row in json.loads(index.read_text())
    ]
    for pair in pairs:
        if pair.kind not in KINDS:
            raise SystemExit(f"{pair.name}: expected a class of {', '.join(KINDS)}, found {pair.kind}")
    return pairs


def find_shared_pairs(folder: Path) -> list[VersionPair]:
    """The third-party pairs that lie on this machine, v1 to v2; empty when there are none."""
    found = []
    for name, kind in SHARED_KINDS.items():
        files = sorted(path for path in (folder / name).glob("v[12].*") if path.suffix in _SUFFIXES)
        if len(files) == 2:
            found.append(VersionPair(kind, f"{THIRD_PARTY}{name}", *files))
    return found


def find_models(demo: Path, shared: Path) -> list[tuple[str, Path]]:
    """The committed demo models and the third-party ones that lie beside the pairs: (name, path)."""
    found = [(str(path.relative_to(demo)), path) for path in sorted(demo.glob("*/*/*"))]
    found += [(f"{THIRD_PARTY}{path.name}", path) for path in sorted(shared.parent.glob("*/*"))]
    return [(name, path) for name, path in found if path.suffix in _SUFFIXES]


def list_pairs(index: Path, folder: Path) -> list[VersionPair]:
    """All pairs, in the order of the classes."""
    pairs = [*read_corpus(index), *find_shared_pairs(folder)]
    return sorted(pairs, key=lambda pair: (KINDS.index(pair.kind), pair.name))
