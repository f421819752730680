"""The API over real HTTP, answered by the engine in memory: what a well-behaved client gets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from edgeferry.errors import ModelUnsupported
from edgeferry.runtime.child import Terms
from edgeferry.serve.fake import FakeEngine
from edgeferry.serve.slots import Slots
from edgeferry.twin.status import DeviceStatus, LedgerStatus
from edgeferry.vision.answer import Answer, ClassificationAnswer, ClassScore, DetectionAnswer

if TYPE_CHECKING:
    from tests.serve.conftest import ApiClient, MakeVersion, OpenClient, Until


def _nothing(_: bytes, __: Terms) -> Answer:
    return DetectionAnswer(objects=())


def _gauge(_: bytes, __: Terms) -> Answer:
    return ClassificationAnswer(classes=(ClassScore(class_index=1, label="normal", score=0.75),))


async def test_score_answers_in_the_guides_shape(client: ApiClient, slots: Slots, make_version: MakeVersion) -> None:
    await slots.switch(make_version(label="cat"))
    answered = await client.post("/score", headers={"Content-Type": "image/jpeg"})
    assert answered.status == 200
    assert answered.headers["Content-Type"] == "application/json"
    assert answered.json == [{"Class": "cat", "Score": 0.9, "Location": [0.0, 0.0, 1.0, 1.0]}]


async def test_score_of_nothing_is_an_empty_array(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    engine.answer = _nothing
    await slots.switch(make_version())
    assert (await client.post("/score")).json == []
    assert (await client.post("/score?format=classic")).json == []
    lva = await client.post("/score?format=lva")
    assert (lva.status, lva.body) == (204, b"")


async def test_the_classic_shape_is_an_array_of_the_samples_strings(
    client: ApiClient, slots: Slots, make_version: MakeVersion
) -> None:
    await slots.switch(make_version(label="cat"))
    answered = await client.post("/score?format=classic")
    assert answered.json == ["{'Class': 'cat','Score': '0.9','Location': '[  0.   0. 480. 640.]'}"]


async def test_a_class_is_located_in_the_whole_picture(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    engine.answer = _gauge
    await slots.switch(make_version())
    assert (await client.post("/score")).json == [{"Class": "normal", "Score": 0.75, "Location": [0, 0, 1, 1]}]
    tag = {"value": "normal", "confidence": 0.75}
    assert (await client.post("/score?format=lva")).json == {
        "inferences": [{"type": "classification", "classification": {"tag": tag}}]
    }


async def test_the_lva_shape_follows_its_schema(client: ApiClient, slots: Slots, make_version: MakeVersion) -> None:
    await slots.switch(make_version(label="cat"))
    (found,) = (await client.post("/score?format=lva", headers={"Content-Type": "image/bmp"})).json["inferences"]
    assert found == {
        "type": "entity",
        "entity": {"tag": {"value": "cat", "confidence": 0.9}, "box": {"l": 0.0, "t": 0.0, "w": 1.0, "h": 1.0}},
    }


async def test_predict_answers_typed_with_model_version_and_timings(
    client: ApiClient, slots: Slots, make_version: MakeVersion
) -> None:
    await slots.switch(make_version("1.1.0", label="leak"))
    for name in ("detector", "detector@1.1.0", "detector%401.1.0"):
        answered = await client.post(f"/v1/models/{name}/predict")
        assert answered.status == 200
        said = answered.json
        assert (said["model"], said["version"]) == ("detector", "1.1.0")
        assert said["picture"] == {"width": 640, "height": 480}
        assert said["answer"]["task"] == "detection"
        assert said["answer"]["objects"][0]["label"] == "leak"
        assert set(said["timings_ms"]) == {"queue", "infer", "total"}


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/png;q=0.5, image/jpeg", "image/jpeg"),
        ("application/json;q=0.9, image/png", "image/png"),
        ("*/*", "application/json"),
        ("image/png;q=0.1, application/json", "application/json"),
        ("text/html", "application/json"),
        ("image/png;q=nonsense", "image/png"),
    ],
)
async def test_predict_draws_when_a_picture_is_asked_for(
    client: ApiClient, slots: Slots, make_version: MakeVersion, accept: str, media_type: str
) -> None:
    await slots.switch(make_version())
    answered = await client.post("/v1/models/detector/predict", headers={"Accept": accept})
    assert answered.headers["Content-Type"] == media_type
    if media_type.startswith("image/"):
        assert answered.body == b"picture drawn as " + media_type.removeprefix("image/").encode()
        assert answered.headers["X-Edgeferry-Model"] == "detector@1.0.0"


async def test_before_a_model_is_set_the_answer_says_so_in_the_guides_words(client: ApiClient) -> None:
    for path in ("/score", "/v1/models/detector/predict"):
        answered = await client.post(path)
        assert (answered.status, answered.code) == (503, "model_not_ready")
        assert answered.json["error"]["message"] == "PLEASE SET AI MODEL FIRST"
        assert int(answered.headers["Retry-After"]) > 0


async def test_among_several_models_the_default_answers_else_it_is_ambiguous(
    client: ApiClient, slots: Slots, make_version: MakeVersion
) -> None:
    await slots.switch(make_version(label="worker", model="detector"))
    await slots.switch(make_version(label="low", model="gauge"))
    answered = await client.post("/score")
    assert (answered.status, answered.code) == (409, "model_ambiguous")
    assert "detector, gauge" in answered.json["error"]["message"]
    slots.default_model = "gauge"
    assert (await client.post("/score")).json[0]["Class"] == "low"
    assert (await client.post("/v1/models/detector/predict")).json["answer"]["objects"][0]["label"] == "worker"
    slots.default_model = "not_yet_here"
    assert (await client.post("/score")).status == 503


async def test_an_unknown_model_or_version_is_not_found_and_the_choices_are_named(
    client: ApiClient, slots: Slots, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    for name in ("other", "detector@2.0.0", "@", "detector@@1.0.0", "..", "%2e%2e%2f", "DETECTOR"):
        answered = await client.post(f"/v1/models/{name}/predict")
        assert answered.status == 404, name
        assert answered.code in {"model_not_found", "not_found"}
        if answered.code == "model_not_found":
            assert "detector" in answered.json["error"]["message"]
    assert slots.gate.taken == 0


async def test_health_is_always_there_and_readiness_follows_the_workers(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    assert ((await client.get("/healthz")).status, (await client.get("/readyz")).status) == (200, 503)
    await slots.switch(make_version())
    assert ((await client.get("/readyz")).status, (await client.get("/readyz")).body) == (200, b"ready\n")
    engine.start_s = 60
    engine.started[0].die()
    await until(lambda: slots.get_health("detector").deaths == 1)
    assert ((await client.get("/healthz")).status, (await client.get("/readyz")).status) == (200, 503)


async def test_a_full_queue_is_503_at_once_with_retry_after(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version())
    engine.infer_s = 0.5
    running = [asyncio.create_task(client.post("/score")) for _ in range(4)]
    await until(lambda: slots.gate.taken == 4)
    refused = await client.post("/score")
    assert (refused.status, refused.code) == (503, "queue_full")
    assert refused.headers["Retry-After"] == "1"
    assert [answered.status for answered in await asyncio.gather(*running)] == [200] * 4


async def test_a_lost_worker_is_503_and_the_next_request_is_answered(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version())
    engine.infer_s = 30
    lost = asyncio.create_task(client.post("/score"))
    await until(lambda: engine.started[0].running == 1)
    engine.infer_s = 0
    engine.started[0].die()
    assert ((await lost).status, (await lost).code, (await lost).headers["Retry-After"]) == (503, "worker_lost", "2")
    assert (await client.post("/score")).status == 200


async def test_a_model_at_fault_is_500_and_its_message_stays_in_the_log(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    def fail(_: bytes, __: Terms) -> Answer:
        raise ModelUnsupported("no boxes among the outputs of /storage/secret/model.onnx")

    def fall(_: bytes, __: Terms) -> Answer:
        raise ZeroDivisionError("/storage/secret")

    await slots.switch(make_version())
    for engine.answer, code in ((fail, "model_unsupported"), (fall, "invariant_broken")):
        answered = await client.post("/score")
        assert (answered.status, answered.code) == (500, code)
        assert b"secret" not in answered.body
    assert slots.gate.taken == 0


async def test_metrics_count_requests_inferences_and_models(
    client: ApiClient, slots: Slots, make_version: MakeVersion
) -> None:
    await slots.switch(make_version("1.1.0"))
    await client.post("/score?api_key=secret")
    await client.post("/v1/models/nothing-like-this/predict")
    answered = await client.get("/metrics")
    assert answered.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = answered.body.decode().splitlines()
    assert 'edgeferry_requests_total{route="/score",status="200"} 1.0' in lines
    assert 'edgeferry_requests_total{route="/v1/models/{name}/predict",status="404"} 1.0' in lines
    assert 'edgeferry_inference_seconds_count{model="detector",version="1.1.0"} 1.0' in lines
    assert 'edgeferry_model_info{model="detector",version="1.1.0"} 1.0' in lines
    assert 'edgeferry_worker_deaths_total{model="detector"} 0.0' in lines
    assert "edgeferry_queue 0.0" in lines
    assert b"secret" not in answered.body
    assert b"nothing-like-this" not in answered.body


class _Agent:
    def get_status(self) -> DeviceStatus:
        return DeviceStatus(
            device="d1",
            role="both",
            connected=True,
            observed=3,
            ledger=LedgerStatus(total_bytes=70),
            disk_free_bytes=9,
        )


async def test_metrics_show_what_the_agent_says(slots: Slots, open_client: OpenClient) -> None:
    async with open_client(slots, device=_Agent()) as client:
        lines = (await client.get("/metrics")).body.decode().splitlines()
    assert {"edgeferry_connected 1.0", "edgeferry_wire_bytes_total 70.0", "edgeferry_disk_free_bytes 9.0"} <= set(lines)


async def test_many_requests_go_over_one_kept_connection(
    client: ApiClient, slots: Slots, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    ports: set[Any] = set()
    for _ in range(5):
        async with client.session.post(client.url + "/score", data=b"cat") as response:
            assert response.connection is None or response.connection.transport is not None
            ports.add(response.connection and response.connection.transport.get_extra_info("sockname"))
            await response.read()
    assert len(ports - {None}) <= 1
