"""Files that survive a crash: whole or not there at all, bounded when read, and with errors in our own words.

What lies where is for `repository.py`; content is for its owners.

Rules:
- A new file is written beside its target, fsynced, renamed over it, and the folder is fsynced: in this order.
- Every OSError is translated in one place, `translate_disk_errors`: a full disk is NoSpace (try later), the rest
  StorageFailed (a person must look).
- Nothing here follows a link when it removes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeferry.errors import NoSpace, StorageBusy, StorageFailed
from edgeferry.model.digest import Hasher

FOLDER_NAME = "edgeferry"
"""Our own folder in the storage root, which is shared with other modules."""

TEMP_PREFIX = ".edgeferry-"
"""How every file or folder in the making is called; `Repository.sweep` removes what a crash left of them."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BLOCK_BYTES = 1 << 20
_FALLOC_FL_KEEP_SIZE = 1
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int): share the blocks of another file where the file system can


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Runs the block; an OSError in it becomes NoSpace or StorageFailed, naming `path` and the system's reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in _FULL:
            raise NoSpace(f"no space left to write {path.name!r}: {reason}", path=str(path)) from error
        raise StorageFailed(f"cannot use {path.name!r}: {reason}", path=str(path)) from error


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replaces the file at `path` by `data`; after a crash it holds the old bytes or the new, never a mixture.

    Raises:
        NoSpace: the disk is full; the old file stands.
        StorageFailed: the folder cannot be written; the old file stands.
    """
    with translate_disk_errors(path):
        handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _fsync(path.parent)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The whole file, which is at most `max_bytes` long.

    Raises:
        StorageFailed: it is longer, not there, or cannot be read.
    """
    with translate_disk_errors(path), path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise StorageFailed(f"expected at most {max_bytes} bytes in {path.name!r}, found more", path=str(path))
    return data


@contextmanager
def open_mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """The file's bytes, mapped: readers that look at a few places do not hold all of it. An empty file is `b""`."""
    with translate_disk_errors(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    yield mapped  # closed when nobody looks at it any more: a view may outlive the block


def copy_file(source: Path, target: Path, *, mode: int) -> None:
    """Copies the bytes of `source` to the new file `target`, fsynced; shares blocks where the file system can.

    The copy is a file of its own: whoever writes to `source` later does not change it.
    """
    with translate_disk_errors(target), source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:  # no reflinks on this file system, or two file systems
            shutil.copyfileobj(reader, writer, _BLOCK_BYTES)
        os.fchmod(writer.fileno(), mode)
        writer.flush()
        os.fsync(writer.fileno())


def hash_file(path: Path) -> Hasher:
    """SHA-256, MD5 and length of the file."""
    hasher = Hasher()
    with translate_disk_errors(path), path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher


def get_free_bytes(path: Path) -> int:
    """Bytes that this process may still write on the file system of `path`."""
    with translate_disk_errors(path):
        status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def get_disk_bytes(path: Path) -> int:
    """Size of the file system of `path`."""
    with translate_disk_errors(path):
        status = os.statvfs(path)
    return status.f_blocks * status.f_frsize


def reserve(handle: int, size_bytes: int) -> None:
    """Takes the blocks of a file's first `size_bytes` from the disk without making the file any longer.

    A file system that cannot do so reserves nothing. What `os.posix_fallocate` would do changes the length, and the
    length of a download is its progress; hence fallocate(2) itself, with FALLOC_FL_KEEP_SIZE of linux/falloc.h.

    Raises:
        OSError: the disk is full; nothing is reserved.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    allocate = getattr(libc, "fallocate64", None) or libc.fallocate  # 32-bit glibc: the plain one ends at 2 GiB
    allocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if size_bytes <= 0 or allocate(handle, _FALLOC_FL_KEEP_SIZE, 0, size_bytes) == 0:
        return
    number = ctypes.get_errno()
    if number in _FULL:
        os.ftruncate(handle, os.fstat(handle).st_size)  # gives back what a half-done reservation took
        raise OSError(number, os.strerror(number))


def make_folder(path: Path, *, mode: int = 0o755) -> Path:
    """Creates `path` and its parents where missing, each entry fsynced into its parent; returns `path`."""
    with translate_disk_errors(path):
        if not path.is_dir():
            if not path.parent.is_dir():
                make_folder(path.parent, mode=mode)
            path.mkdir(exist_ok=True)
            path.chmod(mode)
            _fsync(path.parent)
    return path


def make_temp_folder(parent: Path) -> Path:
    """A new empty folder in `parent` for something in the making."""
    with translate_disk_errors(parent):
        return Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=parent))


def fsync_folder(path: Path) -> None:
    """Makes the names in `path` durable: a file is safe only when its folder's entry is."""
    with translate_disk_errors(path):
        _fsync(path)


def rename_durably(source: Path, target: Path) -> None:
    """Renames `source` to `target` (same file system) and fsyncs the folders of both names."""
    with translate_disk_errors(target):
        source.replace(target)
        _fsync(target.parent)
        if source.parent != target.parent:
            _fsync(source.parent)


def remove_tree(path: Path) -> None:
    """Removes a file, a link (never what it points to) or a whole folder; nothing there is fine."""
    with translate_disk_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def open_folder_lock(folder: Path) -> Iterator[None]:
    """Holds `<folder>/lock` as the only process for as long as the block runs; a crash lets go of it by itself.

    Raises:
        StorageBusy: another process holds it.
        StorageFailed: the lock file cannot be made.
    """
    path = folder / "lock"
    with translate_disk_errors(path):
        handle = _open_lock(path)
    try:
        _take_lock(handle, path)
        yield
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # on a read-only disk the one that lies there locks as well


def _take_lock(handle: int, path: Path) -> None:
    with translate_disk_errors(path):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
            raise StorageBusy(f"the storage folder {path.parent} is in use by process {holder or 'unknown'}") from error
        with suppress(OSError):  # the number is for people only; a full disk must not stop the device from serving
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode("ascii"), 0)


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
