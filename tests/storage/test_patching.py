"""The patching child: bounded, clean behind itself, and its verdicts in our words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zstandard

from edgeferry.delta import codecs
from edgeferry.delta.apply import get_memory
from edgeferry.delta.container import MEMORY_UNIT, Container, Header, Piece, Streams, make_container
from edgeferry.delta.explain import Explanation, explain
from edgeferry.delta.make import make_full, make_patch
from edgeferry.delta.record_bytes import make_records
from edgeferry.delta.records import Copy
from edgeferry.errors import DeltaBaseMismatch, DeltaDamaged, StorageFailed
from edgeferry.model.digest import Digest
from edgeferry.storage import patching
from edgeferry.storage.patching import Decoded, decode_in_child, explain_in_child
from small_disk import may_mount, on_small_disk

DATA = np.tile(np.arange(3_000, dtype=np.float32), 100).tobytes()  # more than one block
CODED = zstandard.ZstdCompressor().compress(DATA)
BASE = b"a base that is one of several versions. " * 300
TARGET = BASE.replace(b"several", b"a few", 100) + b"its end"
PATCH = make_patch(BASE, TARGET)


async def decode(folder: Path, coded: bytes, **changes: object) -> Decoded:
    source = folder / "artifact"
    source.write_bytes(coded)
    terms: dict[str, object] = {"codec": "zstd", "size_bytes": len(DATA), "memory_bytes": 32 << 20} | changes
    return await decode_in_child(source, str(terms.pop("codec")), target_path=folder / "out" / "model.onnx", **terms)  # type: ignore[arg-type]


async def patch(folder: Path, data: bytes = PATCH.data, base: bytes = BASE, **changes: object) -> Decoded:
    (folder / "base").write_bytes(base)
    terms: dict[str, object] = {"size_bytes": len(TARGET), "memory_bytes": PATCH.memory_bytes} | changes
    return await decode(folder, data, codec="efd1", base_path=folder / "base", **terms)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path


# --- full files -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("codec", ["none", "zstd", "efd1"])
async def test_a_coded_file_is_decoded_and_its_digest_told(folder: Path, codec: str) -> None:
    coded = {"none": DATA, "zstd": CODED, "efd1": make_full(DATA).data}[codec]
    decoded = await decode(folder, coded, codec=codec, memory_bytes=get_memory(coded, codec))
    assert decoded.digest == Digest.of(DATA)
    assert decoded.size_bytes == len(DATA)
    assert (folder / "out" / "model.onnx").read_bytes() == DATA
    assert [path.name for path in (folder / "out").iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("codec", ["none", "zstd", "efd1"])
async def test_an_empty_file_travels_too(folder: Path, codec: str) -> None:
    coded = {"none": b"", "zstd": zstandard.ZstdCompressor().compress(b""), "efd1": make_full(b"").data}[codec]
    assert (await decode(folder, coded, codec=codec, size_bytes=0)).digest == Digest.of(b"")
    assert (folder / "out" / "model.onnx").read_bytes() == b""


@pytest.mark.parametrize(
    ("coded", "changes"),
    [
        (CODED[:-1], {}),
        (b"not zstd at all", {}),
        (b"", {}),
        (CODED, {"size_bytes": len(DATA) + 1}),
        (CODED, {"memory_bytes": 1 << 20}),
        (CODED, {"codec": "lzma"}),
        (make_full(DATA).data[:-1], {"codec": "efd1"}),
    ],
    ids=["cut", "no zstd", "empty", "wrong size", "too little memory", "unknown codec", "cut container"],
)
async def test_bad_input_is_damage_and_leaves_nothing(folder: Path, coded: bytes, changes: dict[str, object]) -> None:
    with pytest.raises(DeltaDamaged):
        await decode(folder, coded, **changes)
    assert not list((folder / "out").iterdir())


async def test_a_bomb_is_stopped_by_the_stated_size(folder: Path) -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    assert len(bomb) < 20_000
    with pytest.raises(DeltaDamaged):
        await decode(folder, bomb, size_bytes=1000)


# --- patches ----------------------------------------------------------------------------------------------------------
async def test_a_patch_is_applied_to_its_base_and_the_base_stays_as_it_is(folder: Path) -> None:
    patched = await patch(folder)
    assert (patched.digest, patched.size_bytes) == (Digest.of(TARGET), len(TARGET))
    assert (folder / "out" / "model.onnx").read_bytes() == TARGET
    assert (folder / "base").read_bytes() == BASE
    assert [path.name for path in (folder / "out").iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(("base", "target"), [(b"", TARGET), (BASE, b""), (b"", b"")], ids=["from", "to", "both"])
async def test_an_empty_file_is_patched_too(folder: Path, base: bytes, target: bytes) -> None:
    made = make_patch(base, target)
    patched = await patch(folder, made.data, base, size_bytes=len(target), memory_bytes=made.memory_bytes)
    assert patched.digest == Digest.of(target)


@pytest.mark.parametrize("base", [TARGET, BASE + b"x", b""], ids=["the target", "a longer one", "an empty one"])
async def test_another_base_is_said_as_such_and_leaves_nothing(folder: Path, base: bytes) -> None:
    with pytest.raises(DeltaBaseMismatch):
        await patch(folder, base=base)
    assert not list((folder / "out").iterdir())


async def test_a_full_file_in_the_container_is_no_patch_and_a_patch_no_full_file(folder: Path) -> None:
    with pytest.raises(DeltaBaseMismatch):
        await patch(folder, make_full(TARGET).data)
    with pytest.raises(DeltaBaseMismatch):
        await decode(folder, PATCH.data, codec="efd1", size_bytes=len(TARGET))


def make_hostile(method: int, data: bytes, *, memory_bytes: int = 32 << 20) -> bytes:
    """A patch whose header is right and whose only piece is `data`."""
    base, target = (bytes.fromhex(Digest.of(each).hex)[:12] for each in (BASE, TARGET))
    header = Header(has_base=True, base=base, target=target, target_bytes=len(TARGET), memory_bytes=memory_bytes)
    return make_container(Container(header, None, (Piece(method, len(TARGET), data, 0, len(BASE)),)))


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


HDIFF = codecs.encode(codecs.HDIFF, BASE, TARGET)
BAD_PATCHES = {
    "cut": PATCH.data[:-1],
    "only a header": PATCH.data[:20],
    "empty": b"",
    "no patch at all": b"not a patch, but as long as one may well be" * 3,
    "longer": PATCH.data + b"\0",
    "a byte is another": flip(PATCH.data, len(PATCH.data) - 2),
    "a version to come": PATCH.data[:3] + b"\x63" + PATCH.data[4:],
    "hdiffpatch that is cut": make_hostile(codecs.HDIFF, HDIFF[:-4]),
    "hdiffpatch with another byte": make_hostile(codecs.HDIFF, flip(HDIFF, len(HDIFF) - 3)),
    "hdiffpatch of zeros": make_hostile(codecs.HDIFF, HDIFF[:20] + bytes(200)),
    "lzma of something else": make_hostile(codecs.HDIFF_LZMA, b"\0" + os.urandom(90)),
    "more memory than the manifest says": make_hostile(codecs.HDIFF, HDIFF, memory_bytes=64 << 20),
}


@pytest.mark.parametrize("name", BAD_PATCHES)
async def test_a_bad_patch_is_damage_and_leaves_nothing(folder: Path, name: str) -> None:
    with pytest.raises(DeltaDamaged):
        await patch(folder, BAD_PATCHES[name], memory_bytes=32 << 20)
    assert not list((folder / "out").iterdir())
    assert (folder / "base").read_bytes() == BASE


async def test_the_hostile_patches_are_hostile_by_what_they_hold_and_not_by_how_they_are_made(folder: Path) -> None:
    assert (await patch(folder, make_hostile(codecs.HDIFF, HDIFF), memory_bytes=32 << 20)).digest == Digest.of(TARGET)


async def test_a_patch_that_takes_more_than_it_says_is_stopped_by_the_system(folder: Path) -> None:
    """A window of 64 MB behind a header that promises a MB, and a manifest that believes it."""
    data = os.urandom(1 << 20) * 130
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=26, source_size=len(data))
    frame = zstandard.ZstdCompressor(compression_params=parameters).compress(data)
    header = Header(False, b"", bytes.fromhex(Digest.of(data).hex)[:12], len(data), MEMORY_UNIT)
    greedy = make_container(Container(header, None, (Piece(codecs.ZSTD, len(data), frame),)))
    with pytest.raises(DeltaDamaged):
        await decode(folder, greedy, codec="efd1", size_bytes=len(data), memory_bytes=MEMORY_UNIT)
    assert not list((folder / "out").iterdir())
    truth = 2 * len(data) + (32 << 20)
    assert (await decode(folder, greedy, codec="efd1", size_bytes=len(data), memory_bytes=truth)).size_bytes


async def test_no_more_memory_is_granted_than_any_file_may_take(folder: Path) -> None:
    with pytest.raises(DeltaDamaged, match="memory"):
        await patch(folder, make_hostile(codecs.HDIFF, HDIFF, memory_bytes=1 << 30), memory_bytes=1 << 31)


# --- explaining -------------------------------------------------------------------------------------------------------
async def tell(
    folder: Path,
    data: bytes,
    base: bytes | None = None,
    *,
    size_bytes: int = len(TARGET),
    memory_bytes: int = PATCH.memory_bytes,
) -> Explanation:
    (folder / "patch").write_bytes(data)
    if base is not None:
        (folder / "base").write_bytes(base)
    return await explain_in_child(
        folder / "patch",
        size_bytes=size_bytes,
        memory_bytes=memory_bytes,
        base_path=None if base is None else folder / "base",
    )


@pytest.mark.parametrize("base", [None, BASE], ids=["without its base", "with its base"])
async def test_an_explanation_comes_back_as_it_was_made(folder: Path, base: bytes | None) -> None:
    assert await tell(folder, PATCH.data, base) == explain(PATCH.data, base)


async def test_a_full_file_is_explained_without_a_base(folder: Path) -> None:
    full = make_full(DATA)
    found = await tell(folder, full.data, size_bytes=len(DATA), memory_bytes=full.memory_bytes)
    assert found == explain(full.data)


async def test_another_base_and_another_size_are_said_where_a_patch_is_explained(folder: Path) -> None:
    with pytest.raises(DeltaBaseMismatch):
        await tell(folder, PATCH.data, TARGET)
    with pytest.raises(DeltaDamaged, match="expected a patch for 7 bytes"):
        await tell(folder, PATCH.data, BASE, size_bytes=7)


@pytest.mark.parametrize("name", [name for name in BAD_PATCHES if "manifest" not in name])
async def test_a_bad_patch_is_damage_where_it_is_explained_too(folder: Path, name: str) -> None:
    with pytest.raises(DeltaDamaged):
        await tell(folder, BAD_PATCHES[name], BASE, memory_bytes=32 << 20)


async def test_an_endless_explanation_is_not_read_to_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [Copy(at, 1, True, at % 2_000) for at in range(0, 20_000, 2)]
    plain = make_records(copies)
    streams = Streams(codecs.LZMA, len(plain), codecs.encode(codecs.LZMA, b"", plain), 1, bytes(4), b"")
    base = bytes.fromhex(Digest.of(BASE).hex)[:12]
    header = Header(True, base, bytes(12), 20_000, 4 * MEMORY_UNIT)
    data = make_container(Container(header, streams, (Piece(codecs.RAW, -1, bytes(10_000)),)))
    work = partial(tell, folder, data, size_bytes=20_000, memory_bytes=4 * MEMORY_UNIT)
    assert len((await work()).parts) == len(copies)
    monkeypatch.setattr(patching, "EXPLANATION_MAX_BYTES", 1000)
    with pytest.raises(DeltaDamaged, match="at most 1000 bytes"):
        await asyncio.wait_for(work(), 60)


# --- the disk, and the end of a child ---------------------------------------------------------------------------------
async def test_a_missing_folder_is_the_disks_fault(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed):
        await decode(tmp_path, CODED)


async def wait_for_child(folder: Path) -> int:
    """The id of the child that works in `folder`."""
    deadline = asyncio.get_running_loop().time() + 20
    while asyncio.get_running_loop().time() < deadline:
        for path in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
            for child in path.read_text().split():
                words = Path(f"/proc/{child}/cmdline").read_bytes()
                if str(folder).encode() in words and list((folder / "out").iterdir()):
                    return int(child)
        await asyncio.sleep(0.01)
    raise AssertionError("no child ever worked here")


def begin_long_work(folder: Path) -> asyncio.Task[Decoded]:
    size_bytes = 400 << 20
    coded = zstandard.ZstdCompressor(level=1).compress(bytes(size_bytes))
    return asyncio.create_task(decode(folder, coded, size_bytes=size_bytes, memory_bytes=96_000_000))


async def test_a_cancelled_decode_ends_its_child_and_leaves_nothing(folder: Path) -> None:
    task = begin_long_work(folder)
    child = await wait_for_child(folder)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list((folder / "out").iterdir())
    assert not Path(f"/proc/{child}").exists()


async def test_a_child_that_is_killed_is_damage_and_leaves_nothing(folder: Path) -> None:
    task = begin_long_work(folder)
    os.kill(await wait_for_child(folder), signal.SIGKILL)
    with pytest.raises(DeltaDamaged, match="-9"):
        await task
    assert not list((folder / "out").iterdir())


_ON_A_FULL_DISK = """
import asyncio, json, pathlib, resource, sys
from edgeferry.delta.make import make_patch
from edgeferry.errors import StorageError
from edgeferry.storage.patching import decode_in_child

