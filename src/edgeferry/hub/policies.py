"""Shared access policies of the service side: which key may do what, under the names that IoT Hub gives them.

Rules:
- Each policy has a key of its own, made at first use and kept in the hub's settings.
- A call names the rights it needs: whoever has one of them may make it.

Source: the documentation of IoT Hub's access control; who may query, read statistics or apply configurations is not
told apart there by everything we tell apart here (docs/formats/iothub.md section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from urllib.parse import unquote

from edgeferry.errors import HubRefused
from edgeferry.hub.identity_records import make_key
from edgeferry.storage.hub_tables import HubTables
from edgeferry.wire.file_signatures import SERVICE_POLICY
from edgeferry.wire.iothub_auth import parse_sas_token, verify_sas_token

OWNER_POLICY = "iothubowner"


class Right(Enum):
    """What a call may ask for."""

    REGISTRY_READ = "RegistryRead"
    REGISTRY_WRITE = "RegistryWrite"
    SERVICE = "ServiceConnect"


POLICIES: Mapping[str, frozenset[Right]] = MappingProxyType(
    {
        OWNER_POLICY: frozenset(Right),
        SERVICE_POLICY: frozenset({Right.SERVICE}),
        "registryRead": frozenset({Right.REGISTRY_READ}),
        "registryReadWrite": frozenset({Right.REGISTRY_READ, Right.REGISTRY_WRITE}),
    }
)


@dataclass(frozen=True, slots=True)
class PolicyKeys:
    """The keys by policy name; they never show in a `repr`."""

    keys: Mapping[str, str] = field(repr=False)

    def require(self, authorization: str, *, rights: frozenset[Right], host: str, path: str, now: float) -> None:
        """Checks the token of a call to `path` at `host` (as the caller spelled it, with or without port).

        Raises:
            HubRefused: no token, a bad or expired one, one for something else, or one of a policy without the right.
        """
        token = parse_sas_token(authorization)
        held = POLICIES.get(token.policy or "")
        if held is None:
            raise HubRefused("no such policy")
        resource = unquote(token.resource)
        meant, slash, below = resource.partition("/")
        is_above = not slash or f"{path}/".startswith(f"/{below.rstrip('/')}/")
        spoken_to = host.lower()
        if not meant or meant.lower() not in (spoken_to, spoken_to.rpartition(":")[0]) or not is_above:
            raise HubRefused("the token is for another resource")
        verify_sas_token(token, resource=resource, keys=(self.keys[token.policy or ""],), now=now)
        if not held & rights:
            needed = " or ".join(sorted(right.value for right in rights))
            raise HubRefused(f"the policy {token.policy} may not do this: it needs {needed}")


def ensure_policy_keys(tables: HubTables) -> PolicyKeys:
    """Every policy's key. Runs inside a writing transaction."""
    return PolicyKeys({name: ensure_policy_key(tables, name) for name in POLICIES})


def ensure_policy_key(tables: HubTables, policy: str) -> str:
    """One policy's key, made at first use. Runs inside a writing transaction."""
    name = f"policy.{policy}"
    key = tables.find_setting(name)
    if key is None:
        key = make_key()
        tables.write_setting(name, key)
    return key
