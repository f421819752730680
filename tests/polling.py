"""Waiting for what will be true soon, with a deadline instead of a sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


async def poll(check: Callable[[], Awaitable[Any]], timeout_s: float = 15.0) -> Any:
    """The first true outcome of `check`."""
    async with asyncio.timeout(timeout_s):
        while not (found := await check()):
            await asyncio.sleep(0.05)
        return found
