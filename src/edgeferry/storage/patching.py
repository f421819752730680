"""The child process that turns a downloaded artifact into the file it stands for, and hashes what it writes.

Codecs are `delta/`'s; whether the digest is the right one is for the caller, who holds the manifest. This module is
both sides: `decode_in_child` in the device's main process, and `main` for `python -m edgeferry.storage.patching`.

Rules:
- The child is nice (10) and bounded: address space by RLIMIT_AS, processor time by RLIMIT_CPU. The main process never
  imports numpy for this.
- The output appears under its name only whole and fsynced. Nothing is left behind by an error, a kill or a cancel.
- Whatever the bytes make the child do (error, signal, too much memory or time) is DeltaDamaged; a full disk is NoSpace;
  that a child cannot be started at all is ours: WorkerStartFailed.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgeferry.errors import DeltaDamaged, EdgeferryError, NoSpace, StorageFailed, WorkerStartFailed
from edgeferry.model.digest import Digest, Hasher
from edgeferry.storage.files import TEMP_PREFIX, rename_durably, translate_disk_errors

NICENESS = 10
CPU_BASE_S = 60
CPU_BYTES_PER_S = 1_000_000
"""Far below what any supported device decodes and hashes: the limit stops endless work, not slow work."""
ADDRESS_SLACK_BYTES = 64 << 20  # stacks, allocator arenas and mappings that hold no data of ours
_ANSWER_MAX_BYTES = 4096
_RAISED_HERE = (DeltaDamaged, NoSpace, StorageFailed)


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the child shall do; sizes in bytes. It travels as one JSON argument."""

    source: str
    codec: str
    target: str
    temp: str
    size_bytes: int
    memory_bytes: int


class Decoded(msgspec.Struct, frozen=True, kw_only=True):
    """The file that was written: `sha256:<hex>`, MD5 in base64, size in bytes."""

    sha256: str
    md5: str
    size_bytes: int

    @property
    def digest(self) -> Digest:
        """SHA-256 of the file."""
        return Digest.from_str(self.sha256)


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    decoded: Decoded | None = None
    error: str = ""
    message: str = ""


async def decode_in_child(
    source_path: Path, codec: str, *, target_path: Path, size_bytes: int, memory_bytes: int
) -> Decoded:
    """Decodes `source_path` into the new file `target_path` and tells its digests.

    Args:
        source_path: the coded file, on the disk and already verified against its own digest.
        codec: as in the manifest's source.
        target_path: where the decoded file appears, whole; its folder exists.
        size_bytes: size of the decoded file.
        memory_bytes: what the manifest's source says decoding takes.

    Raises:
        DeltaDamaged: the coded file does not decode to `size_bytes` within `memory_bytes`.
        NoSpace, StorageFailed: the disk does not do as asked.
        WorkerStartFailed: the child could not be started.
    """
    temp = target_path.with_name(f"{TEMP_PREFIX}{target_path.name[:64]}-{os.getpid()}-{id(target_path):x}")
    task = Task(
        source=str(source_path),
        codec=codec,
        target=str(target_path),
        temp=str(temp),
        size_bytes=size_bytes,
        memory_bytes=memory_bytes,
    )
    try:
        return await _run_child(task)
    finally:
        temp.unlink(missing_ok=True)


async def _run_child(task: Task) -> Decoded:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edgeferry.storage.patching",
            msgspec.json.encode(task).decode(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
    except OSError as error:
        raise WorkerStartFailed(f"cannot start the decoding process: {error.strerror}") from error
    try:
        stdout = child.stdout
        answer = await stdout.read(_ANSWER_MAX_BYTES) if stdout else b""
        status = await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _read_answer(answer, status)


def _read_answer(data: bytes, status: int) -> Decoded:
    try:
        answer = msgspec.json.decode(data, type=_Answer)
    except msgspec.MsgspecError as error:
        raise DeltaDamaged(f"the decoding process ended with status {status} and no answer", status=status) from error
    if answer.decoded is not None:
        return answer.decoded
    kind = next((leaf for leaf in _RAISED_HERE if leaf.code == answer.error), DeltaDamaged)
    raise kind(answer.message)


# --- the child's side -------------------------------------------------------------------------------------------------
def main(argument: str) -> None:
    """Does one task and writes the answer to standard output."""
    os.nice(NICENESS)
    task = msgspec.json.decode(argument, type=Task)
    try:
        answer = _Answer(decoded=_decode(task))
    except EdgeferryError as error:
        answer = _Answer(error=error.code, message=error.message)
    except MemoryError:
        answer = _Answer(error=DeltaDamaged.code, message="decoding took more memory than the manifest states")
    sys.stdout.buffer.write(msgspec.json.encode(answer))


def _decode(task: Task) -> Decoded:
    from edgeferry.delta.codecs import decode_blocks  # brings numpy and zstandard, which the main process never loads

    hasher = Hasher()
    with _open_mapped(Path(task.source)) as coded:
        _limit_process(task, len(coded))
        blocks = decode_blocks(coded, task.codec, task.size_bytes, memory_bytes=task.memory_bytes)
        with translate_disk_errors(Path(task.target)), Path(task.temp).open("xb") as file:
            for block in blocks:
                hasher.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    rename_durably(Path(task.temp), Path(task.target))
    return Decoded(sha256=str(hasher.get_digest()), md5=hasher.get_md5_base64(), size_bytes=hasher.size_bytes)


@contextmanager
def _open_mapped(path: Path) -> Iterator[memoryview]:
    with translate_disk_errors(path), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield memoryview(b"")
            return
        # the map is left to the process's end: views of it may still stand when an error passes through here
        yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _limit_process(task: Task, mapped_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    address = pages * resource.getpagesize() + task.memory_bytes + ADDRESS_SLACK_BYTES
    _lower_limit(resource.RLIMIT_AS, address)
    _lower_limit(resource.RLIMIT_CPU, CPU_BASE_S + (task.size_bytes + mapped_bytes) // CPU_BYTES_PER_S)
    _lower_limit(resource.RLIMIT_CORE, 0)


def _lower_limit(kind: int, wanted: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


if __name__ == "__main__":
    main(sys.argv[1])
