"""Bundles: which files form one version, the ZIP they travel in for classic devices, and what a ZIP must not hold.

Reading and unpacking are left to `storage/repository.py`, which must still stop at each member's announced size.

Rules:
- A bundle is flat: plain files side by side. Folders are refused, not flattened: flattening lets two members meet
  under one name. The droppings of macOS (`__MACOSX/`, `.DS_Store`) are checked like the rest, then left out.
- Refused: absolute names, `..`, separators, drive letters, control characters, links, devices, encryption, doubles
  (also those that differ only in case or Unicode form), overlapping members, methods other than stored and deflated.
- Bounded: members, bytes of each and of all, and the ratio of unpacked to packed.
"""

from __future__ import annotations

import io
import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgeferry.errors import BundleIncomplete, BundleTooLarge, BundleUnsafe, NameInvalid
from edgeferry.names import get_stem, require_file_name

MODEL_SUFFIXES = (".onnx", ".tflite")
LABEL_SUFFIXES = (".txt", ".names", ".labels", ".csv")
SPEC_FILE = "spec.toml"
"""A classic bundle may carry its spec under this name, for a model that does not tell all of itself."""

_NOT_LABELS = frozenset({"readme", "license", "licence", "copying", "notice", "changelog", "requirements", "authors"})
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """What a device takes. The ratio counts only above `ratio_floor_bytes`: a small file of zeros is no bomb."""

    max_members: int = 64
    max_member_bytes: int = 2 << 30
    max_total_bytes: int = 3 << 30
    max_ratio: float = 200.0
    ratio_floor_bytes: int = 8 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the bundle: `name` is one harmless path component; `size_bytes` is what the ZIP announces."""

    name: str
    size_bytes: int
    info: zipfile.ZipInfo


def check_members(infos: Sequence[zipfile.ZipInfo], limits: BundleLimits | None = None) -> tuple[Member, ...]:
    """Checks everything a ZIP's directory says, before a byte is unpacked.

    Returns:
        The files to unpack, in the ZIP's order.

    Raises:
        BundleUnsafe: a name, kind, method or overlap that no honest bundle has.
        BundleTooLarge: more members, bytes or compression than `limits` allow.
    """
    limits = limits or BundleLimits()
    if len(infos) > limits.max_members:
        raise BundleTooLarge(f"expected at most {limits.max_members} members in the bundle, found {len(infos)}")
    _check_sizes(infos, limits)
    _check_overlaps(infos)
    members = []
    for info in infos:
        _check_kind(info)
        name = _check_name(info)
        if name:
            members.append(Member(name, info.file_size, info))
    _check_doubles([member.name for member in members])
    return tuple(members)


def _check_sizes(infos: Sequence[zipfile.ZipInfo], limits: BundleLimits) -> None:
    for info in infos:
        if info.file_size > limits.max_member_bytes:
            raise BundleTooLarge(
                f"expected members of at most {limits.max_member_bytes} bytes, found {info.file_size} "
                f"for {info.filename!r:.80}"
            )
        if info.file_size > limits.ratio_floor_bytes and info.file_size > info.compress_size * limits.max_ratio:
            raise BundleTooLarge(
                f"expected a compression ratio of at most {limits.max_ratio:g}, found {info.file_size} bytes "
                f"from {info.compress_size} for {info.filename!r:.80}"
            )
    total = sum(info.file_size for info in infos)
    if total > limits.max_total_bytes:
        raise BundleTooLarge(f"expected at most {limits.max_total_bytes} bytes in the bundle, found {total}")


def _check_overlaps(infos: Sequence[zipfile.ZipInfo]) -> None:
    """Overlapping members make a bomb out of few bytes (D. Fifield, "A better zip bomb", 2019)."""
    end = 0
    for info in sorted(infos, key=lambda each: each.header_offset):
        if info.header_offset < end:
            raise BundleUnsafe(f"expected members side by side, found {info.filename!r:.80} inside another")
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size


def _check_kind(info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BundleUnsafe(f"expected plain files, found a link or device: {info.filename!r:.80}")
    if info.flag_bits & _ENCRYPTED_FLAGS:
        raise BundleUnsafe(f"expected plain files, found an encrypted one: {info.filename!r:.80}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleUnsafe(
            f"expected members stored or deflated, found method {info.compress_type} for {info.filename!r:.80}"
        )


def _check_name(info: zipfile.ZipInfo) -> str:
    """The member's name, or "" for macOS droppings. `orig_filename` still holds what zipfile cuts off at a NUL."""
    name = info.orig_filename
    parts = name.removesuffix("/").split("/")
    try:
        for part in parts:
            require_file_name(part)
    except NameInvalid as error:
        raise BundleUnsafe(f"expected plain file names in the bundle, found {name!r:.80}") from error
    if parts[0] == "__MACOSX" or parts[-1] == ".DS_Store":
        return ""
    if len(parts) > 1 or name.endswith("/"):
        raise BundleUnsafe(f"expected all files at the top of the ZIP, found a folder: {name!r:.80}")
    return name


def _check_doubles(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other is not name:
            raise BundleUnsafe(f"expected different names in the bundle, found {other!r:.80} and {name!r:.80}")


def make_bundle_zip(files: Mapping[str, bytes]) -> bytes:
    """Makes the ZIP for classic devices: sorted, deflated, of one date, so that the same files give the same bytes.

    Raises:
        NameInvalid: a name that is no plain file name.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(require_file_name(name), _EPOCH)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.create_system = 3
            archive.writestr(info, files[name], compress_type=zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def find_model_file(names: Iterable[str]) -> str:
    """The one model file among `names`, by extension.

    Raises:
        BundleIncomplete: none, or several; the message names them.
    """
    names = sorted(names)
    found = [name for name in names if name.lower().endswith(MODEL_SUFFIXES)]
    if len(found) == 1:
        return found[0]
    if found:
        raise BundleIncomplete(
            f"expected one model file, found several: {found!r:.200}; name them in order as [[stages]] in {SPEC_FILE}"
        )
    raise BundleIncomplete(f"expected one model file ({', '.join(MODEL_SUFFIXES)}), found none: {names!r:.200}")


def find_label_file(names: Iterable[str]) -> str | None:
    """The label file among `names`, or None: the only text file, or the only one with `label` in its name.

    Raises:
        BundleIncomplete: several that may be meant; the message names them.
    """
    found = sorted(name for name in names if _may_hold_labels(name))
    named = [name for name in found if "label" in name.lower()] or found
    if len(named) > 1:
        raise BundleIncomplete(f"expected one label file, found several: {named!r:.200}; call the right one labels.txt")
    return named[0] if named else None


def _may_hold_labels(name: str) -> bool:
    return name.lower().endswith(LABEL_SUFFIXES) and get_stem(name).lower() not in _NOT_LABELS
