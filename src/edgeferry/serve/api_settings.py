"""What an operator may set of the inference API. Apart from the API itself, so that knowing it imports no server."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeferry.serve.access import Access


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Who may call, how large and slow a body may be (and all together), how long queue and answer may take."""

    access: Access = field(default_factory=Access)
    body_max_bytes: int = 32 << 20
    body_timeout_s: float = 60.0
    bodies_max_bytes: int = 256 << 20
    request_timeout_s: float = 30.0
