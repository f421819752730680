"""Signed, expiring queries for the hub's static files: one signature opens a folder and all below it.

Files are served by hub/http_files.py; whoever holds the hub's service key (its connection string) may sign by itself.

Rules:
- The query is `sr=<folder>&se=<Unix seconds>&skn=<policy>&sig=<base64>`, values percent-encoded, in any order.
- Signed: `edgeferry-files\\n<folder>\\n<expiry>` with the policy's key, HMAC-SHA256. The first word keeps these
  signatures apart from tokens made with the same key.
- `sr` is a path below `/files/`, without a leading or trailing slash; empty means everything.
"""

from __future__ import annotations

import hmac
from urllib.parse import quote, unquote

from edgeferry.errors import Forbidden
from edgeferry.wire.iothub_auth import make_signature

QUERY_MAX_CHARS = 4096
FILES_PREFIX = "/files/"
SERVICE_POLICY = "service"


def make_file_query(folder: str, key_base64: str, expires_at: int, *, policy: str = SERVICE_POLICY) -> str:
    """The query to append to any URL below `/files/<folder>`; valid until `expires_at` (Unix seconds)."""
    bare = folder.strip("/")
    signature = make_signature(key_base64, _get_string_to_sign(bare, str(expires_at)))
    return f"sr={quote(bare, safe='')}&se={expires_at}&skn={quote(policy, safe='')}&sig={quote(signature, safe='')}"


def find_file_policy(query: str) -> str | None:
    """The policy whose key signed, as the query claims."""
    return _parse(query).get("skn")


def verify_file_query(query: str, *, path: str, key_base64: str, now: float) -> None:
    """Checks that `query` opens `path` (below `/files/`, decoded) at `now`.

    Raises:
        Forbidden: no signature, expired, for another folder, or not signed with this key; the message does not say more
            than that to who cannot sign.
    """
    fields = _parse(query)
    expiry, folder = fields.get("se", ""), fields.get("sr", "")
    wanted = make_signature(key_base64, _get_string_to_sign(folder, expiry))
    is_signed = hmac.compare_digest(wanted.encode("ascii"), fields.get("sig", "").encode("utf-8", "replace"))
    is_number = expiry.isascii() and expiry.isdigit() and len(expiry) <= 12
    if not is_signed or not is_number:
        raise Forbidden("the URL of this file is not signed by this hub's key")
    if int(expiry) <= now:
        raise Forbidden("the signature of this URL has expired", expired_for_s=int(now - int(expiry)))
    if folder and path != folder and not path.startswith(folder + "/"):
        raise Forbidden("the signature of this URL is for another folder")


def _get_string_to_sign(folder: str, expiry: str) -> bytes:
    return f"edgeferry-files\n{folder}\n{expiry}".encode()


def _parse(query: str) -> dict[str, str]:
    if len(query) > QUERY_MAX_CHARS:
        return {}
    pairs = [pair.partition("=") for pair in query.split("&")]
    fields = {name: unquote(value) for name, _, value in pairs}
    return fields if len(fields) == len(pairs) else {}
