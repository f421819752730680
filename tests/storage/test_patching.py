"""The decoding child: bounded, clean behind itself, and its verdicts in our words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import zstandard

from edgeferry.delta.codecs import encode_full
from edgeferry.errors import DeltaDamaged, StorageFailed
from edgeferry.model.digest import Digest
from edgeferry.storage.patching import Decoded, decode_in_child

DATA = np.tile(np.arange(3_000, dtype=np.float32), 100).tobytes()  # more than one block
CODED = zstandard.ZstdCompressor().compress(DATA)


async def decode(folder: Path, coded: bytes, **changes: object) -> Decoded:
    source = folder / "artifact"
    source.write_bytes(coded)
    terms: dict[str, object] = {"codec": "zstd", "size_bytes": len(DATA), "memory_bytes": 32 << 20} | changes
    return await decode_in_child(source, str(terms.pop("codec")), target_path=folder / "out" / "model.onnx", **terms)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.mark.parametrize("codec", ["none", "zstd", "planes-zstd"])
async def test_a_coded_file_is_decoded_and_its_digest_told(folder: Path, codec: str) -> None:
    coded = encode_full(DATA, codec)  # type: ignore[arg-type]
    decoded = await decode(folder, coded.data, codec=codec, memory_bytes=coded.memory_bytes)
    assert decoded.digest == Digest.of(DATA)
    assert decoded.size_bytes == len(DATA)
    assert (folder / "out" / "model.onnx").read_bytes() == DATA
    assert [path.name for path in (folder / "out").iterdir()] == ["model.onnx"]


async def test_an_empty_file_travels_too(folder: Path) -> None:
    assert (await decode(folder, b"", codec="none", size_bytes=0)).digest == Digest.of(b"")


@pytest.mark.parametrize(
    ("coded", "changes"),
    [
        (CODED[:-1], {}),
        (b"not zstd at all", {}),
        (b"", {}),
        (CODED, {"size_bytes": len(DATA) + 1}),
        (CODED, {"memory_bytes": 1 << 20}),
        (CODED, {"codec": "lzma"}),
    ],
    ids=["cut", "no zstd", "empty", "wrong size", "too little memory", "unknown codec"],
)
async def test_bad_input_is_damage_and_leaves_nothing(folder: Path, coded: bytes, changes: dict[str, object]) -> None:
    with pytest.raises(DeltaDamaged):
        await decode(folder, coded, **changes)
    assert not list((folder / "out").iterdir())


async def test_a_missing_folder_is_the_disks_fault(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed):
        await decode(tmp_path, CODED)


async def test_a_cancelled_decode_ends_its_child_and_leaves_nothing(folder: Path) -> None:
    size_bytes = 400 << 20
    coded = zstandard.ZstdCompressor(level=1).compress(bytes(size_bytes))
    task = asyncio.create_task(decode(folder, coded, size_bytes=size_bytes, memory_bytes=96_000_000))
    deadline = asyncio.get_running_loop().time() + 20
    while not list((folder / "out").iterdir()) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list((folder / "out").iterdir())


async def test_a_bomb_is_stopped_by_the_stated_size(folder: Path) -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    assert len(bomb) < 20_000
    with pytest.raises(DeltaDamaged):
        await decode(folder, bomb, size_bytes=1000)
