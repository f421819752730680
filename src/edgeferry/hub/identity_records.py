"""New identities of the hub: keys, generation ids and etags, all random.

Rules:
- A new identity of an old name has another generation id.
"""

from __future__ import annotations

import base64
import secrets

from edgeferry.wire.service_api import Identity, IdentityRecord

KEY_BYTES = 32


def make_record(
    identity: Identity, now: float, *, keys: tuple[str, str] | None = None, managed_by: str | None = None
) -> IdentityRecord:
    """A new identity with the keys given or random ones, and a generation id of its own."""
    primary, secondary = keys or (make_key(), make_key())
    generation_id = f"{int(now * 1000)}{secrets.randbelow(1000):03d}"
    return IdentityRecord(identity, generation_id, primary, secondary, make_etag(), True, managed_by, now)


def make_key() -> str:
    """32 random bytes as base64."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")


def make_etag() -> str:
    """A random etag in the look of Azure's."""
    return base64.b64encode(secrets.token_bytes(8)).decode("ascii")
