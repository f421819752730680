"""The bundle object `metadata/<model>.bundle.zst`: what a device needs to trust a model's newest version, in one GET.

Small files of that version come along: on a thin link a request takes more than they do. The object is a convenience,
never an authority: every file in it is verified as if it had been fetched by itself, and one that is missing, stale or
damaged costs only the GETs it would have saved. Format: docs/formats/repository.md.

Rules:
- Bounded before it is decompressed: the frame states its content size, and the window is limited.
- Files are UTF-8 texts, byte for byte as they lie in the repository. Small files lie in it uncoded, as the blobs that
  they are: the object's own compression does better than theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import zstandard

from edgeferry.errors import MetadataUntrusted
from edgeferry.model.digest import Digest

BUNDLE_MAX_BYTES = 256 << 10
CONTENT_MAX_BYTES = 4 << 20
SMALL_MAX_BYTES = 512
"""A file that comes along: less than what the request takes that it saves (heads, URL, TCP and TLS: some 600)."""
SMALL_SUM_MAX_BYTES = 2048
"""All of them together: devices that have these files fetch the object, too."""
SCHEMA = 1
_LEVEL = 19


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    files: dict[str, str]


def get_bundle_path(model: str) -> str:
    """Where the model's bundle object lies in the repository."""
    return f"metadata/{model}.bundle.zst"


def make_bundle_object(files: Mapping[str, bytes]) -> bytes:
    """Packs repository files by path; the order is kept, so that the same files give the same bytes."""
    content = _Content(SCHEMA, {path: data.decode("utf-8") for path, data in files.items()})
    return zstandard.ZstdCompressor(level=_LEVEL).compress(msgspec.json.encode(content))


def read_bundle_object(data: bytes) -> dict[str, bytes]:
    """Unpacks what `make_bundle_object` packed; the files are not verified yet.

    Raises:
        MetadataUntrusted: not a bundle object, or larger than the limits.
    """
    try:
        size_bytes = zstandard.get_frame_parameters(data[:18]).content_size
        if len(data) > BUNDLE_MAX_BYTES or size_bytes > CONTENT_MAX_BYTES:
            raise MetadataUntrusted(f"expected a bundle object of at most {CONTENT_MAX_BYTES} bytes")
        plain = zstandard.ZstdDecompressor(max_window_size=CONTENT_MAX_BYTES).decompress(data)
        content = msgspec.json.decode(plain, type=_Content)
    except (zstandard.ZstdError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MetadataUntrusted("expected a bundle object: zstd of a JSON map of files") from error
    if content.schema != SCHEMA:
        raise MetadataUntrusted(f"expected bundle schema {SCHEMA}, found {content.schema}")
    return {path: text.encode("utf-8") for path, text in content.files.items()}


def pick_small(contents: Iterable[bytes]) -> dict[Digest, bytes]:
    """Those that come along in a bundle object: small texts, the first ones as long as they fit together."""
    picked: dict[Digest, bytes] = {}
    left_bytes = SMALL_SUM_MAX_BYTES
    for data in dict.fromkeys(one for one in contents if len(one) <= SMALL_MAX_BYTES):
        if len(data) <= left_bytes and _is_text(data):
            picked[Digest.of(data)] = data
            left_bytes -= len(data)
    return picked


def read_small(files: Mapping[str, bytes]) -> dict[Digest, bytes]:
    """What `pick_small` picked, of an unpacked bundle object; what is not what its path says is left out."""
    small = {path: data for path, data in files.items() if len(data) <= SMALL_MAX_BYTES}
    return pick_small(data for path, data in small.items() if path == Digest.of(data).blob_path)


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
