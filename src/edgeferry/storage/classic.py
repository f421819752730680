"""The shared side of a classic update: the ZIP at `<storage>/<FileName>` and its unpacked folder beside it.

Which members may be in a ZIP is `model/bundle.py`'s rule; what serves is a copy of our own, made by
`Repository.store_classic`.

Rules:
- A folder that other modules read appears whole: unpacked under a temporary name, then renamed.
- A member never grows beyond the size its directory entry announces, which `check_members` has bounded.
- Names come from a twin: one plain component, never our own folder, never something in the making.
"""

from __future__ import annotations

import mmap
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgeferry.errors import BundleUnreadable, NameInvalid
from edgeferry.model.bundle import MODEL_SUFFIXES, BundleLimits, Member, check_members
from edgeferry.model.labels import LABELS_MAX_BYTES
from edgeferry.names import get_stem, require_file_name
from edgeferry.storage.files import (
    FOLDER_NAME,
    TEMP_PREFIX,
    copy_file,
    fsync_folder,
    make_temp_folder,
    open_mapped,
    read_bounded,
    remove_tree,
    rename_durably,
    translate_disk_errors,
)

_BLOCK_BYTES = 1 << 16
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What `zipfile` raises on damaged, encrypted, truncated or unknown data."""


def get_zip_path(storage_root: Path, file_name: str) -> Path:
    """Where the ZIP of a classic update lies; raises NameInvalid."""
    return storage_root / _require_shared_name(file_name)


def get_classic_folder(storage_root: Path, file_name: str) -> Path:
    """Where its content lies, readable by other modules; raises NameInvalid."""
    return storage_root / _require_shared_name(get_stem(require_file_name(file_name)))


def place_zip(storage_root: Path, file_name: str, temp_path: Path) -> Path:
    """Moves a verified download to `<storage>/<FileName>`; returns that path."""
    path = get_zip_path(storage_root, file_name)
    if path.is_dir():
        remove_tree(path)
    rename_durably(temp_path, path)
    return path


def remove_zip(storage_root: Path, file_name: str) -> None:
    """Removes the ZIP once it is unpacked and announced; without an extension the name is the folder's: that stays."""
    path = get_zip_path(storage_root, file_name)
    if not path.is_dir():
        remove_tree(path)
        fsync_folder(storage_root)


def unpack_classic(storage_root: Path, zip_path: Path, stem: str, *, limits: BundleLimits) -> Path:
    """Unpacks into a temporary folder, then renames it to `<storage>/<stem>`; returns that path.

    Raises:
        NameInvalid: `stem` is not a plain name or is our own folder's.
        BundleUnsafe, BundleTooLarge, BundleUnreadable: the ZIP's fault; nothing is left behind, an older folder stands.
        NoSpace, StorageFailed: the disk's.
    """
    target = storage_root / _require_shared_name(stem)
    temp = make_temp_folder(storage_root)
    try:
        _unpack(zip_path, temp, limits)
        with translate_disk_errors(temp):
            temp.chmod(0o755)
        fsync_folder(temp)
        _replace_folder(temp, target)
    finally:
        remove_tree(temp)
    return target


def read_bundle(zip_path: Path, *, limits: BundleLimits) -> dict[str, bytes]:
    """The files of a bundle by name, in memory; refused is what `unpack_classic` refuses.

    Raises:
        BundleUnsafe, BundleTooLarge, BundleUnreadable: the ZIP's fault.
        StorageFailed: it cannot be read.
    """
    with _open_members(zip_path, limits) as (archive, members):
        return {require_file_name(each.name): archive.read(each.info) for each in members}


def read_part(path: Path) -> mmap.mmap | bytes:
    """A file of an unpacked bundle: a model mapped, anything else as bytes, of which a label file may have the most.

    Raises:
        StorageFailed: it is longer, not there, or cannot be read.
    """
    if not path.name.lower().endswith(MODEL_SUFFIXES):
        return read_bounded(path, LABELS_MAX_BYTES)
    with open_mapped(path) as data:
        return data


def publish_folder(storage_root: Path, stem: str, files: Mapping[str, Path]) -> Path:
    """Makes `<storage>/<stem>` of copies of `files` (name -> path), whole at once; returns that path.

    Raises:
        NameInvalid: a name is not plain.
        NoSpace, StorageFailed: an older folder of that name stands.
    """
    target = storage_root / _require_shared_name(stem)
    temp = make_temp_folder(storage_root)
    try:
        for name, path in files.items():
            copy_file(path, temp / require_file_name(name), mode=0o644)
        with translate_disk_errors(temp):
            temp.chmod(0o755)
        fsync_folder(temp)
        _replace_folder(temp, target)
    finally:
        remove_tree(temp)
    return target


def _require_shared_name(name: str) -> str:
    if require_file_name(name) == FOLDER_NAME or name.startswith(TEMP_PREFIX):
        raise NameInvalid(f"expected a name other than edgeferry's own folder, found {name!r:.80}")
    return name


def _unpack(zip_path: Path, folder: Path, limits: BundleLimits) -> None:
    with _open_members(zip_path, limits) as (archive, members):
        for member in members:
            _write_member(archive, member, folder)


@contextmanager
def _open_members(zip_path: Path, limits: BundleLimits) -> Iterator[tuple[zipfile.ZipFile, tuple[Member, ...]]]:
    with translate_disk_errors(zip_path):
        try:
            with zipfile.ZipFile(zip_path) as archive:
                yield archive, check_members(archive.infolist(), limits)
        except _ZIP_ERRORS as error:
            raise BundleUnreadable(f"expected a whole, plain ZIP, found: {error!s:.120}") from error


def _write_member(archive: zipfile.ZipFile, member: Member, folder: Path) -> None:
    """Writes at most the bytes that the directory announces: `zipfile` unpacks no more, and then compares the CRC."""
    path = folder / require_file_name(member.name)
    with archive.open(member.info) as reader, path.open("xb") as writer:
        shutil.copyfileobj(reader, writer, _BLOCK_BYTES)
        os.fchmod(writer.fileno(), 0o644)
        writer.flush()
        os.fsync(writer.fileno())


def _replace_folder(temp: Path, target: Path) -> None:
    """Puts `temp` in the place of `target`; a crash between the two renames is healed by unpacking again at restart."""
    if target.exists() or target.is_symlink():
        old = make_temp_folder(target.parent)
        try:
            rename_durably(target, old / "old")
            rename_durably(temp, target)
        finally:
            remove_tree(old)
    else:
        rename_durably(temp, target)
