"""What a pair of versions is, and the table of all pairs.

Leaves editing files to `onnx_edits.py` and `tflite_edits.py`, and training to `training.py`.

Rules:
- Reading the table costs nothing and needs no torch: bytes are made when a source is read.
- Cheap pairs stand first, so that something is there to measure while nets still train.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["fine-tune", "structure", "head-only", "retrained", "retrained-int8", "metadata", "unrelated"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """A file that can be made: its suffix, and how its bytes come about given the folder of trained nets."""

    suffix: str
    read: Callable[[Path], bytes]

    def edited(self, edit: Callable[[bytes], bytes]) -> Source:
        """The same file after an edit."""
        return Source(self.suffix, lambda nets: edit(self.read(nets)))


@dataclass(frozen=True)
class Pair:
    """Two versions of a model, or any two files: the base that devices hold, and the target that they shall hold."""

    kind: Kind
    name: str
    base: Source
    target: Source

    def paths(self, folder: Path) -> tuple[Path, Path]:
        """Where base and target lie in a corpus."""
        place = folder / self.kind / self.name
        return place / f"v1.{self.base.suffix}", place / f"v2.{self.target.suffix}"


def committed(path: str) -> Source:
    """A file under `models/`, as it is committed."""
    whole = ROOT / "models" / path
    return Source(whole.suffix.removeprefix("."), lambda nets: whole.read_bytes())


def list_pairs() -> list[Pair]:
    """Every pair of the corpus, cheap ones first."""
    from scripts.delta_corpus import demo_pairs, trained_pairs

    return [*demo_pairs.list_pairs(), *trained_pairs.list_pairs()]
