"""Measures what a full download costs beside ZIP, xz and zstd, and what an update's metadata costs.

Prints a table, takes `--json FILE`, writes docs/benchmarks.md with `--write FILE`, and exits non-zero when a figure
falls short.
Bytes only: the figures are the same on every machine.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import zstandard

from edgeferry.delta.codecs import decode_full, encode_smallest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("EDGEFERRY_SHARED", ROOT.parent / "shared")) / "models"


@dataclass(frozen=True)
class Row:
    """One file: bytes as it is, under each peer, and as we send it."""

    file: str
    raw: int
    zip: int
    xz: int
    zstd: int
    ours: int
    codec: str

    @property
    def holds(self) -> bool:
        """Never larger than zstd -19, nor than the file itself."""
        return self.ours <= min(self.zstd, self.raw)


def list_models() -> Iterator[tuple[str, Path]]:
    """Yields (name shown, path): our demo models, and third-party ones where they lie."""
    for path in sorted((ROOT / "models").glob("*/*/*.onnx")) + sorted((ROOT / "models").glob("*/*/*.tflite")):
        if "bad" not in str(path):
            yield str(path.relative_to(ROOT / "models")), path
    for kind in ("*.onnx", "*.tflite"):
        for path in sorted(SHARED.glob(f"*/{kind}")):
            yield f"third-party: {path.name}", path


def measure(name: str, data: bytes) -> Row:
    """Codes one file every way; raises when ours does not decode to the same bytes."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        out.writestr("model", data)
    coded = encode_smallest(data)
    if decode_full(coded.data, coded.codec, len(data)) != data:
        raise SystemExit(f"{name}: the coded file does not decode to the same bytes")
    return Row(
        file=name,
        raw=len(data),
        zip=len(archive.getvalue()),
        xz=len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        zstd=len(zstandard.ZstdCompressor(level=19).compress(data)),
        ours=len(coded.data),
        codec=coded.codec,
    )


def make_table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    head = (
        "| file | bytes | ZIP -9 | xz -9e | zstd -19 | ours | codec | ours / ZIP |\n|---|--:|--:|--:|--:|--:|---|--:|\n"
    )
    lines = (
        f"| {r.file} | {r.raw:,} | {r.zip:,} | {r.xz:,} | {r.zstd:,} | {r.ours:,} | {r.codec} | {r.ours / r.zip:.3f} |"
        for r in rows
    )
    return head + "\n".join(lines) + "\n"


def main() -> int:
    """Measures, prints, writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    rows = [measure(name, path.read_bytes()) for name, path in list_models()]
    table = make_table(rows)
    print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if options.write:
        options.write.write_text(
            "# Measurements\n\nWritten by `make bench`.\n\n## Full downloads, coded without loss\n\n"
            "Asked: never larger than zstd -19 or the file itself. Patches between versions are not here yet.\n\n"
            f"{table}"
        )
    short = [row.file for row in rows if not row.holds]
    for file in short:
        print(f"FALLS SHORT: {file} is larger than zstd -19 or the file itself")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
