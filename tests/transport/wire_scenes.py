"""Transfers over a loopback of our own, and what each of them put on the wire: run in a network namespace, as root.

Prints JSON: scene -> [what the meter says, what the interface has counted]. The interface has frames of at most 1500
bytes and no offloading, as a thin link has; a loopback counts IP bytes, without a header of Ethernet.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.transport.raw_hub import open_raw_hub
from tests.transport.raw_server import make_answer

from edgeferry.errors import HubUnreachable, LinkBroken, LinkDown
from edgeferry.storage.hub_certificates import CertificateFiles, ensure_certificates
from edgeferry.transport.http import HttpClient, HttpSettings, open_http
from edgeferry.transport.mqtt import HubIdentity, open_hub_connection
from edgeferry.transport.wire_bytes import WireMeter

DATA = bytes(range(256)) * 4096
_SIOCETHTOOL, _OFFLOADS = 0x8946, (0x1F, 0x24, 0x2C)
"""linux/ethtool.h: ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO."""


@dataclass(frozen=True)
class Certificates:
    """Of the server that is trusted, and of another authority."""

    own: CertificateFiles
    foreign: CertificateFiles


Scene = Callable[[WireMeter, Certificates], Awaitable[None]]


# --- a server ---------------------------------------------------------------------------------------------------------
@asynccontextmanager
async def serve(files: CertificateFiles | None = None, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Answers /big and /small and takes uploads; /closed hangs up after its answer, /reset in the middle of it."""
    tls = None
    if files is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(files.chain, files.key)
    server = await asyncio.start_server(talk, host, 0, ssl=tls)
    try:
        place = f"[{host}]" if ":" in host else host
        yield f"{'https' if tls else 'http'}://{place}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection of `serve`."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            if head.startswith("PUT"):
                await reader.readexactly(len(DATA))
            kept = "close" if path == "/closed" else "keep-alive"
            writer.write(make_answer(200, DATA if path in ("/big", "/reset") else b"small", connection=kept))
            if path == "/reset":
                await asyncio.sleep(0.3)
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            await writer.drain()
            if path == "/closed":
                break
    writer.close()


# --- HTTP -------------------------------------------------------------------------------------------------------------
async def download(http: HttpClient, url: str) -> None:
    async with http.open_range(f"{url}/big") as reply:
        assert sum([len(block) async for block in reply.blocks]) == len(DATA)


async def upload(http: HttpClient, url: str) -> None:
    assert (await http.fetch(url, max_bytes=9, method="PUT", body=DATA)).status == 200


async def ask_often(http: HttpClient, url: str) -> None:
    for _ in range(100):
        await http.fetch(f"{url}/small", max_bytes=9)


async def ask_who_closes(http: HttpClient, url: str) -> None:
    for _ in range(100):
        await http.fetch(f"{url}/closed", max_bytes=9)


async def be_reset(http: HttpClient, url: str) -> None:
    with contextlib.suppress(LinkBroken):
        async with http.open_range(f"{url}/reset") as reply:
            async for _ in reply.blocks:
                await asyncio.sleep(0.01)


async def leave(http: HttpClient, url: str) -> None:
    async with http.open_range(f"{url}/big") as reply:
        here = 0
        async for block in reply.blocks:
            here += len(block)
            if here > len(DATA) // 2:
                break


async def play_once(
    play: Callable[[HttpClient, str], Awaitable[None]],
    meter: WireMeter,
    files: CertificateFiles | None = None,
    host: str = "127.0.0.1",
) -> None:
    settings = HttpSettings(ca_pem=files.authority.read_bytes() if files else None)
    async with serve(files, host) as url, open_http(settings, meter=meter) as http:
        await play(http, url)


async def play_many(meter: WireMeter, files: CertificateFiles | None) -> None:
    settings = HttpSettings(ca_pem=files.authority.read_bytes() if files else None)
    async with serve(files) as url:
        for _ in range(50):
            async with open_http(settings, meter=meter) as http:
                await http.fetch(f"{url}/small", max_bytes=9)


async def knock(meter: WireMeter) -> None:
    async with open_http(meter=meter) as http:
        for _ in range(50):
            with contextlib.suppress(LinkDown):
                await http.fetch("http://127.0.0.1:9/", max_bytes=9)


# --- the hub ----------------------------------------------------------------------------------------------------------
async def speak_to_hub(meter: WireMeter, files: CertificateFiles) -> None:
    async with open_raw_hub(files) as hub:
        identity = _make_identity(files.authority, hub.port)
        async with open_hub_connection(identity, meter=meter) as connection:
            for number in range(100):
                await connection.send_output("out", b"x" * 200, mid=str(number))


async def meet_a_stranger(meter: WireMeter, files: Certificates) -> None:
    async with open_raw_hub(files.own) as hub:
        for _ in range(5):
            with contextlib.suppress(HubUnreachable):
                async with open_hub_connection(_make_identity(files.foreign.authority, hub.port), meter=meter):
                    raise AssertionError("connected")


def _make_identity(authority: Path, port: int) -> HubIdentity:
    async def sign(data: bytes) -> str:
        return "c2ln"

    return HubIdentity("127.0.0.1", "d", sign, module="me", ca_pem=authority.read_bytes(), port=port)


# --- counting ---------------------------------------------------------------------------------------------------------
SCENES: dict[str, Scene] = {
    "a download": lambda meter, files: play_once(download, meter),
    "a download over TLS": lambda meter, files: play_once(download, meter, files.own),
    "a download over IPv6": lambda meter, files: play_once(download, meter, host="::1"),
    "an upload": lambda meter, files: play_once(upload, meter),
    "an upload over TLS": lambda meter, files: play_once(upload, meter, files.own),
    "many requests on one connection": lambda meter, files: play_once(ask_often, meter),
    "many short connections that the server closes": lambda meter, files: play_once(ask_who_closes, meter),
    "many short connections that we close": lambda meter, files: play_many(meter, None),
    "many short connections over TLS": lambda meter, files: play_many(meter, files.own),
    "a transfer that the server resets": lambda meter, files: play_once(be_reset, meter),
    "a transfer that we leave": lambda meter, files: play_once(leave, meter),
    "a hub's connection": lambda meter, files: speak_to_hub(meter, files.own),
    "a hub that does not prove its name": meet_a_stranger,
    "a door where nobody is": lambda meter, files: knock(meter),
}


def set_up_wire() -> None:
    """A loopback as a thin link would have it."""
    subprocess.run(["ip", "link", "set", "lo", "mtu", "1500", "up"], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in _OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP16x", b"lo", ctypes.addressof(value)))


def count_wire_bytes() -> int:
    """IP bytes that the loopback has carried."""
    line = next(one for one in Path("/proc/net/dev").read_text().splitlines() if one.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


async def measure(play: Scene, files: Certificates) -> tuple[int, int]:
    """What the meter says of a scene, and what the wire has carried until nothing more came."""
    meter, before, last = WireMeter(), count_wire_bytes(), -1
    await play(meter, files)
    while (now := count_wire_bytes()) != last:
        last = now
        await asyncio.sleep(0.15)
    return meter.get_bytes(), last - before


async def main(folder: Path) -> None:
    """Plays all scenes."""
    set_up_wire()
    names = ["127.0.0.1"]
    files = Certificates(*(ensure_certificates(folder / name, names, now=time.time()) for name in ("own", "foreign")))
    print(json.dumps({name: await measure(play, files) for name, play in SCENES.items()}))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
