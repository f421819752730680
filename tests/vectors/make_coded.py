"""Writes the vectors of docs/formats/coded.md: `python tests/vectors/make_coded.py`. What is committed is the norm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zstandard
from onnx import helper, numpy_helper

from edgeferry.delta.codecs import compress_zstd

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
    frame = compress_zstd(target)
    without_checksum = zstandard.ZstdCompressor(level=1, write_checksum=False).compress(target)
    with_checksum = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(target)
    dictionary = zstandard.ZstdCompressionDict(target, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    bad = {
        "bad-cut.zstd": frame[:-1],
        "bad-trailing.zstd": frame + b"\0",
        "bad-two-frames.zstd": frame + frame,
        "bad-other-size.zstd": zstandard.ZstdCompressor().compress(target + b"\0"),
        "bad-size-not-stated.zstd": zstandard.ZstdCompressor(write_content_size=False).compress(target),
        "bad-no-frame.zstd": target[:200],
        "bad-wrong-checksum.zstd": with_checksum[:-1] + bytes([with_checksum[-1] ^ 1]),
        "bad-with-a-dictionary.zstd": zstandard.ZstdCompressor(dict_data=dictionary).compress(target),
        "bad-short.none": target[:-1],
        "bad-long.none": target + b"\0",
        "bad-no-container.efd1": target,
    }
    good = {
        "good-onnx.none": target,
        "good-onnx.zstd": frame,
        "good-fast.zstd": without_checksum,
        "good-with-checksum.zstd": with_checksum,
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "target.bin").write_bytes(target)
    for name, data in (good | bad).items():
        (FOLDER / f"{name}.bin").write_bytes(data)


if __name__ == "__main__":
    main()
