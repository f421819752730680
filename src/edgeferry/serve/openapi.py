"""The API's description, made from the same table that makes its routes.

Rules:
- What stands in `/openapi.json` is what the table says; nothing is written twice. Schemas come from the types that are
  encoded, statuses from the error table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from edgeferry import __version__
from edgeferry.errors import EdgeferryError, Forbidden, Unauthorised
from edgeferry.serve.edge import Handler
from edgeferry.serve.statuses import get_body_type, get_status

_REF_TEMPLATE = "#/components/schemas/{name}"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class ApiAnswer:
    """One good answer of a route. `bodies`: the types of which one is encoded; none where there is no schema."""

    text: str
    status: int = 200
    media_types: tuple[str, ...] = (JSON,)
    bodies: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class ApiParameter:
    """A query parameter or header that the route reads; `choices` empty: any text."""

    name: str
    text: str
    choices: tuple[str, ...] = ()
    place: Literal["query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """One row of the table of routes.

    `open`: answered without token; `takes_picture`: the body is a picture; `takes`: types of which one is its JSON
    body; `takes_binary`: the same, with raw bytes after it; `picture_field`: the part of a form that is a picture;
    `fields`: text fields of a form, with what they mean.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    text: str
    answers: tuple[ApiAnswer, ...]
    errors: tuple[type[EdgeferryError], ...] = ()
    parameters: tuple[ApiParameter, ...] = ()
    takes_picture: bool = False
    takes: tuple[Any, ...] = ()
    takes_binary: bool = False
    picture_field: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    open: bool = False


def make_openapi(routes: tuple[ApiRoute, ...]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `routes`."""
    types = [body for route in routes for answer in route.answers for body in answer.bodies]
    types += [taken for route in routes for taken in route.takes]
    types += {get_body_type(route.path): None for route in routes}
    _, components = msgspec.json.schema_components(types, ref_template=_REF_TEMPLATE)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _make_operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgeferry inference API", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SECURITY_SCHEMES},
    }


_PICTURE = {"type": "string", "contentMediaType": "application/octet-stream"}
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "subscriptionKey": {"type": "apiKey", "in": "header", "name": "Ocp-Apim-Subscription-Key"},
    "predictionKey": {"type": "apiKey", "in": "header", "name": "Prediction-Key"},
    "apiKeyHeader": {"type": "apiKey", "in": "header", "name": "api_key"},
    "apiKeyQuery": {"type": "apiKey", "in": "query", "name": "api_key"},
}


def _make_operation(route: ApiRoute) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.text,
        "operationId": "_".join(re.findall(r"\w+", f"{route.method.lower()}{route.path}")),
        "parameters": [*_make_path_parameters(route.path), *(_make_parameter(item) for item in route.parameters)],
        "responses": {**_make_error_responses(route), **_make_good_responses(route)},
    }
    content = _make_content(route)
    if content:
        required = bool(route.takes_picture or route.takes or route.picture_field)
        operation["requestBody"] = {"required": required, "content": content}
    if not route.open:
        operation["security"] = [{}, *({scheme: []} for scheme in _SECURITY_SCHEMES)]
    return operation


def _make_content(route: ApiRoute) -> dict[str, Any]:
    """Each media type that the route takes, with its schema."""
    content: dict[str, Any] = {}
    if route.takes:
        content[JSON] = {"schema": _make_any_of(route.takes)}
    if route.takes_binary:
        content["application/octet-stream"] = {"schema": {"type": "string", "contentMediaType": JSON}}
    if route.takes_picture:
        content |= {media_type: {"schema": _PICTURE} for media_type in ("application/octet-stream", "image/*")}
    if route.picture_field or route.fields:
        content["multipart/form-data"] = {"schema": _make_form(route)}
    return content


def _make_form(route: ApiRoute) -> dict[str, Any]:
    picture = {route.picture_field: _PICTURE} if route.picture_field else {}
    texts = {name: {"type": "string", "description": text} for name, text in route.fields.items()}
    return {"type": "object", "properties": {**picture, **texts}, "required": list(picture)}


def _make_path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _make_parameter(parameter: ApiParameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if parameter.choices:
        schema["enum"] = list(parameter.choices)
    return {"name": parameter.name, "in": parameter.place, "description": parameter.text, "schema": schema}


def _make_good_responses(route: ApiRoute) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for answer in route.answers:
        response = responses.setdefault(str(answer.status), {"description": answer.text})
        for media_type in answer.media_types if answer.status != 204 else ():
            response.setdefault("content", {})[media_type] = {"schema": _make_schema(answer, media_type)}
    return responses


def _make_schema(answer: ApiAnswer, media_type: str) -> dict[str, Any]:
    if media_type != JSON:
        return {"type": "string"}
    if not answer.bodies:
        return {"type": "object"}
    return _make_any_of(answer.bodies)


def _make_any_of(types: tuple[Any, ...]) -> dict[str, Any]:
    schemas, _ = msgspec.json.schema_components(types, ref_template=_REF_TEMPLATE)
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def _make_error_responses(route: ApiRoute) -> dict[str, Any]:
    guards: tuple[type[EdgeferryError], ...] = () if route.open else (Unauthorised, Forbidden)
    codes: dict[int, list[str]] = {}
    for error in (*route.errors, *guards):
        codes.setdefault(get_status(error), []).append(error.code)
    schema = {"$ref": _REF_TEMPLATE.format(name=get_body_type(route.path).__name__)}
    return {
        str(status): {"description": ", ".join(found), "content": {JSON: {"schema": schema}}}
        for status, found in sorted(codes.items())
    }