folder, limit = pathlib.Path(sys.argv[1]), sys.argv[2] == "limit"
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, resource.RLIM_INFINITY))
base = bytes(range(256)) * 4096

def attempt(target):
    made = make_patch(base, target)
    (folder / "base").write_bytes(base)
    (folder / "artifact").write_bytes(made.data)
    (folder / "out").mkdir(exist_ok=True)
    work = decode_in_child(
        folder / "artifact", made.codec, base_path=folder / "base", target_path=folder / "out" / "model.onnx",
        size_bytes=len(target), memory_bytes=made.memory_bytes,
    )
    try:
        return asyncio.run(work).size_bytes
    except StorageError as error:
        return error.code

found = {"larger than the disk": attempt(base * 24), "left": [path.name for path in (folder / "out").iterdir()]}
found["smaller"] = attempt(base + base)
print(json.dumps(found))
"""


def test_a_full_disk_is_no_space_before_anything_is_written_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounts = may_mount(disk)
    words = [sys.executable, "-c", _ON_A_FULL_DISK, str(disk), "tmpfs" if mounts else "limit"]
    words = [*(on_small_disk(disk, os.geteuid()) if mounts else ()), *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"larger than the disk": "no_space", "left": [], "smaller": 2 << 20}


async def test_a_file_system_that_cannot_reserve_space_is_written_with_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    path = tmp_path / "out"
    with path.open("x+b") as file, patching._open_output(file.fileno(), 3_000_000) as output:
        assert path.stat().st_blocks * 512 >= 3_000_000
        output[:5] = b"hello"
    assert path.read_bytes() == b"hello" + bytes(2_999_995)


_DECODING = """
import asyncio, sys
from pathlib import Path
from edgeferry.storage.patching import decode_in_child
here = Path(sys.argv[1])
asyncio.run(decode_in_child(here / "fifo", "zstd", target_path=here / "out", size_bytes=9, memory_bytes=1 << 20))
"""


async def test_a_child_ends_with_the_process_that_waits_for_it(tmp_path: Path) -> None:
    """Nobody ever writes into the FIFO that it opens: it would stay for ever."""
    os.mkfifo(tmp_path / "fifo")
    device = await asyncio.create_subprocess_exec(sys.executable, "-c", _DECODING, str(tmp_path))
    children = Path(f"/proc/{device.pid}/task/{device.pid}/children")
    async with asyncio.timeout(20):
        while not (found := children.read_text().split()):
            await asyncio.sleep(0.05)
        device.kill()
        await device.wait()
        while Path(f"/proc/{found[0]}/cmdline").exists() and Path(f"/proc/{found[0]}/cmdline").read_bytes():
            await asyncio.sleep(0.05)
