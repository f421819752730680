"""What a hub counts, read over its own door as Prometheus reads it."""

from __future__ import annotations

from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from edgeferry.app.hub import RunningHub, open_hub
from edgeferry.app.hub_settings import HubSettings
from edgeferry.wire import mqtt_packets as mqtt
from raw_mqtt import open_raw


async def fetch(hub: RunningHub, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{hub.ports.metrics}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def fetch_values(hub: RunningHub) -> dict[str, float]:
    status, text = await fetch(hub, "/metrics")
    assert status == 200
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {sample.name: sample.value for family in families for sample in family.samples}


async def test_what_happened_is_counted(tmp_path: Path) -> None:
    async with open_hub(HubSettings(tmp_path, mqtt_port=0, https_port=0, metrics_port=0)) as hub:
        text = await hub.add_module("d", "m")
        before = await fetch_values(hub)
        assert (before["edgeferry_hub_devices"], before["edgeferry_hub_devices_connected"]) == (1, 0)
        async with open_raw(hub) as client:
            await client.connect(text)
            await client.send(mqtt.Publish("devices/d/modules/m/messages/events/", b"x", 1, 1))
            assert await client.receive() == mqtt.PubAck(1)
            during = await fetch_values(hub)
        assert (during["edgeferry_hub_links"], during["edgeferry_hub_mqtt_connections"]) == (1, 1)
        assert during["edgeferry_hub_devices_connected"] == 1
        assert during["edgeferry_hub_mqtt_packets_in_total"] - before["edgeferry_hub_mqtt_packets_in_total"] == 2
        assert during["edgeferry_hub_store_jobs_total"] > before["edgeferry_hub_store_jobs_total"]
        async with open_raw(hub) as client:
            assert await client.connect(text[:-8] + "AAAAAAA=") == mqtt.ConnAck(5)
        after = await fetch_values(hub)
        assert after["edgeferry_hub_mqtt_refused_connects_total"] == 1
        assert not any(name for name in after if "m/d" in name)


async def test_a_hub_says_that_it_lives_and_that_its_store_can_be_read(tmp_path: Path) -> None:
    async with open_hub(HubSettings(tmp_path, mqtt_port=0, https_port=0, metrics_port=0)) as hub:
        assert await fetch(hub, "/healthz") == (200, "ok") and await fetch(hub, "/readyz") == (200, "ok")
        await hub.rooms.db.close()
        assert (await fetch(hub, "/healthz"))[0] == 200
        status, text = await fetch(hub, "/readyz")
        assert status == 503 and "storage" in text
        assert (await fetch(hub, "/metrics"))[0] == 200
