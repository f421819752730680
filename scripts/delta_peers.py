"""What every peer makes of one pair of files, in bytes: the generic ones, and the two research baselines.

The baselines' code is delta_research.py; what ours makes of the pair is delta_ours.py.

Rules:
- Each peer at its best setting: where a tool has several that win in turn, the smallest counts.
- Every output is decoded again and compared, ZIP and xz included.
- A peer that is not on this machine is left out, and said so: `find_missing`.
- Sizes are kept in a cache file by digest of the two files and of the code that measured them.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import io
import json
import lzma
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import hdiffpatch
from delta_pairs import RESEARCH, WITHOUT_BASE
from delta_research import (
    Tensor,
    TensorPair,
    compress_against,
    decode_bitx,
    decode_fm_delta,
    decompress_against,
    encode_bitx,
    encode_fm_delta,
    pair_tensors,
)
from make_sdk_env import make_environment

from edgeferry.delta.tensors import WIDTHS, find_tensors

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache" / "delta-peers.json"
_TOOL_TIMEOUT_S = 600
_BSDIFF = """
import bsdiff4, pathlib, sys
base, target, patch = (pathlib.Path(name) for name in sys.argv[1:])
data = bsdiff4.diff(base.read_bytes(), target.read_bytes())
assert bsdiff4.patch(base.read_bytes(), data) == target.read_bytes()
patch.write_bytes(data)
"""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One pair as every peer wants it: bytes, and the same as files beside a folder for the outputs."""

    base: bytes
    target: bytes
    folder: Path

    @property
    def paths(self) -> tuple[Path, Path]:
        """(base, target) as files."""
        return self.folder / "base", self.folder / "target"


def find_missing() -> list[str]:
    """The peers that this machine lacks, in words."""
    return [
        f"{peer}: {tool} is not here: install its package (apt-get install {tool})"
        for peer, tool in (("xdelta3", "xdelta3"),)
        if not shutil.which(tool)
    ]


# --- a peer each: bytes of its output ---------------------------------------------------------------------------------
def measure_zip(one: Inputs) -> int:
    """The target alone as a deflated member."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        out.writestr("model", one.target)
    _require_same("ZIP", zipfile.ZipFile(archive).read("model"), one.target)
    return len(archive.getvalue())


def measure_xz(one: Inputs) -> int:
    """The target alone."""
    coded = lzma.compress(one.target, preset=9 | lzma.PRESET_EXTREME)
    _require_same("xz", lzma.decompress(coded), one.target)
    return len(coded)


def measure_zstd(one: Inputs) -> int:
    """The target alone, at -19 --long=27."""
    coded = compress_against(b"", one.target)
    _require_same("zstd", decompress_against(b"", coded), one.target)
    return len(coded)


def measure_patch_from(one: Inputs) -> int:
    """zstd -19 --long=27 with the base as prefix: by the library, and by the tool where it is here."""
    coded = compress_against(one.base, one.target)
    _require_same("patch-from", decompress_against(one.base, coded), one.target)
    sizes = [len(coded)]
    if shutil.which("zstd"):
        base, target = one.paths
        words = ["zstd", "-q", "--single-thread", "--long=27", f"--patch-from={base}"]
        patch, again = one.folder / "zstd.patch", one.folder / "zstd.again"
        _run(*words, "-19", target, "-o", patch)
        _run(*words, "-d", patch, "-o", again)
        _require_same("zstd --patch-from", again.read_bytes(), one.target)
        sizes.append(patch.stat().st_size)
    return min(sizes)


def measure_bsdiff(one: Inputs) -> int:
    """bsdiff4, which applies its own patch, in the peers' environment."""
    patch = one.folder / "bsdiff.patch"
    _run(make_environment("delta-peers"), "-c", _BSDIFF, *one.paths, patch)
    return patch.stat().st_size


def measure_xdelta3(one: Inputs) -> int:
    """The smallest over its secondary coders, with windows over the whole files."""
    base, target = one.paths
    window = str(max(len(one.base), len(one.target), 1 << 19) + (1 << 16))
    sizes = []
    for coder in ("djw", "lzma"):  # fgk was ahead on one of 82 pairs, by 2 bytes, and never the best peer
        patch, again = one.folder / f"xdelta.{coder}", one.folder / f"xdelta.{coder}.again"
        _run("xdelta3", "-e", "-9", "-S", coder, "-B", window, "-W", str(1 << 24), "-I", "0", "-s", base, target, patch)
        _run("xdelta3", "-d", "-B", window, "-s", base, patch, again)
        _require_same("xdelta3", again.read_bytes(), one.target)
        sizes.append(patch.stat().st_size)
    return min(sizes)


