"""A service SAS for a whole Azure Blob container: read-only, until a time. obstore signs single blobs only.

Rules:
- Pure arithmetic with the account's key; nothing is asked of the service.
- `r` alone: who holds it can fetch every blob of the container by name, and neither list nor write.

Source: "Create a service SAS" (Azure Storage REST API), string-to-sign of version 2020-12-06 and later.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
from urllib.parse import quote

from edgeferry.errors import ConfigInvalid

VERSION = "2021-08-06"


def make_container_sas(account: str, container: str, *, key_base64: str, expires_at: int) -> str:
    """The query that opens every blob of the container for reading.

    Args:
        account: name of the storage account.
        container: name of the container.
        key_base64: a key of the account.
        expires_at: Unix seconds.

    Raises:
        ConfigInvalid: the key is not base64.
    """
    expiry = dt.datetime.fromtimestamp(expires_at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    # permissions, start, expiry, resource, identifier, IP, protocol, version, kind, snapshot, encryption scope, and
    # five headers that answers could be given: empty lines where nothing is asked for
    lines = ["r", "", expiry, f"/blob/{account}/{container}", "", "", "", VERSION, "c", *[""] * 7]
    try:
        key = base64.b64decode(key_base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigInvalid("the storage account's key is not base64") from error
    signature = base64.b64encode(hmac.new(key, "\n".join(lines).encode(), hashlib.sha256).digest()).decode()
    return f"sv={VERSION}&sr=c&sp=r&se={quote(expiry, safe='')}&sig={quote(signature, safe='')}"
