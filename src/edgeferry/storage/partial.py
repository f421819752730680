"""PartialFile: the bytes of one download that have arrived so far.

Which bytes to ask for, and whether they are right, is for the agent; this file only keeps them.

Rules:
- Progress is the file's own length, nothing else: it survives a kill, a reboot and a new URL.
- Space for the whole of it is taken from the disk beforehand where the file system can; the length stays.
- The file never grows beyond the size that was announced.
- `append` hands the bytes to the kernel (a killed process loses none); `sync` to the disk (nor does a power cut).
  What a power cut leaves damaged is found by the digest, never trusted by length.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeferry.errors import LinkBroken, NameInvalid
from edgeferry.model.digest import Hasher
from edgeferry.storage.files import fsync_folder, remove_tree, reserve, translate_disk_errors

_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")
_BLOCK_BYTES = 1 << 20


class PartialFile:
    """One open download; made by `open_partial`. `max_bytes` is what was announced, or the limit where nothing was."""

    def __init__(self, path: Path, handle: int, *, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._handle = handle
        self.length_bytes = os.fstat(handle).st_size
        self._reserved_bytes = 0

    def reserve(self, size_bytes: int) -> None:
        """Makes sure that `size_bytes` in all have their place on the disk, whoever else writes meanwhile.

        Raises:
            NoSpace: there is not so much; what has come stays.
        """
        with translate_disk_errors(self.path):
            reserve(self._handle, size_bytes)
        self._reserved_bytes = size_bytes

    def count_missing(self, size_bytes: int) -> int:
        """How many bytes a file of `size_bytes` would take beside those that are here or reserved."""
        with translate_disk_errors(self.path):
            status = os.fstat(self._handle)
        return max(0, size_bytes - max(status.st_size, 512 * status.st_blocks))

    def append(self, block: bytes | bytearray | memoryview) -> None:
        """Adds `block` at the end.

        Raises:
            LinkBroken: more bytes came than were announced; none of this block is kept.
            NoSpace: the disk is full; what fitted is kept and counted.
        """
        if self.length_bytes + len(block) > self.max_bytes:
            raise LinkBroken(f"expected at most {self.max_bytes} bytes, the server sent more", max_bytes=self.max_bytes)
        rest = memoryview(block)
        with translate_disk_errors(self.path):
            while rest:
                written = os.pwrite(self._handle, rest, self.length_bytes)
                self.length_bytes += written
                rest = rest[written:]

    def overwrite(self, start: int, block: bytes | bytearray | memoryview) -> None:
        """Puts `block` in the place of bytes that are here already.

        Raises:
            LinkBroken: it reaches beyond what is here; nothing of it is kept.
        """
        if start + len(block) > self.length_bytes:
            raise LinkBroken("expected bytes in the place of damaged ones, the server sent more")
        rest = memoryview(block)
        with translate_disk_errors(self.path):
            while rest:
                written = os.pwrite(self._handle, rest, start)
                start, rest = start + written, rest[written:]

    def truncate(self, length_bytes: int) -> None:
        """Forgets everything from `length_bytes` on: damaged, or of an object that has changed."""
        if length_bytes >= self.length_bytes:
            return  # also what is reserved stays
        with translate_disk_errors(self.path):
            os.ftruncate(self._handle, length_bytes)
            self.length_bytes = os.fstat(self._handle).st_size
            reserve(self._handle, self._reserved_bytes)

    def sync(self) -> None:
        """Returns when all bytes so far are on the disk."""
        with translate_disk_errors(self.path):
            os.fsync(self._handle)

    def hash_whole(self) -> Hasher:
        """SHA-256, MD5 and length of what is on disk, read again from its start."""
        hasher = Hasher()
        with translate_disk_errors(self.path):
            while block := os.pread(self._handle, _BLOCK_BYTES, hasher.size_bytes):
                hasher.update(block)
        return hasher

    def read_pieces(self, piece_bytes: int) -> Iterator[bytes]:
        """What is on disk, read again from its start, in pieces of which the last may be shorter."""
        at = 0
        with translate_disk_errors(self.path):
            while piece := os.pread(self._handle, piece_bytes, at):
                yield piece
                at += len(piece)

    def read_head(self, max_bytes: int = 512) -> bytes:
        """The first bytes: enough to tell a web page from a model."""
        with translate_disk_errors(self.path):
            return os.pread(self._handle, max_bytes, 0)

    def discard(self) -> None:
        """Removes the file; the open handle stays harmless until the context ends."""
        remove_tree(self.path)


@contextmanager
def open_partial(folder: Path, key: str, *, max_bytes: int) -> Iterator[PartialFile]:
    """Opens the download `key` in `folder`, as long as it has come; a longer file than `max_bytes` starts over.

    Args:
        folder: the repository's `partial_folder`.
        key: digest of the blob in hex, or a key of letters, digits, `_` and `-` for classic downloads.
        max_bytes: the size announced, or the limit where none was.

    Raises:
        NameInvalid: the key is not a plain name.
        NoSpace, StorageFailed: the disk does not do as asked.
    """
    path = get_partial_path(folder, key)
    with translate_disk_errors(path):
        fresh = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if fresh:
            fsync_folder(folder)
        partial = PartialFile(path, handle, max_bytes=max_bytes)
        if partial.length_bytes > max_bytes:
            partial.truncate(0)
        yield partial
    finally:
        os.close(handle)


def get_partial_path(folder: Path, key: str) -> Path:
    """Where the download `key` lies; raises NameInvalid."""
    if not _KEY.fullmatch(key):
        raise NameInvalid(f"expected a download key of letters, digits, '_' and '-', found {key!r:.80}")
    return folder / key
