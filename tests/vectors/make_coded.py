"""Writes the vectors of docs/formats/coded.md: `python tests/vectors/make_coded.py`. What is committed is the norm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zstandard
from onnx import helper, numpy_helper

from edgeferry.delta.codecs import CODECS, MAGIC, encode_full

FOLDER = Path(__file__).parent / "coded"


def make_target() -> bytes:
    """A small ONNX file with float32, float16 and int64 initialisers."""
    values = np.random.default_rng(7).normal(size=900)
    arrays = (values.astype(np.float32), values[:130].astype(np.float16), np.arange(90, dtype=np.int64))
    tensors = [numpy_helper.from_array(array, f"w{place}") for place, array in enumerate(arrays)]
    return bytes(helper.make_model(helper.make_graph([], "vector", [], [], tensors)).SerializeToString())


def main() -> None:
    """Good vectors from the encoder, bad ones by hand."""
    target = make_target()
    size = len(target)
    coded = {codec: encode_full(target, codec).data for codec in CODECS}
    frame, planes = coded["zstd"], coded["planes-zstd"]
    head = planes.index(b"\x28\xb5\x2f\xfd")
    opaque = zstandard.ZstdCompressor(level=3).compress(target)
    bad = {
        "bad-cut.zstd": frame[:-1],
        "bad-trailing.zstd": frame + b"\0",
        "bad-two-frames.zstd": frame + frame,
        "bad-other-size.zstd": zstandard.ZstdCompressor().compress(target + b"\0"),
        "bad-size-not-stated.zstd": zstandard.ZstdCompressor(write_content_size=False).compress(target),
        "bad-no-frame.zstd": target[:200],
        "bad-magic.planes-zstd": b"EFP2" + planes[4:],
        "bad-range-behind-file.planes-zstd": MAGIC + bytes([1, 0, 0xFF, 0x7F, 4]) + opaque,
        "bad-width.planes-zstd": MAGIC + bytes([1, 0, 100, 3]) + opaque,
        "bad-empty-range.planes-zstd": MAGIC + bytes([1, 0, 0, 4]) + opaque,
        "bad-endless-number.planes-zstd": MAGIC + bytes([1]) + b"\xff" * 12 + opaque,
        "bad-head-only.planes-zstd": planes[:head],
        "bad-short.none": target[:-1],
    }
    good = {
        "good-onnx.none": target,
        "good-onnx.zstd": frame,
        "good-onnx.planes-zstd": planes,
        "good-no-ranges.planes-zstd": MAGIC + b"\0" + opaque,
        "good-whole-file-as-halves.planes-zstd": MAGIC
        + bytes([1, 0, *_varint(size // 2), 2])
        + zstandard.ZstdCompressor().compress(
            target[: size // 2 * 2 : 2] + target[1 : size // 2 * 2 : 2] + target[size // 2 * 2 :]
        ),
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "target.bin").write_bytes(target)
    for name, data in (good | bad).items():
        (FOLDER / f"{name}.bin").write_bytes(data)


def _varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80, number >> 7])


if __name__ == "__main__":
    main()
