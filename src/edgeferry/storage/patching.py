"""The child process that turns a downloaded artifact, with a base for a patch, into its file, or explains a patch.

Codecs are `delta/`'s; whether the digest is the right one is for the caller, who holds the manifest. This module is
both sides: `decode_in_child` and `explain_in_child` in the main process, and `main` for
`python -m edgeferry.storage.patching`.

Rules:
- The child is nice (10) and bounded: address space by RLIMIT_AS, processor time by RLIMIT_CPU. The main process never
  imports numpy for this.
- Base, artifact and output are mapped: what stays in memory is what the patch states. Space for the output is reserved
  before a byte of it is written, so that a full disk is an error and no signal.
- What is made on the way to an explanation is a file without a name, mapped too.
- The output appears under its name only whole and fsynced. Nothing is left behind by an error, a kill or a cancel, and
  no child outlives the process that waits for it.
- A patch for another base is DeltaBaseMismatch. Whatever else the bytes make the child do (error, signal, too much
  memory or time) is DeltaDamaged; a full disk is NoSpace; that a child cannot be started at all is ours:
  WorkerStartFailed.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from edgeferry.errors import (
    DeltaBaseMismatch,
    DeltaDamaged,
    EdgeferryError,
    NoSpace,
    StorageFailed,
    WorkerStartFailed,
)
from edgeferry.model.digest import Digest, Hasher
from edgeferry.storage.files import TEMP_PREFIX, rename_durably, translate_disk_errors

if TYPE_CHECKING:  # it brings numpy
    from edgeferry.delta.explain import Explanation

NICENESS = 10
CPU_BASE_S = 60
CPU_BYTES_PER_S = 1_000_000
"""Far below what any supported device decodes and hashes: the limit stops endless work, not slow work."""
ADDRESS_SLACK_BYTES = 64 << 20  # stacks, allocator arenas and mappings that hold no data of ours
MEMORY_MAX_BYTES, MEMORY_FIXED_BYTES = 96_000_000, 32 << 20
"""No more is granted than the greater of the first, and the second plus twice the file: docs/formats/coded.md."""
EXPLAINING_BYTES = 64 << 20
"""Granted beside what the patch states: its parts, their names and the answer."""
EXPLANATION_MAX_BYTES = 16 << 20
_ANSWER_MAX_BYTES = 4096
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_BLOCK_BYTES = 1 << 20
_RAISED_HERE = (DeltaBaseMismatch, DeltaDamaged, NoSpace, StorageFailed)
_LASTING_TEMP_FOLDER = "/var/tmp"  # noqa: S108 - no name is made there; /tmp is memory on many machines
T = TypeVar("T")


class Task(msgspec.Struct, frozen=True, kw_only=True, tag="decode"):
    """What the child shall do; sizes in bytes; no base: a full file. It travels as one JSON argument."""

    source: str
    codec: str
    base: str | None
    target: str
    temp: str
    size_bytes: int
    memory_bytes: int


class Question(msgspec.Struct, frozen=True, kw_only=True, tag="explain"):
    """What the child shall explain; sizes as the patch's header states them; no base: without one."""

    source: str
    base: str | None
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