def measure_hdiffpatch(one: Inputs) -> int:
    """HDiffPatch with lzma2 at 9, its window over the whole file."""
    coded = hdiffpatch.diff(one.base, one.target, hdiffpatch.Lzma2Config(level=9, window=27))
    _require_same("hdiffpatch", hdiffpatch.apply(one.base, coded), one.target)
    return len(coded)


def measure_fm_delta(one: Inputs) -> int:
    """The FM-Delta-like baseline on the tensors of both files."""
    coded = encode_fm_delta(one.base, one.target, _pair(one.base, one.target))
    _require_same("FM-Delta-like", decode_fm_delta(one.base, coded), one.target)
    return len(coded)


def measure_bitx(one: Inputs) -> int:
    """The BitX-like baseline on the tensors of both files."""
    coded = encode_bitx(one.base, one.target, _pair(one.base, one.target))
    _require_same("BitX-like", decode_bitx(one.base, coded), one.target)
    return len(coded)


MEASURES: dict[str, Callable[[Inputs], int]] = {
    "ZIP -9": measure_zip,
    "xz -9e": measure_xz,
    "zstd -19": measure_zstd,
    "patch-from": measure_patch_from,
    "bsdiff": measure_bsdiff,
    "xdelta3": measure_xdelta3,
    "hdiffpatch": measure_hdiffpatch,
    "FM-Delta-like": measure_fm_delta,
    "BitX-like": measure_bitx,
}


def _pair(base: bytes, target: bytes) -> list[TensorPair]:
    return pair_tensors(base, target, (_find_tensors(base), _find_tensors(target)))


def _find_tensors(data: bytes) -> list[Tensor]:
    """The tensor map that the baselines are given: quantised tensors too, beyond what their papers ask."""
    return [Tensor(one.start, one.elements, WIDTHS[one.kind], one.name) for one in find_tensors(data)]


def _require_same(peer: str, found: bytes, wanted: bytes) -> None:
    if found != wanted:
        raise SystemExit(f"{peer}: the output does not decode to the same bytes")


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]} failed: {done.stderr.strip()[-500:]}")


# --- the cache --------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class PeerCache:
    """Sizes by key; a key names the peer, both files and the code that measured."""

    path: Path
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, *, fresh: bool = False) -> PeerCache:
        """What an earlier run left; nothing when there is none or `fresh` is asked."""
        known = path.is_file() and not fresh
        return cls(path, json.loads(path.read_text()) if known else {})

    def write(self) -> None:
        """Keeps the sizes for the next run; the file appears whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_suffix(".new")
        whole.write_text(json.dumps(self.sizes, indent=0, sort_keys=True) + "\n")
        whole.replace(self.path)


def make_key(peer: str, base: bytes, target: bytes) -> str:
    """Names the peer, both files and the code that measures; where no base is read, none is named."""
    code = inspect.getsource(MEASURES[peer]).encode()
    if peer in RESEARCH:
        code += b"".join(path.read_bytes() for path in _RESEARCH_CODE) + repr(_pair(base, target)).encode()
    parts = (hashlib.sha256(data).hexdigest()[:24] for data in (b"" if peer in WITHOUT_BASE else base, target, code))
    return ":".join((peer, *parts))


_RESEARCH_CODE = (HERE / "delta_research.py", HERE / "delta_rans.py")


def measure_peers(base: bytes, target: bytes, *, known: dict[str, int], peers: Iterable[str]) -> dict[str, int]:
    """Bytes of each peer by key of the cache; only what is not `known` is measured, and what is missing left out."""
    keys = {peer: make_key(peer, base, target) for peer in peers if peer != "xdelta3" or shutil.which("xdelta3")}
    found = {key: known[key] for key in keys.values() if key in known}
    with tempfile.TemporaryDirectory() as name:
        one = Inputs(base, target, Path(name))
        for path, data in zip(one.paths, (base, target), strict=True):
            path.write_bytes(data)
        found.update({key: MEASURES[peer](one) for peer, key in keys.items() if key not in found})
    return found


def get_peer(key: str) -> str:
    """The peer that a key of the cache names."""
    return key.split(":", 1)[0]


def main() -> int:
    """Prints the bytes of every peer for one pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    found = measure_peers(options.base.read_bytes(), options.target.read_bytes(), known={}, peers=MEASURES)
    for key, size in found.items():
        print(f"{get_peer(key):14} {size:>12,}")
    for text in find_missing():
        print(text, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
