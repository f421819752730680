"""Reading everything that is stored again, now and then, and telling whose version was damaged.

What this file leaves to others: removing and mending (`storage/mending.py`), fetching what is here no more (the update
machine for what serves, from RESOLVING on; `kept.py` for what is kept beside it).

Rules:
- Slowly: one slice at a time, a rest after each, so that serving and updates have disk and processor.
- When it was done last is kept in the journal, so that a device that is switched off every night is read as well. A
  clock that jumped back makes it due.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import BinaryIO

from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import Tools
from edgeferry.errors import StorageError
from edgeferry.model.digest import Hasher
from edgeferry.storage.files import translate_disk_errors
from edgeferry.storage.mending import Named, Piece, find_hurt, list_pieces
from edgeferry.storage.repository import Repository

SCRUB_BYTES_PER_S = 4 << 20
_SLICE_BYTES = 1 << 20
_LOOK_AGAIN_S = 600.0
_KEY = "scrubbed_at"
_LOG = logging.getLogger(__name__)

Hurt = Callable[[Named], None]
"""Is told of a version that a ref or a pin names and that is not whole any more."""


async def watch_content(tools: Tools, hurt: Hurt) -> None:
    """Scrubs whenever it is due, for ever; a disk that fails is tried again later."""
    every_s = tools.settings.scrub_every_s
    while every_s:
        await asyncio.sleep(min(every_s, _LOOK_AGAIN_S))
        try:
            if await _is_due(tools, every_s):
                for one in await scrub(tools.repository):
                    hurt(one)
                await tools.journal.set_value(_KEY, repr(tools.now()).encode())
        except StorageError as error:
            _LOG.warning("cannot read all that is stored: %s: %s", error.code, error.message)


async def _is_due(tools: Tools, every_s: float) -> bool:
    try:
        last = float(await tools.journal.get_value(_KEY) or b"0")
    except ValueError:
        last = 0.0
    return not last <= tools.now() < last + every_s


async def scrub(repository: Repository, *, bytes_per_s: float = SCRUB_BYTES_PER_S) -> list[Named]:
    """Reads all content once; removes what is damaged, mends what can be.

    Returns:
        Each version that a ref or a pin names and that needs something fetched.

    Raises:
        StorageError leaves: the disk does not let what is damaged be removed.
    """
    pieces = await in_thread(list_pieces, repository)
    damaged = frozenset([one.digest for one in pieces if not await _is_sound(one, bytes_per_s)])
    for digest in sorted(damaged):
        _LOG.error("stored content is damaged: %s", digest)
    return await in_thread(find_hurt, repository, damaged)


async def _is_sound(piece: Piece, bytes_per_s: float) -> bool:
    hasher = Hasher()
    try:
        with translate_disk_errors(piece.path), piece.path.open("rb") as file:
            size = _SLICE_BYTES
            while size:
                size = await in_thread(_read_slice, file, hasher)
                await asyncio.sleep(size / bytes_per_s)
    except StorageError:
        return not piece.path.exists()  # gone: an update let go of it meanwhile; else a piece of disk that is broken
    return hasher.get_digest() == piece.digest


def _read_slice(file: BinaryIO, hasher: Hasher) -> int:
    block = file.read(_SLICE_BYTES)
    hasher.update(block)
    return len(block)
