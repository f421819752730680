"""How far an upload is; how that looks is `byte_progress.py`'s."""

from __future__ import annotations

from contextlib import AbstractContextManager

from edgeferry.cli.byte_progress import Tell, open_byte_progress


def open_upload_progress() -> AbstractContextManager[Tell]:
    """Yields what is to be told (bytes done, bytes in all)."""
    return open_byte_progress("uploading", "uploaded")
