"""Digests: SHA-256, written `sha256:<64 hex>`.

Rules:
- `Digest.from_str(str(d)) == d`; anything else than 64 lower-case hex digits is refused.
- Hashing of long data is a stream: `Hasher.update` per block, nothing is held.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from edgeferry.errors import ManifestInvalid

_TEXT = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The SHA-256 of some bytes; `hex` holds 64 lower-case digits."""

    hex: str

    @classmethod
    def from_str(cls, text: str) -> Digest:
        """Parses `sha256:<hex>`; raises ManifestInvalid."""
        match = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ManifestInvalid(f"expected a digest like sha256:<64 hex digits>, found {text!r:.90}")
        return cls(match[1])

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        """The digest of `data`."""
        return cls(hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def blob_path(self) -> str:
        """Where the published repository keeps a blob of this digest, relative to its root."""
        return f"blobs/sha256/{self.hex[:2]}/{self.hex}"


class Hasher:
    """SHA-256 and MD5 over one stream, with its length in bytes."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.size_bytes = 0

    def update(self, block: bytes | bytearray | memoryview) -> None:
        """Takes the next block."""
        self._sha256.update(block)
        self._md5.update(block)
        self.size_bytes += len(block)

    def get_digest(self) -> Digest:
        """SHA-256 of all blocks so far."""
        return Digest(self._sha256.hexdigest())

    def get_md5_base64(self) -> str:
        """MD5 of all blocks so far, base64 as in the twin's `ContentMD5`."""
        return base64.b64encode(self._md5.digest()).decode("ascii")
