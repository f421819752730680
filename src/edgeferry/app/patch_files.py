"""Patches between files: `patch make`, `patch apply` and `patch info`, from paths to paths.

What is in a patch is `delta/`'s; applying and explaining run in the limited child of `storage/patching.py`, as on a
device.

Rules:
- An output appears under its name only whole and verified; what fails leaves nothing, and what stood there stays.
- An input is never an output, under whatever name.
- Sizes that a patch states are bounded before anything is made of them.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeferry.delta.apply import CODEC
from edgeferry.delta.container import DIGEST_BYTES, Header, read_header
from edgeferry.delta.explain import Explanation
from edgeferry.delta.make import (
    MEMORY_BOUND_BYTES,
    MEMORY_FIXED_BYTES,
    Progress,
    make_patch,
    tell_nobody,
)
from edgeferry.errors import ConfigInvalid, DeltaDamaged
from edgeferry.model.digest import Digest
from edgeferry.storage.files import hash_file, open_mapped, read_bounded, translate_disk_errors, write_atomically
from edgeferry.storage.patching import decode_in_child, explain_in_child

FILE_MAX_BYTES = 2 << 30
"""Bases and targets: what a bundle's member may have at most."""


@dataclass(frozen=True, slots=True)
class Made:
    """A patch file that was made.

    Attributes:
        base, target: `sha256:<hex>`.
        memory_bytes: what applying it takes.
        sizes_by_way: bytes of every way that was tried; `way` won.
        cpu_s, elapsed_s: what making it took.
    """

    patch: str
    patch_bytes: int
    base: str
    base_bytes: int
    target: str
    target_bytes: int
    way: str
    codec: str
    memory_bytes: int
    sizes_by_way: Mapping[str, int]
    cpu_s: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Applied:
    """A target that was written; `whole_digest`: the patch held all of it, not only a prefix."""

    target: str
    sha256: str
    md5: str
    target_bytes: int
    whole_digest: bool
    memory_bytes: int
    cpu_s: float
    elapsed_s: float


def make_patch_file(
    base_path: Path, target_path: Path, out_path: Path, *, full_digests: bool, progress: Progress = tell_nobody
) -> Made:
    """`patch make`: writes the shortest patch to `out_path`.

    Raises:
        ConfigInvalid: `out_path` is one of the inputs.
        StorageFailed, NoSpace: a file cannot be read or written.
    """
    _require_other(out_path, (base_path, target_path))
    began, cpu_before = time.monotonic(), _get_cpu_s()
    base, target = read_bounded(base_path, FILE_MAX_BYTES), read_bounded(target_path, FILE_MAX_BYTES)
    patch = make_patch(base, target, full_digests=full_digests, progress=progress)
    write_atomically(out_path, patch.data)
    return Made(
        patch=str(out_path),
        patch_bytes=len(patch.data),
        base=str(Digest.of(base)),
        base_bytes=len(base),
        target=str(Digest.of(target)),
        target_bytes=len(target),
        way=patch.way,
        codec=patch.codec,
        memory_bytes=patch.memory_bytes,
        sizes_by_way=patch.sizes_by_way,
        cpu_s=round(_get_cpu_s() - cpu_before, 3),
        elapsed_s=round(time.monotonic() - began, 3),
    )


async def apply_patch_file(base_path: Path, patch_path: Path, out_path: Path) -> Applied:
    """`patch apply`: writes the target to `out_path`.

    Raises:
        ConfigInvalid: `out_path` is one of the inputs.
        DeltaBaseMismatch, DeltaDamaged: another base is needed; the patch is damaged.
        StorageFailed, NoSpace: a file cannot be read or written.
    """
    _require_other(out_path, (base_path, patch_path))
    began, cpu_before = time.monotonic(), _get_cpu_s()
    header = _read_header(patch_path)
    if header.has_base:  # the child checks it too; here the answer costs no process
        header.require_base(hash_file(base_path).get_digest())
    decoded = await decode_in_child(
        patch_path,
        CODEC,
        target_path=out_path,
        size_bytes=header.target_bytes,
        memory_bytes=header.memory_bytes,
        base_path=base_path,
    )
    return Applied(
        target=str(out_path),
        sha256=decoded.sha256,
        md5=decoded.md5,
        target_bytes=decoded.size_bytes,
        whole_digest=len(header.target) == DIGEST_BYTES,
        memory_bytes=header.memory_bytes,
        cpu_s=round(_get_cpu_s() - cpu_before, 3),
        elapsed_s=round(time.monotonic() - began, 3),
    )


async def explain_patch_file(patch_path: Path, base_path: Path | None) -> Explanation:
    """`patch info`: takes a patch apart; with its base, down to what each tensor costs.

    Raises:
        DeltaBaseMismatch, DeltaDamaged: another base is needed; the patch is damaged.
        StorageFailed, NoSpace: a file cannot be read, or there is no space to apply the patch on the way.
    """
    header = _read_header(patch_path)
    return await explain_in_child(
        patch_path, size_bytes=header.target_bytes, memory_bytes=header.memory_bytes, base_path=base_path
    )


def _read_header(path: Path) -> Header:
    """The header, its sizes bounded: memory as if all of the target were one tensor."""
    with open_mapped(path) as patch:
        header = read_header(memoryview(patch))
    if header.target_bytes > FILE_MAX_BYTES:
        raise DeltaDamaged(f"expected a target of at most {FILE_MAX_BYTES} bytes, found {header.target_bytes}")
    most = max(MEMORY_BOUND_BYTES, MEMORY_FIXED_BYTES + 2 * header.target_bytes)
    if header.memory_bytes > most:
        raise DeltaDamaged(f"expected a patch that takes at most {most} bytes of memory, found {header.memory_bytes}")
    return header


def _require_other(out_path: Path, inputs: Sequence[Path]) -> None:
    with translate_disk_errors(out_path):
        found = [path for path in inputs if out_path.exists() and out_path.samefile(path)]
    if found:
        raise ConfigInvalid(f"expected an output of another name than the input {str(found[0])!r:.200}")


def _get_cpu_s() -> float:
    """Processor time of this process and of the children that it waited for."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
