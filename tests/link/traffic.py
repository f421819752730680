"""Plain traffic to measure a link by: a bulk TCP transfer from right to left, and UDP datagrams from left to right.

Rules:
- Each runs as a process of its own in its namespace: `python -m link.traffic <what> ...`, a line of JSON at the end.
- Times are time.monotonic's, the same in every process of a machine.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable

PORT = 7007
_BLOCK_BYTES = 65536


def send_bulk(address: str, size_bytes: str) -> dict[str, float]:
    """Serves one TCP transfer of incompressible bytes."""
    with socket.create_server((address, PORT)) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        with connection:
            connection.sendall(os.urandom(int(size_bytes)))
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
    return {}


def take_bulk(address: str) -> dict[str, float]:
    """Takes it: how many bytes, and when the first and the last came."""
    received, first_at, last_at = 0, 0.0, 0.0
    with socket.create_connection((address, PORT)) as connection:
        while block := connection.recv(_BLOCK_BYTES):
            last_at = time.monotonic()
            first_at = first_at or last_at
            received += len(block)
    return {"received_bytes": received, "first_at": first_at, "last_at": last_at}


def send_datagrams(address: str, count: str, size_bytes: str, every_s: str) -> dict[str, float]:
    """Sends numbered UDP datagrams, each with the time of its sending."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for number in range(int(count)):
            stamp = json.dumps([number, time.monotonic()]).encode()
            out.sendto(stamp.ljust(int(size_bytes)), (address, PORT))
            time.sleep(float(every_s))
    return {"sent": int(count)}


def take_datagrams(address: str, quiet_s: str) -> dict[str, object]:
    """Takes datagrams until none comes for `quiet_s`; the seconds that each took, by its number."""
    took_s: dict[int, float] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((address, PORT))
        print("listening", flush=True)
        taken.settimeout(float(quiet_s))
        try:
            while True:
                number, sent_at = json.loads(taken.recv(_BLOCK_BYTES))
                took_s[number] = time.monotonic() - sent_at
        except TimeoutError:
            return {"took_s": took_s}


_WAYS: dict[str, Callable[..., dict[str, object]] | Callable[..., dict[str, float]]] = {
    "send-bulk": send_bulk,
    "take-bulk": take_bulk,
    "send-datagrams": send_datagrams,
    "take-datagrams": take_datagrams,
}

if __name__ == "__main__":
    print(json.dumps(_WAYS[sys.argv[1]](*sys.argv[2:])), flush=True)
