"""Measures what a full download costs beside ZIP, xz and zstd, and what an update's metadata costs.

Prints a table, takes `--json FILE`, writes its section of docs/benchmarks.md with `--write FILE`, and exits non-zero
when a figure falls short.
Bytes only: the figures are the same on every machine.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import zstandard
from page_sections import write_section

from edgeferry.publish.coding import code_full

ROOT = Path(__file__).resolve().parent.parent
METADATA_MAX_BYTES = 4096
"""What all metadata of one update may cost above TCP."""
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
    """Codes one file every way; ours is decoded again and compared while it is made."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        out.writestr("model", data)
    coded = code_full(data)
    return Row(
        file=name,
        raw=len(data),
        zip=len(archive.getvalue()),
        xz=len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        zstd=len(zstandard.ZstdCompressor(level=19).compress(data)),
        ours=len(coded.data),
        codec=coded.codec,
    )


def measure_metadata() -> list[tuple[str, int]]:
    """Publishes our detectors into an empty folder; (version, bytes of the one object a device fetches for it)."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        place = ["--to", f"{folder}/site", "--keys", f"{folder}/keys"]
        run_edgeferry("repo", "init", *place)
        for version, golden in (("1.0.0", "v1.0"), ("1.1.0", "v1.1"), ("1.2.0", "v1.1")):
            model = ROOT / "models" / "detector" / version / "detector.onnx"
            words = ["--name", "detector", "--version", version, "--golden", str(ROOT / "models" / "golden" / golden)]
            report = json.loads(run_edgeferry("publish", str(model), *words, *place, "--json"))
            found.append((version, int(report["bundle_bytes"])))
    return found


def run_edgeferry(*words: str) -> str:
    """What the command prints; raises when it fails."""
    command = [sys.executable, "-m", "edgeferry.cli.main", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make_metadata_table(sizes: list[tuple[str, int]]) -> str:
    """The metadata's sizes as a Markdown table."""
    lines = (f"| detector {version} | {size:,} |" for version, size in sizes)
    return "| published up to | bytes in the one object |\n|---|--:|\n" + "\n".join(lines) + "\n"


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
    sizes = measure_metadata()
    table, metadata = make_table(rows), make_metadata_table(sizes)
    print(table)
    print(metadata)
    if options.json:
        figures = {"full": [asdict(row) for row in rows], "metadata": dict(sizes)}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.write:
        write_section(
            options.write,
            "make bench",
            "## Full downloads, coded without loss\n\n"
            "Asked: never larger than zstd -19 or the file itself.\n\n"
            f"{table}\n## Metadata of one update\n\n"
            f"Asked: under {METADATA_MAX_BYTES:,} bytes above TCP, in one GET.\n\n{metadata}",
        )
    short = [row.file for row in rows if not row.holds]
    for file in short:
        print(f"FALLS SHORT: {file} is larger than zstd -19 or the file itself")
    large = [version for version, size in sizes if size >= METADATA_MAX_BYTES]
    for version in large:
        print(f"FALLS SHORT: the metadata of {version} takes {METADATA_MAX_BYTES} bytes or more")
    return 1 if short or large else 0


if __name__ == "__main__":
    sys.exit(main())
