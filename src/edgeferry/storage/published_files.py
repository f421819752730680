"""A folder that is served to the world: files are opened below it and nowhere else.

HTTP (ranges, conditions, signatures) stands in hub/http_files.py.

Rules:
- Every component is opened on its own, relative to its parent, and no symbolic link is followed: `..`, links and
  renames during the walk cannot lead out of the folder.
- An open file keeps its bytes when another is renamed over it; its tag tells the two apart.
"""

from __future__ import annotations

import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from edgeferry.errors import NotFound, StorageFailed

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
PATH_MAX_CHARS = 1024
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """An open regular file; `close` it (it closes itself when it is forgotten: a response may never be sent)."""

    stream: io.FileIO
    size_bytes: int
    tag: str

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`; fewer only at the end.

        Raises:
            StorageFailed: the disk failed.
        """
        try:
            return os.pread(self.stream.fileno(), count, offset)
        except OSError as error:
            raise StorageFailed(f"cannot read a published file: {error.strerror}") from error

    def close(self) -> None:
        """Gives the handle back."""
        self.stream.close()


def open_published_file(folder: Path, path: str) -> PublishedFile:
    """Opens `path` (with `/`, relative) below `folder` for reading.

    Raises:
        NotFound: there is no such regular file, or the path is not harmless.
    """
    parts = path.split("/")
    harmless = len(path) <= PATH_MAX_CHARS and not _FORBIDDEN.search(path) and not {"", ".", ".."} & set(parts)
    if not harmless:
        raise NotFound("no such file is published here")
    try:
        handle = _walk(folder, parts)
    except OSError as error:
        raise NotFound("no such file is published here") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise NotFound("no such file is published here")
    tag = f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"
    return PublishedFile(io.FileIO(handle), status.st_size, tag)


def _walk(folder: Path, parts: list[str]) -> int:
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in parts[:-1]:
            child = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=parent)
            os.close(parent)
            parent = child
        return os.open(parts[-1], _OPEN | os.O_NONBLOCK, dir_fd=parent)
    finally:
        os.close(parent)
