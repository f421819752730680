"""Bare ASGI on uvicorn, over a pool of threads: the least that a server of this model can be."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline import CALLERS, Pipeline

pipeline = Pipeline()
pool = ThreadPoolExecutor(CALLERS)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """A picture in, what was found out."""
    if scope["type"] != "http":
        return
    blocks, message = [], {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        blocks.append(message.get("body", b""))
    answer = await asyncio.get_running_loop().run_in_executor(pool, pipeline, b"".join(blocks))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
