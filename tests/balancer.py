"""A TCP balancer: each new connection goes to the next server that takes it, bytes go through as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

Address = tuple[str, int]


class Balancer:
    """Round robin over `servers`, which may be changed at any time. `port` is its own."""

    def __init__(self, servers: Sequence[Address]) -> None:
        self.servers = list(servers)
        self.port = 0
        self.chosen: list[Address] = []
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries one connection until either side ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if (server := await self._connect()) is not None:
                await _carry((reader, writer), server)
        except asyncio.CancelledError:
            pass  # the balancer ends; asyncio's server tells of a cancelled handler as of a defect
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def stop(self) -> None:
        """Ends every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in range(len(self.servers)):
            address = self.servers[self._turn % len(self.servers)]
            self._turn += 1
            try:
                opened = await asyncio.open_connection(*address)
            except OSError:
                continue
            self.chosen.append(address)
            return opened
        return None


async def _carry(
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter], server: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    ways = [asyncio.create_task(_pipe(client[0], server[1])), asyncio.create_task(_pipe(server[0], client[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        server[1].transport.abort()
        await asyncio.gather(*ways, return_exceptions=True)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        return


@asynccontextmanager
async def open_balancer(
    servers: Sequence[Address], *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Balancer]:
    """A balancer that listens while the block runs."""
    balancer = Balancer(servers)
    server = await asyncio.start_server(balancer.take, host, port, backlog=1024)
    balancer.port = server.sockets[0].getsockname()[1]
    try:
        yield balancer
    finally:
        server.close()
        await balancer.stop()
