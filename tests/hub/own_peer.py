"""Our own device client as a peer: the same words and the same lines as sdk/device_peer.py.

Usage: own_peer.py string CONNECTION_STRING CA_FILE | own_peer.py edge
Words on stdin: twin, report JSON, output NAME JSON, leave, come.

A twin patch is a bell to it: `patch` holds the whole desired section that it read when the bell rang.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from edgeferry.app.device import make_open_hub
from edgeferry.config import read_device_config
from edgeferry.errors import EdgeferryError
from edgeferry.transport.mqtt import HubConnection, InputMessage, MethodCall

RETRY_S = 1.0


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


class Peer:
    """Connected as long as it is wanted; `connection` is the one that stands now."""

    def __init__(self) -> None:
        self.wanted, self.connected = asyncio.Event(), asyncio.Event()
        self.connection: HubConnection | None = None
        self.wanted.set()

    async def stay(self) -> None:
        """Comes back for as long as it is wanted."""
        environment = dict(os.environ)
        if sys.argv[1] == "string":
            environment |= {"EDGEFERRY_CONNECTION_STRING": sys.argv[2], "EdgeModuleCACertificateFile": sys.argv[3]}
        config = read_device_config(None, environment)
        open_hub = make_open_hub(config, Path(config.ca_file).read_bytes() if config.ca_file else None)
        assert open_hub is not None
        while True:
            await self.wanted.wait()
            with suppress(EdgeferryError):
                async with open_hub() as connection:
                    self.connection = connection
                    await self.tell_desired(connection)
                    self.connected.set()
                    await self.listen(connection)
            self.connected.clear()
            await asyncio.sleep(RETRY_S)

    async def listen(self, connection: HubConnection) -> None:
        """Until the connection breaks, or is not wanted any more."""
        hearing = asyncio.ensure_future(self.hear(connection))
        leaving = asyncio.ensure_future(self.be_unwanted())
        await asyncio.wait((hearing, leaving), return_when=asyncio.FIRST_COMPLETED)
        for one in (hearing, leaving):
            one.cancel()

    async def be_unwanted(self) -> None:
        while self.wanted.is_set():
            await asyncio.sleep(0.02)

    async def hear(self, connection: HubConnection) -> None:
        async for event in connection.events():
            match event:
                case MethodCall(rid, name, payload):
                    say(method=name, payload=payload)
                    await connection.answer_method(rid, 207, payload={"echo": payload})
                case InputMessage(name, body, properties):
                    say(input=name, body=body.decode(), message_id=properties.get("$.mid"))
                case _:
                    await self.tell_desired(connection)

    async def tell_desired(self, connection: HubConnection) -> None:
        say(patch=(await connection.fetch_twin())["desired"])

    async def do(self, word: str, rest: str) -> None:
        connection = self.connection
        assert connection is not None
        if word == "twin":
            say(twin=await connection.fetch_twin())
        elif word == "report":
            await connection.report(json.loads(rest))
            say(reported=True)
        elif word == "output":
            name, _, text = rest.partition(" ")
            await connection.send_output(name, text.encode(), mid="mid-1")
            say(sent=name)
        elif word == "leave":
            self.wanted.clear()
            while self.connected.is_set():
                await asyncio.sleep(0.02)
            say(left=True)
        elif word == "come":
            self.wanted.set()
            await self.connected.wait()
            say(came=True)


async def main() -> None:
    peer = Peer()
    staying = asyncio.create_task(peer.stay())
    await asyncio.wait((staying, asyncio.create_task(peer.connected.wait())), return_when=asyncio.FIRST_COMPLETED)
    if staying.done():
        staying.result()
    say(ready=True, version="ours")
    while line := await asyncio.to_thread(sys.stdin.readline):
        word, _, rest = line.strip().partition(" ")
        try:
            await peer.do(word, rest)
        except EdgeferryError as error:
            say(failed=error.code, why=error.message)


if __name__ == "__main__":
    asyncio.run(main())
