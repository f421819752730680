"""Blobs: content under its digest, once, read-only. Versions hard-link to it.

What this file leaves to others: which content is needed (`keeping.py`, `repository.py`), when to look at it again
(`scrub.py`).

Rules:
- A blob appears whole, by rename, and fsynced.
- A name that is no digest is no blob.
- What does not have its digest any more is content no longer: it is removed, never served, never a base.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from edgeferry.errors import StorageError
from edgeferry.model.digest import Digest
from edgeferry.storage.files import (
    copy_file,
    fsync_folder,
    hash_file,
    make_folder,
    remove_tree,
    rename_durably,
    translate_disk_errors,
)
from edgeferry.storage.versions import iterate_folder


class Blobs:
    """The content below `root`, which is our own folder in the storage."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "blobs" / "sha256"
        self._root = root

    def get_path(self, digest: Digest) -> Path:
        """Where the content of `digest` lies, or would lie."""
        return self._root / digest.blob_path

    def has(self, digest: Digest) -> bool:
        """Whether the content of `digest` lies here."""
        return self.get_path(digest).is_file()

    def read_size(self, digest: Digest) -> int:
        """Length of the content in bytes; 0 where it is not here."""
        try:
            return self.get_path(digest).stat().st_size
        except OSError:
            return 0

    def list_sizes(self) -> dict[Digest, int]:
        """All content here, with its length in bytes."""
        sizes = {}
        for path in self._iterate():
            with translate_disk_errors(path):
                sizes[Digest(path.name)] = path.stat().st_size
        return sizes

    def list_digests(self) -> frozenset[Digest]:
        """All content here, by name alone."""
        return frozenset(Digest(path.name) for path in self._iterate())

    def adopt(self, digest: Digest, temp_path: Path) -> Path:
        """Moves a file, whose digest the caller has just verified, to its place; returns that place.

        The file is made read-only and fsynced before it is renamed. Content that is here already stays; `temp_path`
        goes.
        """
        path = self.get_path(digest)
        if path.is_file():
            remove_tree(temp_path)
            return path
        make_folder(path.parent)
        with translate_disk_errors(temp_path), temp_path.open("rb") as file:
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        rename_durably(temp_path, path)
        return path

    def remove_loose(self, digest: Digest) -> int:
        """Removes content that no version links to, and tells its length; other content stays."""
        path = self.get_path(digest)
        if not path.is_file():
            return 0
        with translate_disk_errors(path):
            status = path.stat()
        if status.st_nlink > 1:
            return 0
        remove_tree(path)
        return status.st_size

    def check(self, digest: Digest, link: Path | None = None, *, aside: Path | None = None) -> bool:
        """Reads content again; what is damaged of blob and `link` goes, and what is sound makes the blob whole again.

        Args:
            digest: what the bytes must have.
            link: the name that a version has for it, which may be the same file or, by another hand, not any more.
            aside: where a copy is to be put of what is damaged, when nothing of it is sound.

        Returns:
            Whether blob and link are sound now.
        """
        blob = self.get_path(digest)
        link_is_sound = is_sound(link or blob, digest)
        blob_is_sound = link_is_sound if link is None or _is_same(link, blob) else is_sound(blob, digest)
        for path, sound in ((link, link_is_sound), (blob, blob_is_sound)):
            if path is not None and not sound:
                if aside is not None and not (link_is_sound or blob_is_sound):
                    _set_aside(path, aside)
                remove_tree(path)
        if link is not None and link_is_sound and not blob_is_sound:
            make_folder(blob.parent)
            with translate_disk_errors(blob):
                blob.hardlink_to(link)
            fsync_folder(blob.parent)
        return link_is_sound and (blob_is_sound or link is not None)

    def list_workplaces(self) -> list[Path]:
        """Folders in which a crash may have left something in the making."""
        return [self.folder, *iterate_folder(self.folder)]

    def _iterate(self) -> Iterator[Path]:
        for folder in iterate_folder(self.folder):
            yield from (path for path in iterate_folder(folder) if _is_blob_name(path))


def _set_aside(path: Path, aside: Path) -> None:
    """A copy: whoever has the damaged file open sees no other bytes. What cannot be read or has no room just goes."""
    if aside.exists() or path.is_symlink() or not path.is_file():
        return
    try:
        copy_file(path, aside, mode=0o600)
    except StorageError:
        remove_tree(aside)


def is_sound(path: Path, digest: Digest) -> bool:
    """Whether the file there has `digest`; one that is a link, gone, or on a broken piece of disk has not."""
    try:
        return not path.is_symlink() and hash_file(path).get_digest() == digest
    except StorageError:
        return False


def _is_same(link: Path, blob: Path) -> bool:
    try:
        return link.samefile(blob)
    except OSError:
        return False


def _is_blob_name(path: Path) -> bool:
    name = path.name
    return len(name) == 64 and path.parent.name == name[:2] and not name.strip("0123456789abcdef")
