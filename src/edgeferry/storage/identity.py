"""Which file a path names right now: equal answers mean the same bytes on this disk, without reading them.

Rules:
- Versions in the repository are hard links to blobs, so equal content has one inode. Size and time of change guard
  against a file that somebody writes to in place.
"""

from __future__ import annotations

from pathlib import Path

from edgeferry.storage.files import translate_disk_errors


def read_file_identity(path: Path) -> str:
    """Device, inode, size in bytes and time of change in ns of the file at `path`; raises StorageFailed."""
    with translate_disk_errors(path):
        status = path.stat()
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
