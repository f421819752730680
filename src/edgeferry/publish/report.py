"""What publishing tells: values for people and for `--json`. Making them is `publisher.py`'s and `patches.py`'s."""

from __future__ import annotations

import msgspec


class PatchReport(msgspec.Struct, frozen=True, kw_only=True):
    """One patch: from the file of version `base`; `size` and `memory` (to apply it) in bytes, `way` in words."""

    base: str
    path: str
    size: int
    way: str
    memory: int


class UpdateReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a device that runs `base` fetches: payload bytes, in `downloads` pieces."""

    base: str
    bytes: int
    downloads: int


class FileReport(msgspec.Struct, frozen=True, kw_only=True):
    """One file: its size, the codec it travels in, its coded size, and what the other codecs would have taken."""

    path: str
    size: int
    codec: str
    coded_size: int
    blob: str
    sizes_by_codec: dict[str, int]


class ClassicReport(msgspec.Struct, frozen=True, kw_only=True):
    """The ZIP for devices that read only the three classic fields; `md5` is its ContentMD5."""

    path: str
    size: int
    md5: str


class PublishReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was published. Sizes in bytes; payload, without metadata and small files in its bundle object.

    Attributes:
        download_bytes: what a device that has nothing yet fetches: coded files and golden pictures.
        golden_bytes: the pictures' part of it.
        update_bytes: what a device that has the version published before fetches.
        patches: those made now. updates: what devices fetch that run one of the versions they are made from.
        slim: what was lost, where weights were put on grids.
    """

    model: str
    version: str
    manifest: str
    unchanged: bool
    download_bytes: int
    golden_bytes: int
    update_bytes: int
    manifest_bytes: int
    bundle_bytes: int
    files: tuple[FileReport, ...]
    classic: ClassicReport
    golden: int
    golden_inherited: bool
    patches: tuple[PatchReport, ...] = ()
    updates: tuple[UpdateReport, ...] = ()
    notes: tuple[str, ...] = ()
    slim: dict[str, str | float] | None = None
