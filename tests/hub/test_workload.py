"""The workload API on its socket, with our own client."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeferry.app.hub import HubSettings, open_hub
from edgeferry.errors import EdgeferryError
from edgeferry.transport.workload import Workload
from edgeferry.wire.iothub_auth import get_string_to_sign, make_signature
from edgeferry.wire.service_api import Identity


async def test_a_module_gets_the_trust_bundle_and_signatures_of_its_own_generation(tmp_path: Path) -> None:
    path = tmp_path / "workload.sock"
    settings = HubSettings(tmp_path / "hub", mqtt_port=0, https_port=0, workload_socket=path, workload_device="d")
    async with open_hub(settings) as hub:
        await hub.add_module("d", "m")
        record = await hub.rooms.registry.read(Identity("d", "m"))
        assert path.stat().st_mode & 0o777 == 0o600
        workload = Workload(f"unix://{path}")
        assert await workload.fetch_trust_bundle() == hub.ca_pem_path.read_bytes()
        data = get_string_to_sign("host/devices/d/modules/m", 2_000_000_000)
        signed = await workload.sign("m", record.generation_id, data=data)
        assert signed == make_signature(record.primary_key, data)
        for module, generation in (("m", "1"), ("other", record.generation_id)):
            with pytest.raises(EdgeferryError):
                await workload.sign(module, generation, data=data)
    async with open_hub(settings) as hub:  # the socket of the hub before is replaced
        assert await Workload(f"unix://{path}").fetch_trust_bundle()
