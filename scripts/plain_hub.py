"""The embedded hub with MQTT over plain TCP, which the command line does not offer: for the load bench.

Usage: python scripts/plain_hub.py DATA READY_FILE
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from edgeferry.app.hub import HubSettings, open_hub
from edgeferry.app.logging import configure_logging
from edgeferry.storage.files import write_atomically


async def run(settings: HubSettings, ready_file: Path) -> None:
    """Serves until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with open_hub(settings) as hub:
        facts = {
            "pid": os.getpid(),
            "mqtt_port": hub.mqtt_port,
            "service_url": hub.service_url,
            "ca_path": str(hub.ca_pem_path.absolute()),
        }
        write_atomically(ready_file, json.dumps(facts).encode())
        await stop.wait()


if __name__ == "__main__":
    configure_logging(as_json=False)
    plain = HubSettings(Path(sys.argv[1]), mqtt_port=0, https_port=0, mqtt_tls=False)
    asyncio.run(run(plain, Path(sys.argv[2])))
