"""The IoT Edge workload API, as far as a module needs it to connect: trust bundle and signatures with the module's key.

It is served on a unix socket; who may open the socket may sign as any module of the one device it stands for.

Source: docs/formats/iothub.md section 2 (measured with the Python and Node SDKs).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeferry.errors import EdgeferryError, RequestInvalid
from edgeferry.hub.http_answers import make_refusal, read_body
from edgeferry.hub.registry import Registry
from edgeferry.twin.document import parse_object
from edgeferry.wire.iothub_auth import make_signature
from edgeferry.wire.service_api import require_identity

BODY_MAX_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class WorkloadApi:
    """Stands for one device; `trust_bundle` is the PEM of the hub's authority."""

    device_id: str
    registry: Registry
    trust_bundle: str

    def make_routes(self) -> list[Route]:
        """Both routes."""
        return [
            Route("/trust-bundle", self.show_trust_bundle, methods=["GET"]),
            Route("/modules/{module}/genid/{genid}/sign", self.sign, methods=["POST"]),
        ]

    async def show_trust_bundle(self, _: Request) -> Response:
        """GET /trust-bundle"""
        return Response(msgspec.json.encode({"certificate": self.trust_bundle}), media_type="application/json")

    async def sign(self, request: Request) -> Response:
        """POST /modules/{m}/genid/{g}/sign"""
        try:
            data = parse_data(await read_body(request, BODY_MAX_BYTES))
            identity = require_identity(self.device_id, request.path_params["module"])
            record = await self.registry.read(identity)
            if record.generation_id != request.path_params["genid"] or not record.is_enabled:
                raise RequestInvalid("this generation of the module is not registered")
        except EdgeferryError as error:
            return make_refusal(error)
        digest = make_signature(record.primary_key, data)
        return Response(msgspec.json.encode({"digest": digest}), media_type="application/json")


def parse_data(body: bytes) -> bytes:
    """The bytes to sign.

    Raises:
        RequestInvalid: another algorithm, or no base64.
    """
    fields = parse_object(body, limit_bytes=BODY_MAX_BYTES)
    data = fields.get("data")
    if fields.get("algo", "HMACSHA256") != "HMACSHA256" or not isinstance(data, str):
        raise RequestInvalid("expected 'algo' HMACSHA256 and 'data' in base64")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestInvalid("expected 'data' in base64") from error
