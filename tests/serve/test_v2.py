"""The v2 protocol over real HTTP, answered by the engine in memory: metadata, inference, residents, errors."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from edgeferry.errors import ModelUnreadable, WorkerStartFailed
from edgeferry.model.inspect import make_tensors_stage
from edgeferry.model.spec import ModelSpec
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.access import Access
from edgeferry.serve.api import ApiSettings
from edgeferry.serve.fake import FakeEngine
from edgeferry.serve.residents import RESIDENTS_MAX, order_version
from edgeferry.serve.slots import Slots

if TYPE_CHECKING:
    from tests.serve.conftest import Answered, ApiClient, MakeVersion, OpenClient, Until

INFER = "/v2/models/detector/infer"
LOAD = "/v2/repository/models/detector/load"
UNLOAD = "/v2/repository/models/detector/unload"
DATA = [0.5, 1.0, -2.0, 4.0]
RAW = struct.pack("<4f", *DATA)


@dataclass
class Store:
    """What lies on a disk, by name."""

    versions: list[StoredVersion] = field(default_factory=list)

    def list_models(self) -> list[str]:
        return sorted({one.model for one in self.versions})

    def list_versions(self, model: str) -> list[StoredVersion]:
        return [one for one in self.versions if one.model == model]


@pytest.fixture
def store(make_version: MakeVersion) -> Store:
    """1.0.0 to 1.10.0 of the detector, and a gauge."""
    versions = ("1.0.0", "1.9.0", "1.10.0")
    return Store([*(make_version(version) for version in versions), make_version(model="gauge")])


@pytest.fixture
async def v2(slots: Slots, store: Store, open_client: OpenClient) -> AsyncIterator[ApiClient]:
    """A server with a store, that serves detector@1.0.0."""
    await slots.switch(store.versions[0])
    async with open_client(slots, store=store) as client:
        yield client


def make_request(**rest: Any) -> bytes:
    one = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": DATA}
    return json.dumps({"inputs": [one], **rest}).encode()


def make_binary(*outputs: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    one = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    rest = {"outputs": list(outputs)} if outputs else {"parameters": {"binary_data_output": True}}
    head = json.dumps({"inputs": [one], **rest}).encode()
    return head + RAW, {"Inference-Header-Content-Length": str(len(head))}


def get_error(answered: Answered, status: int) -> str:
    assert answered.status == status, answered.body
    assert list(answered.json) == ["error"]
    return str(answered.json["error"])


async def read_index(client: ApiClient, **body: Any) -> dict[str, tuple[str, str]]:
    answered = await client.post("/v2/repository/index", json.dumps(body).encode() if body else b"")
    return {f"{one['name']}@{one['version']}": (one["state"], one["reason"]) for one in answered.json}


async def test_the_server_and_its_models_say_what_they_are(v2: ApiClient) -> None:
    assert (await v2.get("/v2")).json["name"] == "edgeferry"
    assert (await v2.get("/v2/health/live")).json == {"live": True}
    assert (await v2.get("/v2/health/ready")).json == {"ready": True}
    described = {
        "name": "detector",
        "versions": ["1.0.0"],
        "platform": "fake",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }
    for path in ("/v2/models/detector", "/v2/models/detector/versions/1.0.0", "/v2/models/detector@1.0.0"):
        assert (await v2.get(path)).json == described
        assert (await v2.get(path + "/ready")).json == {"ready": True}
        config = (await v2.get(path + "/config")).json
        assert (config["max_batch_size"], config["input"][0]["dims"]) == (1, [4])


async def test_tensors_go_through_as_json_and_as_bytes(v2: ApiClient) -> None:
    said = (await v2.post(INFER, make_request(id="7"))).json
    output = {"name": "y", "datatype": "FP32", "shape": [1, 4], "data": DATA}
    assert said == {"model_name": "detector", "model_version": "1.0.0", "id": "7", "outputs": [output]}
    body, headers = make_binary()
    answered = await v2.post("/v2/models/detector/versions/1.0.0/infer", body, headers=headers)
    length = int(answered.headers["Inference-Header-Content-Length"])
    assert answered.body[length:] == RAW
    assert json.loads(answered.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 16}
    body, headers = make_binary({"name": "y"})
    assert (await v2.post(INFER, body, headers=headers)).json["outputs"] == [output]


async def test_many_numbers_as_json_do_not_hold_up_others(v2: ApiClient) -> None:
    count = 100_000
    numbers = ",".join(["-1.7976931348623157e308"] * count)  # the slowest to read that there are
    head = f'{{"inputs": [{{"name": "x", "shape": [{count}], "datatype": "FP64", "data": [{numbers}]}}]}}'.encode()
    loop = asyncio.get_running_loop()
    asking, longest, before = asyncio.create_task(v2.post(INFER, head)), 0.0, loop.time()
    while not asking.done():
        await asyncio.sleep(0.001)
        now = loop.time()
        longest, before = max(longest, now - before), now
    assert "x FP32" in get_error(await asking, 400), "read, and not what the model takes"
    assert longest < 0.4, "read at once they take a second"


async def test_json_that_is_not_read_in_time_is_told_so_and_the_next_is_read(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    count = 100_000
    numbers = ",".join(["-1.7976931348623157e308"] * count)
    slow = f'{{"inputs": [{{"name": "x", "shape": [{count}], "datatype": "FP64", "data": [{numbers}]}}]}}'.encode()
    async with open_client(slots, ApiSettings(request_timeout_s=0.2)) as client:
        assert "request_timeout" in get_error(await client.post(INFER, slow), 504)
        assert (await client.post(INFER, make_request())).status == 200


async def test_the_best_classes_have_the_labels_of_the_version_that_answers(v2: ApiClient) -> None:
    outputs = [{"name": "y", "parameters": {"classification": 2}}]
    (found,) = (await v2.post(INFER, make_request(outputs=outputs))).json["outputs"]
    assert found == {"name": "y", "datatype": "BYTES", "shape": [1, 2], "data": ["4.000000:3", "1.000000:1"]}
    one = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [9, 0, 0, 0]}
    (found,) = (await v2.post(INFER, json.dumps({"inputs": [one], "outputs": outputs}).encode())).json["outputs"]
    assert found["data"][0] == "9.000000:0:label-of-1.0.0"


async def test_one_element_of_bytes_is_a_picture(v2: ApiClient) -> None:
    picture = b"\xff\xd8 a picture"
    raw = struct.pack("<I", len(picture)) + picture
    one = {"name": "any", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [one]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    (output,) = (await v2.post(INFER, head + raw, headers=headers)).json["outputs"]
    predicted = await v2.post("/v1/models/detector/predict", picture)
    assert (output["name"], output["datatype"], output["shape"]) == ("answer", "BYTES", [1])
    assert json.loads(output["data"][0]) == predicted.json["answer"]
    head = json.dumps({"inputs": [one], "outputs": [{"name": "y"}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert "'answer'" in get_error(await v2.post(INFER, head + raw, headers=headers), 400)


async def test_what_is_wrong_is_a_4xx_with_one_text(v2: ApiClient, slots: Slots) -> None:
    wrong = json.dumps({"inputs": [{"name": "z", "shape": [1], "datatype": "FP32", "data": [1]}]}).encode()
    assert "expected input x" in get_error(await v2.post(INFER, wrong), 400)
    assert "inference request" in get_error(await v2.post(INFER, b""), 400)
    assert "inference request" in get_error(await v2.post(INFER, b"\xff" * 1000), 400)
    assert "Content-Encoding" in get_error(await v2.post(INFER, b"x", headers={"Content-Encoding": "br"}), 415)
    assert "9.9.9" in get_error(await v2.post("/v2/models/detector/versions/9.9.9/infer", make_request()), 404)
    for path in ("/v2/models/other", "/v2/models/detector/versions/2", "/v2/models/other/ready", "/v2/nothing"):
        get_error(await v2.get(path), 404)
    get_error(await v2.post("/v2/models/other/infer", make_request()), 404)
    get_error(await v2.get(INFER), 405)
    get_error(await v2.post("/v2/repository/index", b"[]"), 400)
    get_error(await v2.post("/v2/repository/index", bytes(100_000)), 413)
    assert slots.gate.taken == 0
    assert (await v2.post(INFER, make_request())).status == 200


async def test_without_a_model_it_lives_and_is_not_ready(slots: Slots, open_client: OpenClient) -> None:
    async with open_client(slots) as client:
        assert (await client.get("/v2/health/live")).status == 200
        assert (await client.get("/v2/health/ready")).status == 503
        assert (await client.get("/v2/health/ready")).headers["Retry-After"] == "5"
        assert "PLEASE SET AI MODEL FIRST" in get_error(await client.post(INFER, make_request()), 503)
        assert (await client.post("/v2/repository/index", b"")).json == []


async def test_every_v2_route_wants_the_token(slots: Slots, open_client: OpenClient) -> None:
    async with open_client(slots, ApiSettings(access=Access(token="secret"))) as client:
        assert "token" in get_error(await client.get("/v2/health/live"), 401)
        get_error(await client.post(LOAD, b""), 401)
        assert (await client.get("/v2", headers={"Authorization": "Bearer secret"})).status == 200


async def test_a_full_queue_is_503_with_retry_after(
    v2: ApiClient, slots: Slots, engine: FakeEngine, until: Until
) -> None:
    engine.infer_s = 30.0
    waiting = [asyncio.create_task(v2.post(INFER, make_request())) for _ in range(4)]
    await until(lambda: slots.gate.taken == 4)
    answered = await v2.post(INFER, make_request())
    assert "queue_full" in get_error(answered, 503)
    assert answered.headers["Retry-After"]
    for task in waiting:
        task.cancel()
    await until(lambda: slots.gate.taken == 0)
    engine.infer_s = 0.0
    assert (await v2.post(INFER, make_request())).status == 200


async def test_a_caller_who_leaves_gives_its_place_back(
    v2: ApiClient, slots: Slots, engine: FakeEngine, until: Until
) -> None:
    engine.infer_s = 5.0
    asking = asyncio.create_task(v2.post(INFER, make_request()))
    await until(lambda: slots.gate.taken == 1)
    asking.cancel()
    await until(lambda: slots.gate.taken == 0)


# --- the repository ---------------------------------------------------------------------------------------------------
async def test_a_stored_version_answers_under_its_name_once_it_is_loaded(v2: ApiClient, slots: Slots) -> None:
    assert await read_index(v2) == {
        "detector@1.0.0": ("READY", ""),
        "detector@1.9.0": ("UNAVAILABLE", "unloaded"),
        "detector@1.10.0": ("UNAVAILABLE", "unloaded"),
        "gauge@1.0.0": ("UNAVAILABLE", "unloaded"),
    }
    assert (await v2.post("/v2/repository/models/detector@1.9.0/load", b"")).status == 200
    assert (await v2.post("/v2/models/detector/versions/1.9.0/infer", make_request())).json["model_version"] == "1.9.0"
    assert (await v2.post(INFER, make_request())).json["model_version"] == "1.0.0", "active has not moved"
    said = (await v2.post("/v1/models/detector@1.9.0/predict")).json
    assert (said["version"], said["answer"]["objects"][0]["label"]) == ("1.9.0", "label-of-1.9.0")
    assert (await v2.get("/v2/models/detector")).json["versions"] == ["1.0.0", "1.9.0"]
    assert list(await read_index(v2, ready=True)) == ["detector@1.0.0", "detector@1.9.0"]
    assert (await v2.post("/v2/repository/models/detector@1.9.0/unload", b"")).status == 200
    assert (await v2.post("/v1/models/detector@1.9.0/predict")).status == 404
    assert (await read_index(v2))["detector@1.9.0"] == ("UNAVAILABLE", "unloaded")
    assert slots.get_models()["detector"].version.version == "1.0.0"


@pytest.mark.parametrize(
    ("parameters", "version"),
    [
        ({}, "1.10.0"),
        ({"version": "1.9.0"}, "1.9.0"),
        ({"config": json.dumps({"version": "1.9.0"})}, "1.9.0"),
        ({"config": json.dumps({"version_policy": {"specific": {"versions": ["1.9.0"]}}, "backend": "x"})}, "1.9.0"),
        ({"unload_dependents": False}, "1.10.0"),
    ],
)
async def test_parameters_may_name_the_version_and_none_means_the_highest(
    v2: ApiClient, parameters: dict[str, Any], version: str
) -> None:
    assert (await v2.post(LOAD, json.dumps({"parameters": parameters}).encode())).status == 200
    assert list(await read_index(v2, ready=True)) == ["detector@1.0.0", f"detector@{version}"]


async def test_the_active_version_cannot_be_unloaded_and_loading_it_does_nothing(
    v2: ApiClient, engine: FakeEngine
) -> None:
    assert (await v2.post("/v2/repository/models/detector@1.0.0/load", b"")).status == 200
    assert len(engine.started) == 1
    for body in (b"", b'{"parameters": {"version": "1.0.0"}}'):
        assert "active" in get_error(await v2.post(UNLOAD, body), 409)
    assert (await v2.post(INFER, make_request())).status == 200


async def test_unload_without_a_version_takes_every_resident_and_no_more(v2: ApiClient) -> None:
    for version in ("1.9.0", "1.10.0"):
        await v2.post(f"/v2/repository/models/detector@{version}/load", b"")
    assert (await v2.post(UNLOAD, b"")).status == 200
    assert list(await read_index(v2, ready=True)) == ["detector@1.0.0"]
    assert (await v2.post("/v2/repository/models/detector@1.9.0/unload", b"")).status == 200, "again is fine"


async def test_what_is_not_stored_or_not_meant_is_refused(v2: ApiClient) -> None:
    get_error(await v2.post("/v2/repository/models/detector@7/load", b""), 404)
    get_error(await v2.post("/v2/repository/models/other/load", b""), 404)
    get_error(await v2.post("/v2/repository/models/..%2f..%2fetc/load", b""), 404)
    get_error(await v2.post("/v2/repository/models/other/unload", b""), 404)
    for parameters in (
        {"file:1/model.onnx": "AAAA"},
        {"config": "{"},
        {"config": '{"version": "1.9.0"}', "version": "1.10.0"},
        {"config": '{"version_policy": {"specific": {"versions": [1, 2]}}}'},
        {"version": ["1.9.0"]},
    ):
        get_error(await v2.post(LOAD, json.dumps({"parameters": parameters}).encode()), 400)
    assert list(await read_index(v2, ready=True)) == ["detector@1.0.0"]


async def test_a_version_that_does_not_load_says_why_and_hurts_nobody(
    v2: ApiClient, engine: FakeEngine, store: Store
) -> None:
    broken, ours = store.versions[1], store.versions[2]
    engine.failures = {
        broken.identity: [ModelUnreadable("cannot read /var/lib/secret/model.onnx")],
        ours.identity: [WorkerStartFailed("no memory")],
    }
    for version, status, code in ((broken, 409, "model_unreadable"), (ours, 409, "worker_start_failed")):
        answered = await v2.post(f"/v2/repository/models/{version}/load", b"")
        assert code in get_error(answered, status)
        assert b"secret" not in answered.body
        state, reason = (await read_index(v2))[str(version)]
        assert state == "UNAVAILABLE"
        assert reason.startswith(code)
    get_error(await v2.get("/v2/models/detector/versions/1.9.0"), 404)
    assert (await v2.post(INFER, make_request())).status == 200
    assert (await v2.post(f"/v2/repository/models/{broken}/load", b"")).status == 200, "a second try may succeed"
    assert (await read_index(v2))[str(broken)] == ("READY", "")


async def test_a_resident_that_becomes_active_is_let_go_of(
    v2: ApiClient, slots: Slots, engine: FakeEngine, store: Store, until: Until
) -> None:
    await v2.post("/v2/repository/models/detector@1.9.0/load", b"")
    await slots.switch(store.versions[1])
    await until(lambda: engine.started[1].closed)
    assert (await v2.post("/v2/models/detector/versions/1.9.0/infer", make_request())).status == 200
    assert list(await read_index(v2, ready=True)) == ["detector@1.9.0"]
    assert not engine.started[2].closed


async def test_a_resident_of_a_model_without_an_active_version_answers_to_its_bare_name(v2: ApiClient) -> None:
    gauge = "/v2/models/gauge"
    get_error(await v2.post(gauge + "/infer", make_request()), 404)
    await v2.post("/v2/repository/models/gauge/load", b"")
    assert (await v2.post(gauge + "/infer", make_request())).json["model_name"] == "gauge"
    assert (await v2.get(gauge)).json["versions"] == ["1.0.0"]
    assert (await v2.post("/score")).status == 200, "the only active one still answers where none is named"
    await v2.post("/v2/repository/models/gauge/unload", b"")
    get_error(await v2.get(gauge), 404)


async def test_a_resident_whose_worker_dies_comes_back(v2: ApiClient, engine: FakeEngine, until: Until) -> None:
    await v2.post("/v2/repository/models/detector@1.9.0/load", b"")
    engine.started[1].die()
    await until(lambda: len(engine.started) == 3)
    assert (await v2.post("/v2/models/detector/versions/1.9.0/infer", make_request())).status == 200


async def test_loads_are_bounded_by_number_and_by_memory(
    slots: Slots, engine: FakeEngine, make_version: MakeVersion, open_client: OpenClient
) -> None:
    store = Store([make_version(f"1.{number}.0") for number in range(RESIDENTS_MAX + 2)])
    await slots.switch(store.versions[0])
    async with open_client(slots, store=store) as client:
        engine.room = False
        assert "memory" in get_error(await client.post(LOAD, b""), 409)
        engine.room = True
        statuses = [(await client.post(f"/v2/repository/models/{one}/load", b"")).status for one in store.versions]
        assert statuses == [200] * (RESIDENTS_MAX + 1) + [409]
        assert len(engine.started) == RESIDENTS_MAX + 1


async def test_the_index_shows_what_is_being_loaded(v2: ApiClient, engine: FakeEngine, until: Until) -> None:
    engine.start_s = 0.3
    loading = asyncio.create_task(v2.post("/v2/repository/models/detector@1.9.0/load", b""))
    while (await read_index(v2))["detector@1.9.0"][0] != "LOADING":
        assert not loading.done(), "it loaded without ever being shown"
    assert (await loading).status == 200


def test_versions_are_ordered_as_people_read_them() -> None:
    versions = ["1.10.0", "1.9.0", "1.9.0-rc1", "2", "1.9.1"]
    assert sorted(versions, key=order_version) == ["1.9.0", "1.9.0-rc1", "1.9.1", "1.10.0", "2"]


# --- models that answer tensors only ----------------------------------------------------------------------------------
async def test_a_model_of_no_known_family_answers_tensors_and_refuses_pictures(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion
) -> None:
    known = make_version()
    spec = ModelSpec(stages=(make_tensors_stage("m.onnx"),))
    await slots.switch(StoredVersion("odd", "1.0.0", "odd:1.0.0", known.folder, spec))
    async with open_client(slots) as client:
        assert (await client.post("/v2/models/odd/infer", make_request())).json["outputs"][0]["data"] == DATA
        assert slots.get_health("odd").answered == 1
        for path in ("/score", "/v1/models/odd/predict"):
            answered = await client.post(path)
            assert (answered.status, answered.code) == (400, "request_invalid")
            assert "/v2/models/odd/infer" in answered.json["error"]["message"]


# --- the description --------------------------------------------------------------------------------------------------
async def test_answers_are_as_openapi_says(v2: ApiClient) -> None:
    document = (await v2.get("/openapi.json")).json
    body, headers = make_binary({"name": "y", "parameters": {"binary_data": False}})
    rows = [
        ("/v2", await v2.get("/v2")),
        ("/v2/health/live", await v2.get("/v2/health/live")),
        ("/v2/health/ready", await v2.get("/v2/health/ready")),
        ("/v2/models/{name}", await v2.get("/v2/models/detector")),
        ("/v2/models/{name}", await v2.get("/v2/models/other")),
        ("/v2/models/{name}/config", await v2.get("/v2/models/detector/config")),
        ("/v2/models/{name}/versions/{version}/ready", await v2.get("/v2/models/detector/versions/1.0.0/ready")),
        ("/v2/models/{name}/infer", await v2.post(INFER, body, headers=headers)),
        ("/v2/models/{name}/infer", await v2.post(INFER, make_request())),
        ("/v2/models/{name}/infer", await v2.post(INFER, b"")),
        ("/v2/repository/index", await v2.post("/v2/repository/index", b"")),
        ("/v2/repository/models/{name}/load", await v2.post(LOAD, b"")),
        ("/v2/repository/models/{name}/unload", await v2.post("/v2/repository/models/detector@1.0.0/unload", b"")),
    ]
    for path, answered in rows:
        (operation,) = document["paths"][path].values()
        schema = operation["responses"][str(answered.status)]["content"]["application/json"]["schema"]
        jsonschema.validate(answered.json, {**schema, "components": document["components"]})
    (infer,) = document["paths"]["/v2/models/{name}/infer"].values()
    schema = infer["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate(json.loads(make_request()), {**schema, "components": document["components"]})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"inputs": [{"name": 1}]}, {**schema, "components": document["components"]})
