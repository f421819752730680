"""Who may call the API: a token, networks, or anyone on this machine.

Rules:
- Off loopback nothing starts without a token or `allow_networks`; where both are set, both must hold.
- A token is compared in constant time and never logged. `/healthz` and `/readyz` are open and say nothing else.
- Clients of DeepStack put their token into the form, which lies behind this guard: a form for their routes is let in
  with its token due. Whoever reads it settles that (`form.py`); until then no good answer leaves, whoever forgets it.
- The peer's address is that of the connection: forwarding headers are not believed.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeferry.errors import ConfigInvalid, EdgeferryError, Forbidden, InvariantBroken, Unauthorised
from edgeferry.serve.body import LingeringResponse, get_media_type, is_body_left
from edgeferry.serve.statuses import make_error_response

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
FORM_PREFIX = "/v1/vision/"
"""Routes whose clients send the token as a field of the form."""
_FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
_TOKEN_HEADERS = ("ocp-apim-subscription-key", "prediction-key", "api_key")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call. Both empty: everyone who can reach the socket, which is then bound to loopback only."""

    token: str = ""
    networks: tuple[Network, ...] = ()

    def __repr__(self) -> str:
        return f"Access(token={'set' if self.token else 'none'}, networks={[str(item) for item in self.networks]})"

    def require_guarded(self, host: str) -> None:
        """Raises ConfigInvalid when `host` is off loopback and nothing guards it."""
        if not is_loopback(host) and not self.token and not self.networks:
            raise ConfigInvalid(
                f"expected EDGEFERRY_TOKEN or --allow-networks to serve on {host or 'every address'}, found neither"
            )

    def check(self, connection: HTTPConnection) -> None:
        """Raises Forbidden for a foreign network, Unauthorised for a wrong or missing token."""
        if self.networks and not self._is_allowed(connection.client.host if connection.client else ""):
            raise Forbidden("expected a caller from an allowed network, found another address")
        if self.token:
            self.check_token(_find_tokens(connection))

    def check_token(self, found: Sequence[str]) -> None:
        """Raises Unauthorised when there is a token and none of `found` is it."""
        if self.token and not any(_is_same(one, self.token) for one in found):
            raise Unauthorised("expected the token of this device, found none or another")

    def _is_allowed(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self.networks)


def make_access(token: str = "", allow_networks: Sequence[str] = ()) -> Access:
    """Parses networks in CIDR form; raises ConfigInvalid."""
    try:
        networks = tuple(ipaddress.ip_network(network.strip()) for network in allow_networks if network.strip())
    except ValueError as error:
        raise ConfigInvalid(f"expected networks like 192.168.1.0/24 in allow_networks: {error}") from error
    return Access(token.strip(), networks)


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class AccessGuard:
    """ASGI middleware: asks `access` about every request but those to OPEN_PATHS."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401 or 403."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                self._access.check(HTTPConnection(scope))
            except EdgeferryError as error:
                if not (isinstance(error, Unauthorised) and _may_hold_token(Request(scope))):
                    await _refuse(error, scope, receive, send)
                    return
                send = _owe_token(scope, send)
        await self._app(scope, receive, send)


def is_token_due(request: Request) -> bool:
    """Whether the token is still to be found in the form of `request`."""
    return getattr(request.state, "token_due", False)


def settle_token(request: Request, access: Access, fields: Mapping[str, str]) -> None:
    """Checks the token among `fields` of a form where it is due; raises Unauthorised."""
    if is_token_due(request):
        access.check_token([fields.get("api_key", "")])
        request.state.token_due = False


def _may_hold_token(request: Request) -> bool:
    """Whether this is a form in which clients send their token, from a caller who offered none elsewhere."""
    is_form = request.method == "POST" and get_media_type(request) in _FORM_TYPES
    path: str = request.scope["path"]  # request.url is made of the Host header too, in older Starlettes
    return is_form and path.startswith(FORM_PREFIX) and not _find_tokens(request)


def _owe_token(scope: Scope, send: Send) -> Send:
    """Marks the request as one whose token is due, and lets no good answer out while it is."""
    state = scope.setdefault("state", {})
    state["token_due"] = True

    async def send_settled(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400 and state["token_due"]:
            raise InvariantBroken("a good answer was about to leave before the token was shown")
        await send(message)

    return send_settled


async def _refuse(error: EdgeferryError, scope: Scope, receive: Receive, send: Send) -> None:
    response = make_error_response(error, path=scope["path"])
    answer: ASGIApp = LingeringResponse(response) if is_body_left(Request(scope)) else response
    await answer(scope, receive, send)


def _find_tokens(connection: HTTPConnection) -> list[str]:
    """Every token that the caller offers, in any of the forms clients use."""
    scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
    offered = [
        bearer.strip() if scheme.lower() == "bearer" else "",
        *(connection.headers.get(name, "") for name in _TOKEN_HEADERS),
        connection.query_params.get("api_key", ""),
    ]
    return [token for token in offered if token]


def _is_same(found: str, token: str) -> bool:
    return hmac.compare_digest(found.encode("utf-8", "surrogatepass"), token.encode("utf-8", "surrogatepass"))
