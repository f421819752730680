"""A method whose request is lost between two connections of one session reaches the device while its caller waits."""

from __future__ import annotations

import asyncio

from edgeferry.app.hub import RunningHub
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_topics import METHOD_FILTER
from edgeferry.wire.service_api import Identity
from raw_mqtt import open_raw
from service_view import open_service_view


async def test_a_method_that_was_not_acknowledged_is_sent_again_after_a_renewal(hub: RunningHub) -> None:
    text = await hub.add_module("d", "a")
    async with open_service_view(hub) as view:
        async with open_raw(hub) as client:
            await client.connect(text)
            await client.subscribe(METHOD_FILTER)
            calling = asyncio.create_task(view.call_method(Identity("d", "a"), "m", 1, timeout_s=8))
            first = await client.receive()
            assert isinstance(first, mqtt.Publish) and first.packet_id is not None, "sent at the QoS that was granted"
            await client.send(mqtt.Disconnect())
        async with open_raw(hub) as client:
            await client.connect(text)
            again = await client.receive()
            assert isinstance(again, mqtt.Publish) and (again.topic, again.dup) == (first.topic, True)
            rid = again.topic.rpartition("=")[2]
            await client.send(mqtt.Publish(f"$iothub/methods/res/200/?$rid={rid}", b"2", 0))
            assert await calling == {"status": 200, "payload": 2}
