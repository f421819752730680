"""The bundle object `metadata/<model>.bundle.zst`: what a device needs to trust a model's newest version, in one GET.

It is a convenience, never an authority: every file in it is verified as if it had been fetched by itself, and a bundle
that is missing, stale or damaged costs only the GETs it would have saved. Format: docs/formats/repository.md.

Rules:
- Bounded before it is decompressed: the frame states its content size, and the window is limited.
- Files are UTF-8 JSON texts, byte for byte as they lie in the repository.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import zstandard

from edgeferry.errors import MetadataUntrusted

BUNDLE_MAX_BYTES = 256 << 10
CONTENT_MAX_BYTES = 4 << 20
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
