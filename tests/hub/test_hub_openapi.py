"""The hub's REST is what its own OpenAPI says: each code can be reached, and schemathesis finds nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgeferry.app.hub import HubSettings, RunningHub, open_hub
from edgeferry.errors import InvariantBroken
from edgeferry.hub.http_front import ROUTES
from edgeferry.hub.openapi import OPERATIONS, Operation, get_codes, make_openapi
from edgeferry.hub.openapi_schemas import BODY_EXAMPLES, SCHEMAS
from edgeferry.wire.service_api import STATUS_OF_CODE, Identity
from hub_caller import Answer, ServiceCaller, open_caller
from schemathesis_runs import run_schemathesis, stay_connected

NAMES = [(method, path) for method, path, _, _ in ROUTES]
GOOD = {"device": "d", "module": "m", "name": "c"}
EXISTING = (Identity("d"), Identity("d", "m"))
FLAWS = {
    "InvalidConfigurationContent": {"content": {}},
    "InvalidConfigurationTargetCondition": {"targetCondition": "tags.site ="},
    "InvalidConfigurationCustomMetricsQuery": {"metrics": {"queries": {"all": "SELECT"}}},
    "CannotModifyImmutableConfigurationContent": {"content": {"deviceContent": {"properties.desired.rate": 5}}},
}
MISSING = {"DeviceNotFound": "device", "ModuleNotFound": "module", "ConfigurationNotFound": "name"}


@pytest.fixture
async def call(hub: RunningHub) -> AsyncIterator[ServiceCaller]:
    """Speaks to a hub with the device d, its module m, the configuration c."""
    async with open_caller(hub) as caller:
        await hub.add_module("d", "m")
        assert (await caller("PUT", "/configurations/c", body=BODY_EXAMPLES["ConfigurationWrite"])).status == 200
        yield caller


@pytest.mark.parametrize("change", ["a route without description", "a description without route"])
def test_no_document_is_made_when_routes_and_descriptions_differ(change: str) -> None:
    assert make_openapi(NAMES)["paths"].keys() == {path for _, path in NAMES}
    with pytest.raises(InvariantBroken):
        make_openapi([*NAMES, ("GET", "/new")] if change.startswith("a route") else NAMES[1:])


def test_every_schema_is_a_schema_and_every_example_follows_its_own() -> None:
    document = make_openapi(NAMES)
    for name, schema in SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        if name in BODY_EXAMPLES:
            jsonschema.validate(BODY_EXAMPLES[name], {**document, "$ref": f"#/components/schemas/{name}"})


async def test_the_description_needs_no_token(hub: RunningHub, call: ServiceCaller) -> None:
    answer = await call("GET", "/openapi.json", token="", version=None)
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert json.loads(answer.body) == make_openapi(NAMES)


@pytest.mark.parametrize(("method", "path"), NAMES, ids=str)
async def test_each_code_that_is_described_is_reached(
    hub: RunningHub, call: ServiceCaller, method: str, path: str
) -> None:
    codes = get_codes(method, path)
    answers = {code: await _provoke(hub, call, method, path, code) for code in codes if code != "ServiceUnavailable"}
    if "ServiceUnavailable" in codes:
        await hub.rooms.db.close()
        answers["ServiceUnavailable"] = await call(
            method, path.format(**GOOD), body=_make_body(OPERATIONS[method, path])
        )
    assert {code: (answer.status, answer.code) for code, answer in answers.items()} == {
        code: (STATUS_OF_CODE[code], code) for code in codes
    }
    for answer in answers.values():
        _check(answer, method, path)


@pytest.mark.parametrize(("method", "path"), NAMES, ids=str)
async def test_each_good_answer_is_as_described(hub: RunningHub, call: ServiceCaller, method: str, path: str) -> None:
    names, operation = dict(GOOD), OPERATIONS[method, path]
    if method == "PUT" and not path.startswith("/twins"):
        names[path[path.rindex("{") + 1 : -1]] = "new"
    async with AsyncExitStack() as stack:
        if path.endswith("/methods"):
            await stack.enter_async_context(stay_connected(hub, *EXISTING))
        answer = await call(method, path.format(**names), body=_make_body(operation))
    assert answer.status == (200 if operation.answer else 204)
    _check(answer, method, path)


@pytest.mark.parametrize("version", [None, "", "2018-06", "latest", "2021-04-12-preview2", "%D9%A2021-04-12"])
async def test_a_call_without_a_good_api_version_is_refused(call: ServiceCaller, version: str | None) -> None:
    answer = await call("GET", "/devices/d", version=version)
    assert (answer.status, answer.code) == (400, "InvalidProtocolVersion")


@pytest.mark.parametrize("version", ["2018-06-30", "2021-04-12", "2020-05-31-preview"])
async def test_any_date_is_an_api_version(call: ServiceCaller, version: str) -> None:
    assert (await call("GET", "/devices/d", version=version)).status == 200


@pytest.mark.parametrize("path", ["/", "/nothing", "/devices/a/b", "/devices//modules", "//devices", "/twins"])
async def test_an_unknown_path_is_refused_like_everything_else(call: ServiceCaller, path: str) -> None:
    answer = await call("GET", path)
    assert (answer.status, answer.code) == (404, "NotFound")


@pytest.mark.parametrize("path", sorted({path for _, path in NAMES}))
async def test_a_wrong_method_is_told_which_ones_there_are(call: ServiceCaller, path: str) -> None:
    answer = await call("TRACE", path.format(**GOOD))
    assert (answer.status, answer.code) == (405, "MethodNotAllowed")
    assert {method for method, other in NAMES if other == path} <= set(answer.allowed)


@pytest.mark.parametrize("path", ["/devices/", "/devices/d/", "/twins/d/modules/m/", "/statistics/devices/"])
async def test_a_slash_at_the_end_means_nothing(call: ServiceCaller, path: str) -> None:
    assert (await call("GET", path)).status == 200


async def test_schemathesis_finds_nothing(tmp_path: Path, quiet_log: None) -> None:
    async with open_hub(HubSettings(tmp_path / "hub", mqtt_port=0, https_port=0)) as hub:
        outcome = await run_schemathesis(hub, tmp_path, "--generation-deterministic", "--max-examples", "20")
    assert outcome.exit_code == 0, outcome.text
    assert outcome.methods > 0


@pytest.mark.soak
async def test_schemathesis_finds_nothing_on_postgresql(tmp_path: Path, database_url: str, quiet_log: None) -> None:
    settings = HubSettings(tmp_path / "hub", database_url=database_url, mqtt_port=0, https_port=0)
    async with open_hub(settings) as hub:
        options = ("--generation-deterministic", "--max-examples", "5", "--phases", "examples,coverage,fuzzing")
        outcome = await run_schemathesis(hub, tmp_path, *options)
    assert outcome.exit_code == 0, outcome.text
    assert outcome.methods > 0


@pytest.mark.soak_full
@pytest.mark.parametrize("seed", [1, 2])
async def test_schemathesis_finds_nothing_in_many_more_calls(tmp_path: Path, seed: int, quiet_log: None) -> None:
    async with open_hub(HubSettings(tmp_path / "hub", mqtt_port=0, https_port=0)) as hub:
        options = ("--seed", str(seed), "--generation-database", "none", "--max-examples", "300")
        outcome = await run_schemathesis(hub, tmp_path, *options)
    assert outcome.exit_code == 0, outcome.text


def _make_body(operation: Operation) -> Any:
    return BODY_EXAMPLES[operation.body] if operation.body else None


async def _provoke(hub: RunningHub, call: ServiceCaller, method: str, path: str, code: str) -> Answer:
    """The call that is refused with this code."""
    operation, names, more = OPERATIONS[method, path], dict(GOOD), {}
    body: Any = _make_body(operation)
    query = ""
    match code:
        case "InvalidProtocolVersion":
            more["version"] = None
        case "IotHubUnauthorizedAccess":
            more["token"] = "SharedAccessSignature sr=localhost&sig=x&se=99999999999&skn=iothubowner"
        case "MessageTooLarge":
            body = b" " * 3_000_000
        case "ArgumentInvalid" if operation.body:
            body = b"[["
        case "ArgumentInvalid" if "{" in path:
            names = dict.fromkeys(names, "A%20b")
        case "ArgumentInvalid":
            query = "top=none"
        case "PreconditionFailed":
            more["if_match"] = '"stale"'
        case "DeviceNotFound" | "ModuleNotFound" | "ConfigurationNotFound":
            names[MISSING[code]] = "missing"
            creates_module = method == "PUT" and code == "DeviceNotFound" and "module" in path
            more["if_match"] = None if creates_module or not operation.parameters else "*"
        case _ if code in FLAWS:
            body = {**body, **FLAWS[code]}
            more["if_match"] = "*"
        case "BulkRegistryOperationFailure":
            body = [{"id": "d", "importMode": "create"}]
        case "GatewayTimeout":
            body = {"methodName": "x", "responseTimeoutInSeconds": 0.2}
    async with AsyncExitStack() as stack:
        if code == "GatewayTimeout":
            await stack.enter_async_context(stay_connected(hub, *EXISTING, answers=False))
        return await call(method, path.format(**names), body=body, query=query, **more)


def _check(answer: Answer, method: str, path: str) -> None:
    """The answer's status, headers and body are those that the document describes."""
    document = make_openapi(NAMES)
    described = document["paths"][path][method.lower()]["responses"][str(answer.status)]
    for name, header in described.get("headers", {}).items():
        if not header["required"] and name not in answer.headers:
            continue
        jsonschema.validate(answer.headers[name], header["schema"])
    if "content" in described:
        jsonschema.validate(json.loads(answer.body), {**document, **described["content"]["application/json"]["schema"]})
    else:
        assert answer.body == b""
