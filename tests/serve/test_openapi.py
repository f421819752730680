"""The description of the API is true: held against the routes, against real answers, and against the OpenAPI rules."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from edgeferry.runtime.child import Terms
from edgeferry.serve.api import ApiSettings, make_app
from edgeferry.serve.fake import FakeEngine
from edgeferry.serve.slots import Slots
from edgeferry.vision.answer import Answer, ClassificationAnswer, ClassScore

if TYPE_CHECKING:
    from tests.serve.conftest import ApiClient, MakeVersion, OpenClient


async def _fetch(client: ApiClient) -> dict[str, Any]:
    document: dict[str, Any] = (await client.get("/openapi.json")).json
    return document


def _check(document: dict[str, Any], path: str, answered: Any) -> None:
    """Holds one answer against what the document says of its route and status."""
    (operation,) = document["paths"][path].values()
    described = operation["responses"][str(answered.status)]
    if answered.status == 204:
        assert "content" not in described
        return
    media_type = answered.headers["Content-Type"].partition(";")[0]
    schema = described["content"][media_type]["schema"]
    if media_type == "application/json":
        jsonschema.validate(answered.json, {**schema, "components": document["components"]})


async def test_every_route_is_described_and_nothing_else(slots: Slots, client: ApiClient) -> None:
    document = await _fetch(client)
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    served = {(route.path, method) for route in make_app(slots).routes for method in route.methods - {"HEAD"}}  # type: ignore[attr-defined]
    assert described == served
    assert len(described) >= 6


async def test_every_schema_is_a_schema_and_every_reference_leads_somewhere(client: ApiClient) -> None:
    document = await _fetch(client)
    assert document["openapi"].startswith("3.1")
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert "/" not in name
    references = _find_references(document)
    assert references
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= set(
        document["components"]["schemas"]
    )
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


def _find_references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(_find_references(inner) for inner in value.values()))
    return set().union(*(_find_references(inner) for inner in value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("task", ["detection", "classification"])
async def test_good_answers_fit_their_schemas(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion, task: str
) -> None:
    def classify(_: bytes, __: Terms) -> Answer:
        return ClassificationAnswer(classes=(ClassScore(class_index=0, label="low", score=0.5),))

    engine.answer = classify if task == "classification" else engine.answer
    await slots.switch(make_version())
    document = await _fetch(client)
    for shape in ("default", "classic", "lva"):
        _check(document, "/score", await client.post(f"/score?format={shape}"))
    for accept in ("application/json", "image/png", "image/jpeg"):
        answered = await client.post("/v1/models/detector/predict", headers={"Accept": accept})
        _check(document, "/v1/models/{name}/predict", answered)
    for path in ("/image", "/{project}/detect/iterations/{name}/image/nostore"):
        _check(document, path, await client.post(path.format(project="p", name="detector")))
    for path in ("/v1/vision/detection", "/v1/vision/custom/{model}", "/v1/vision/custom/list", "/v1/vision/face"):
        form = {"image": io.BytesIO(b"cat"), "min_confidence": "0.1"}
        _check(document, path, await client.post(path.format(model="detector"), form))
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        _check(document, path, await client.get(path))


async def test_errors_are_described_too(slots: Slots, open_client: OpenClient, make_version: MakeVersion) -> None:
    predict = "/v1/models/{name}/predict"
    async with open_client(slots, ApiSettings(body_max_bytes=100)) as client:
        document = await _fetch(client)
        _check(document, "/readyz", await client.get("/readyz"))
        _check(document, "/score", await client.post("/score"))
        await slots.switch(make_version())
        await slots.switch(make_version(model="gauge"))
        _check(document, "/score", await client.post("/score"))
        _check(document, "/score", await client.post("/score?format=x"))
        for body, headers in ((b"", {}), (b"bad", {}), (bytes(101), {}), (b"x", {"Content-Type": "text/plain"})):
            answered = await client.post("/v1/models/gauge/predict", body, headers=headers)
            assert answered.status >= 400
            _check(document, predict, answered)
        _check(document, predict, await client.post("/v1/models/other/predict"))
        _check(document, "/url", await client.post("/url"))
        for field, content in (("", b""), ("", b"x"), ("image", b"bad"), ("other", b"x"), ("image", bytes(99))):
            for path, place in (("/v1/vision/custom/{model}", "/v1/vision/custom/gauge"), ("/image", "/image")):
                answered = await client.post(place, {field: io.BytesIO(content)} if field else content)
                assert answered.status >= 400 or (field, content, path) == ("", b"x", "/image")
                _check(document, path, answered)
