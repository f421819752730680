"""The process between two TUN devices: reads packets on either side and writes them on the other when they are due.

What this file leaves to others: when a packet is due (`pipe.py`), namespaces and devices (`open.py`).

Rules:
- Due times are computed, not slept: a wake-up that comes late delays a packet and never those behind it.
- One JSON line on the control socket asks, one answers. When the socket closes the pump ends, and with it the link
  and whatever still runs on its sides: a test that dies leaves nothing behind.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from link.pipe import Pipe
from link.profiles import Profile

_PACKET_MAX_BYTES = 65536
_READS_AT_ONCE = 64
_LINE_MAX_BYTES = 4096
UP, DOWN = "up", "down"
"""From left to right, and from right to left: a device lives on the left."""


class Pump:
    """Two pipes between two devices, and what is under way."""

    def __init__(self, profile: Profile, seed: int, devices: tuple[int, int]) -> None:
        left, right = devices
        self._pipes = {UP: Pipe(profile, seed), DOWN: Pipe(profile, seed + 1)}
        self._by_source = {left: (self._pipes[UP], right), right: (self._pipes[DOWN], left)}
        self._under_way: list[tuple[float, int, Pipe, int, bytes]] = []
        self._orders: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()

    def read(self, device: int, now: float) -> None:
        """Takes what a side has sent."""
        pipe, target = self._by_source[device]
        for _ in range(_READS_AT_ONCE):
            try:
                packet = os.read(device, _PACKET_MAX_BYTES)
            except BlockingIOError:
                return
            due_at = pipe.put(packet, now)
            if due_at is not None:
                heapq.heappush(self._under_way, (due_at, next(self._numbers), pipe, target, packet))

    def run_due(self, now: float) -> float | None:
        """Does what is due; returns when to be called next."""
        while self._orders and self._orders[0][0] <= now:
            self._obey(heapq.heappop(self._orders)[2])
        while self._under_way and self._under_way[0][0] <= now:
            due_at, _, pipe, target, packet = heapq.heappop(self._under_way)
            pipe.take(packet, due_at)
            os.write(target, packet)
        return min((queue[0][0] for queue in (self._under_way, self._orders) if queue), default=None)

    def answer(self, question: dict[str, Any], now: float) -> Any:
        """What the control socket asks for."""
        if question["do"] == "counts":
            return {name: _show_pipe(pipe, question["traces"]) for name, pipe in self._pipes.items()}
        heapq.heappush(self._orders, (now + question["after_s"], next(self._numbers), question["do"]))
        self.run_due(now)
        return {}

    def _obey(self, order: str) -> None:
        for pipe in self._pipes.values():
            pipe.cut() if order == "cut" else pipe.restore()
        if order == "cut":
            for _, _, pipe, _, packet in self._under_way:
                pipe.lose(packet)
            self._under_way.clear()


def _show_pipe(pipe: Pipe, traces: bool) -> dict[str, Any]:
    flows = [{**flow._asdict(), **_show_flow(asdict(found), traces)} for flow, found in pipe.flows.items()]
    return {"dropped": asdict(pipe.dropped), "lost": asdict(pipe.lost), "flows": flows}


def _show_flow(found: dict[str, Any], traces: bool) -> dict[str, Any]:
    return {"entered": found["entered"], "arrived": found["arrived"], "stream_bytes": found["stream_bytes"]} | (
        {"trace": found["trace"]} if traces else {"trace": []}
    )


def run(pump: Pump, control: socket.socket, devices: tuple[int, int]) -> None:
    """Pumps until the control socket closes."""
    poll = select.epoll()
    for handle in (*devices, control.fileno()):
        poll.register(handle, select.EPOLLIN)
    lines = _read_lines(control)
    while True:
        next_at = pump.run_due(time.monotonic())
        wait_s = None if next_at is None else max(0.0, next_at - time.monotonic())
        for handle, _ in poll.poll(wait_s):
            if handle != control.fileno():
                pump.read(handle, time.monotonic())
                continue
            question = next(lines, None)
            if question is None:
                return
            answer = pump.answer(json.loads(question), time.monotonic())
            control.sendall(json.dumps(answer).encode() + b"\n")


def _read_lines(control: socket.socket) -> Iterator[bytes]:
    """A question comes whole: whoever asks waits for its answer before the next."""
    while line := control.recv(_LINE_MAX_BYTES):
        yield line


def _remove_namespace(name: str) -> None:
    listed = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True)
    for pid in listed.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def main() -> None:
    """Arguments: JSON with profile, seed, file numbers (control, left, right) and the namespaces' names."""
    told = json.loads(sys.argv[1])
    devices = (told["left"], told["right"])
    with socket.socket(fileno=told["control"]) as control:
        try:
            run(Pump(Profile(**told["profile"]), told["seed"], devices), control, devices)
        finally:
            for name in told["namespaces"]:
                _remove_namespace(name)


if __name__ == "__main__":
    main()
