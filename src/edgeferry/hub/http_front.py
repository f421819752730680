"""The service REST, as service SDKs call it: all routes in one list, each with the right that it asks for.

Handlers stand in http_identities.py, http_twins.py and http_fleet.py; shapes and codes in wire/service_api.py; sockets
in transport/http_server.py; policies in policies.py.

Rules:
- Every call carries a token of a policy; `sr` must be the host that the caller speaks to, or a path above the one it
  calls.
- A slash at the end of a path means nothing. A path that nobody answers is refused with 404, a method with 405 and
  `Allow`, in the shape of every refusal.
- `/openapi.json` (openapi.py) is open: it says nothing of this hub.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from edgeferry.errors import EdgeferryError
from edgeferry.hub import http_fleet as fleet
from edgeferry.hub import http_identities as identities
from edgeferry.hub import http_twins as twins
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.http_answers import make_error, make_refusal
from edgeferry.hub.openapi import make_openapi
from edgeferry.hub.policies import PolicyKeys, Right
from edgeferry.wire.service_api import require_api_version

Handler = Callable[[HubRooms, Request], Awaitable[Response]]
_log = structlog.get_logger(__name__)

_READ = frozenset({Right.REGISTRY_READ})
_WRITE = frozenset({Right.REGISTRY_WRITE})
_SERVICE = frozenset({Right.SERVICE})
_LOOK = _READ | _SERVICE
_DEVICE, _MODULE = "/devices/{device}", "/devices/{device}/modules/{module}"
_DEVICE_TWIN, _MODULE_TWIN = "/twins/{device}", "/twins/{device}/modules/{module}"
_CONFIGURATION = "/configurations/{name}"

# method, path, handler, rights of which one is enough; in the order of docs/formats/iothub.md section 5
ROUTES: tuple[tuple[str, str, Handler, frozenset[Right]], ...] = (
    ("GET", "/devices", identities.list_devices, _READ),
    ("POST", "/devices", identities.write_many, _WRITE),
    ("POST", "/devices/query", fleet.query, _LOOK),
    ("GET", _DEVICE, identities.show_identity, _READ),
    ("PUT", _DEVICE, identities.put_identity, _WRITE),
    ("DELETE", _DEVICE, identities.delete_identity, _WRITE),
    ("POST", _DEVICE + "/applyConfigurationContent", fleet.apply_content, _WRITE),
    ("GET", _DEVICE + "/modules", identities.list_modules, _READ),
    ("GET", _MODULE, identities.show_identity, _READ),
    ("PUT", _MODULE, identities.put_identity, _WRITE),
    ("DELETE", _MODULE, identities.delete_identity, _WRITE),
    ("GET", _DEVICE_TWIN, twins.show_twin, _SERVICE),
    ("PATCH", _DEVICE_TWIN, twins.patch_twin, _SERVICE),
    ("PUT", _DEVICE_TWIN, twins.put_twin, _SERVICE),
    ("POST", _DEVICE_TWIN + "/methods", twins.call_method, _SERVICE),
    ("GET", _MODULE_TWIN, twins.show_twin, _SERVICE),
    ("PATCH", _MODULE_TWIN, twins.patch_twin, _SERVICE),
    ("PUT", _MODULE_TWIN, twins.put_twin, _SERVICE),
    ("POST", _MODULE_TWIN + "/methods", twins.call_method, _SERVICE),
    ("GET", "/statistics/devices", fleet.show_registry_statistics, _LOOK),
    ("GET", "/statistics/service", fleet.show_service_statistics, _LOOK),
    ("GET", "/configurations", fleet.list_configurations, _LOOK),
    ("POST", "/configurations/testQueries", fleet.check_queries, _LOOK),
    ("GET", _CONFIGURATION, fleet.show_configuration, _LOOK),
    ("PUT", _CONFIGURATION, fleet.put_configuration, _WRITE),
    ("DELETE", _CONFIGURATION, fleet.delete_configuration, _WRITE),
)


@dataclass(frozen=True, slots=True)
class ServiceRest:
    """The service's door."""

    rooms: HubRooms
    policies: PolicyKeys

    def make_app(self, more: Sequence[Route] = ()) -> Starlette:
        """Every route, and `more` from other doors; what none of them takes is refused as IoT Hub refuses."""
        routes = [route for row in ROUTES for route in self._make_routes(*row)]
        description = msgspec.json.encode(make_openapi((method, path) for method, path, _, _ in ROUTES))
        described = Route("/openapi.json", partial(_describe, description), methods=["GET"])
        app = Starlette(routes=[*routes, described, *more], exception_handlers={HTTPException: _refuse})
        app.router.redirect_slashes = False
        return app

    def _make_routes(self, method: str, path: str, handler: Handler, rights: frozenset[Right]) -> list[Route]:
        async def endpoint(request: Request) -> Response:
            try:
                self._require_right(request, rights)
                require_api_version(request.query_params.get("api-version"))
                return await handler(self.rooms, request)
            except EdgeferryError as error:
                return make_refusal(error)
            except Exception:  # noqa: BLE001 - the edge of a request
                _log.exception("service request failed", path=path)
                return make_error("ServerError", "a defect of the hub; look at its log")

        return [Route(one, endpoint, methods=[method], name=f"{method} {one}") for one in (path, path + "/")]

    def _require_right(self, request: Request, rights: frozenset[Right]) -> None:
        self.policies.require(
            request.headers.get("authorization", ""),
            rights=rights,
            host=request.headers.get("host", ""),
            path=request.scope["path"],
            now=self.rooms.clock(),
        )


async def _describe(description: bytes, _: Request) -> Response:
    return Response(description, media_type="application/json")


async def _refuse(request: Request, _: Exception) -> Response:
    """No route takes this path, or none takes it with this method."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    here = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    allowed = sorted({method for route in here for method in route.methods or ()})
    if not allowed:
        return make_error("NotFound", "there is no such path")
    answer = make_error("MethodNotAllowed", f"this path takes {', '.join(allowed)}")
    answer.headers["Allow"] = ", ".join(allowed)
    return answer