class _Answer(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    found: T | None = None
    error: str = ""
    message: str = ""


async def decode_in_child(
    source_path: Path,
    codec: str,
    *,
    target_path: Path,
    size_bytes: int,
    memory_bytes: int,
    base_path: Path | None = None,
) -> Decoded:
    """Turns `source_path` into the new file `target_path` and tells its digests.

    Args:
        source_path: the coded file or patch, on the disk and already verified against its own digest.
        codec: as in the manifest's source.
        target_path: where the file appears, whole; its folder exists.
        size_bytes: size of the file.
        memory_bytes: what the manifest's source says it takes.
        base_path: of a patch, the file that it changes; None for a coded full file.

    Raises:
        DeltaBaseMismatch: the patch is for another base.
        DeltaDamaged: what was downloaded does not give a file of `size_bytes` within `memory_bytes`.
        NoSpace, StorageFailed: the disk does not do as asked.
        WorkerStartFailed: the child could not be started.
    """
    temp = target_path.with_name(f"{TEMP_PREFIX}{target_path.name[:64]}-{os.getpid()}-{id(target_path):x}")
    task = Task(
        source=str(source_path),
        codec=codec,
        base=str(base_path) if base_path is not None else None,
        target=str(target_path),
        temp=str(temp),
        size_bytes=size_bytes,
        memory_bytes=memory_bytes,
    )
    try:
        return await _run_child(task, Decoded, max_bytes=_ANSWER_MAX_BYTES)
    finally:
        temp.unlink(missing_ok=True)


async def explain_in_child(
    patch_path: Path, *, size_bytes: int, memory_bytes: int, base_path: Path | None = None
) -> Explanation:
    """Takes the patch at `patch_path` apart, down to what each tensor costs where the base is there or none is needed.

    Args:
        patch_path: the patch, on the disk.
        size_bytes: of its target, as its header states.
        memory_bytes: what its header states.
        base_path: the file that it changes; None: only what stands in the patch is told.

    Raises:
        DeltaBaseMismatch: the patch is for another base.
        DeltaDamaged: the patch is damaged, or does not give a file of `size_bytes` within `memory_bytes`.
        NoSpace, StorageFailed: the disk does not do as asked.
        WorkerStartFailed: the child could not be started.
    """
    from edgeferry.delta.explain import Explanation

    question = Question(
        source=str(patch_path),
        base=str(base_path) if base_path is not None else None,
        size_bytes=size_bytes,
        memory_bytes=memory_bytes,
    )
    return await _run_child(question, Explanation, max_bytes=EXPLANATION_MAX_BYTES)


async def _run_child(task: Task | Question, kind: type[T], *, max_bytes: int) -> T:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edgeferry.storage.patching",
            msgspec.json.encode(task).decode(),
            str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
    except OSError as error:
        raise WorkerStartFailed(f"cannot start the decoding process: {error.strerror}") from error
    try:
        answer = await _read_output(child.stdout, max_bytes)
        status = await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()  # reads on to the end: a pipe that nobody empties would never be closed
    return _read_answer(answer, status, kind)


async def _read_output(stdout: asyncio.StreamReader | None, max_bytes: int) -> bytes:
    """All of the output, which is at most `max_bytes` long."""
    found = bytearray()
    while stdout and (block := await stdout.read(_BLOCK_BYTES)):
        found += block
        if len(found) > max_bytes:
            raise DeltaDamaged(f"expected at most {max_bytes} bytes from the decoding process, found more")
    return bytes(found)


def _read_answer(data: bytes, status: int, kind: type[T]) -> T:
    try:
        answer: _Answer[T] = msgspec.json.decode(data, type=_Answer[kind])  # type: ignore[valid-type]
    except msgspec.MsgspecError as error:
        raise DeltaDamaged(f"the decoding process ended with status {status} and no answer", status=status) from error
    if answer.found is not None:
        return answer.found
    raised = next((leaf for leaf in _RAISED_HERE if leaf.code == answer.error), DeltaDamaged)
    raise raised(answer.message)


# --- the child's side -------------------------------------------------------------------------------------------------
def main(argument: str, parent: int) -> None:
    """Does one task and writes the answer to standard output; `parent` is the process that waits for it."""
    _die_with(parent)
    os.nice(NICENESS)
    task = msgspec.json.decode(argument, type=Task | Question)
    try:
        answer = _do(task)
    except EdgeferryError as error:
        answer = _encode(error=error.code, message=error.message)
    except MemoryError:
        answer = _encode(error=DeltaDamaged.code, message="decoding took more memory than is stated")
    sys.stdout.buffer.write(answer)


def _die_with(parent: int) -> None:
    """A device that is killed leaves nobody at work: the next one decodes anew, and needs the memory for it."""
    with suppress(OSError, AttributeError):  # without it the work is only done in vain
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before we asked
        sys.exit(1)


def _do(task: Task | Question) -> bytes:
    return _encode(found=_decode(task) if isinstance(task, Task) else _explain(task))


def _encode(**parts: Any) -> bytes:
    return msgspec.json.encode(_Answer(**parts))


def _decode(task: Task) -> Decoded:
    from edgeferry.delta import apply  # brings numpy, zstandard and hdiffpatch, which the main process never loads

    target, temp = Path(task.target), Path(task.temp)
    with _open_mapped(task.source) as coded, _open_mapped(task.base) as base, translate_disk_errors(target):
        granted_bytes = _grant_memory(task, apply.get_memory(coded, task.codec))
        with temp.open("x+b") as file, _open_output(file.fileno(), task.size_bytes) as output:
            _limit_process(granted_bytes, work_bytes=task.size_bytes + len(coded) + len(base))
            if task.base is None:
                apply.decode_full(coded, task.codec, output)
            else:
                apply.apply_patch(base, coded, output)
            hasher = _hash(output)
        rename_durably(temp, target)
    return Decoded(sha256=str(hasher.get_digest()), md5=hasher.get_md5_base64(), size_bytes=hasher.size_bytes)


def _explain(question: Question) -> Explanation:
    from edgeferry.delta.container import read_header
    from edgeferry.delta.explain import explain, needs_target

    folder = _find_temp_folder()
    with _open_mapped(question.source) as patch, _open_mapped(question.base) as base, translate_disk_errors(folder):
        header = read_header(patch)
        granted_bytes = _grant_memory(question, header.memory_bytes)
        size_bytes = question.size_bytes if needs_target(header, has_base=question.base is not None) else 0
        with tempfile.TemporaryFile(dir=folder) as file:
            target = _map_output(file.fileno(), size_bytes)
            _limit_process(granted_bytes + EXPLAINING_BYTES, work_bytes=size_bytes + len(patch) + len(base))
            return explain(patch, base if question.base is not None else None, target=target)


def _find_temp_folder() -> Path:
    asked = os.environ.get("TMPDIR") or _LASTING_TEMP_FOLDER
    return Path(asked if os.access(asked, os.W_OK) else tempfile.gettempdir())


def _grant_memory(task: Task | Question, needed_bytes: int) -> int:
    granted = min(task.memory_bytes, max(MEMORY_MAX_BYTES, MEMORY_FIXED_BYTES + 2 * task.size_bytes))
    if needed_bytes > granted:
        raise DeltaDamaged(f"expected to need at most {granted} bytes of memory, found {needed_bytes}")
    return granted


def _hash(data: memoryview) -> Hasher:
    hasher = Hasher()
    for at in range(0, len(data), _BLOCK_BYTES):
        hasher.update(data[at : at + _BLOCK_BYTES])
    return hasher


@contextmanager
def _open_mapped(path: str | None) -> Iterator[memoryview]:
    if path is None:
        yield memoryview(b"")
        return
    with translate_disk_errors(Path(path)), Path(path).open("rb") as file:
        empty = os.fstat(file.fileno()).st_size == 0
        # maps are left to the process's end: views of them may still stand when an error passes through here
        mapped = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    yield memoryview(mapped)


@contextmanager
def _open_output(handle: int, size_bytes: int) -> Iterator[memoryview]:
    """Zeros to write over, of the file behind `handle`; on the disk when the block ends well."""
    output = _map_output(handle, size_bytes)
    yield output
    if isinstance(output.obj, mmap.mmap):
        output.obj.flush()
    os.fsync(handle)


def _map_output(handle: int, size_bytes: int) -> memoryview:
    """Zeros to write over, of the file behind `handle`, space for them reserved."""
    if size_bytes == 0:
        return memoryview(bytearray())
    _reserve(handle, size_bytes)
    return memoryview(mmap.mmap(handle, size_bytes, access=mmap.ACCESS_WRITE))


def _reserve(handle: int, size_bytes: int) -> None:
    try:
        os.posix_fallocate(handle, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        for at in range(0, size_bytes, _BLOCK_BYTES):  # a file system that cannot reserve: zeros do it
            os.pwrite(handle, bytes(min(_BLOCK_BYTES, size_bytes - at)), at)


def _limit_process(memory_bytes: int, *, work_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    address = pages * resource.getpagesize() + memory_bytes + ADDRESS_SLACK_BYTES
    _lower_limit(resource.RLIMIT_AS, address)
    _lower_limit(resource.RLIMIT_CPU, CPU_BASE_S + work_bytes // CPU_BYTES_PER_S)
    _lower_limit(resource.RLIMIT_CORE, 0)


def _lower_limit(kind: int, wanted: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
