"""What happens before anything else when a device starts: tidy up, serve what was active, find out what was under way.

Later the same for a worker that is dead and cannot be started again.

What this file leaves to others: the restart rows (`machine.py`), walking on (`lane.py`).

Rules:
- Serving comes first and needs no network. Where the active version is damaged or does not load, the previous one
  serves; nothing is loaded before its bytes have been read again. The refs stay: what is damaged is healed.
- Refs are truth, records are memory: a record that cannot be read is forgotten, and found out again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from edgeferry.agent.claims import release
from edgeferry.agent.machine import TERMINAL, State, get_restart
from edgeferry.agent.places import list_download_keys
from edgeferry.agent.record import UpdateRecord, change, read_record_bytes, write_record_bytes
from edgeferry.agent.room import collect, load_kept
from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import Tools
from edgeferry.agent.turns import Turns
from edgeferry.errors import EdgeferryError, StorageError
from edgeferry.storage.mending import find_sound_ref
from edgeferry.storage.refs import REF_NAMES, RefName
from edgeferry.storage.tidying import sweep

_LOG = logging.getLogger(__name__)
_CLEAN_KEY = "stopped_clean"
_LOOK_EVERY_S, _LOOK_AGAIN_S = 1.0, 60.0
_FIRST = 1 << 30
"""More urgent than any update."""


async def restore_records(tools: Tools) -> list[UpdateRecord]:
    """All records, each in the state in which it goes on; leftovers of what was cut off are removed."""
    was_clean = await tools.journal.get_value(_CLEAN_KEY) == b"1"
    await _note_clean(tools, b"0")
    rows = await tools.journal.load_records()
    found = [await _restore(tools, key, body, was_clean=was_clean) for key, body in rows]
    records = [one for one in found if one is not None]
    await _tidy(tools, records)
    return records


async def _tidy(tools: Tools, records: list[UpdateRecord]) -> None:
    """Removes what was cut off in the making, and what an update that had ended did not get to remove.

    Without the journal of before nobody knows what content was fetched for: it stays until the next update has ended.
    """
    try:
        kept = await load_kept(tools.journal)
        await in_thread(sweep, tools.repository, list_download_keys([*records, *kept]))
        if tools.journal.damage is None:
            await collect(tools.repository, tools.journal)
            await release(tools.repository, tools.journal, records)
    except EdgeferryError as error:  # neither a disk nor what lies on it keeps a device from serving
        _LOG.warning("cannot tidy up: %s", error.message)


async def note_clean_stop(tools: Tools) -> None:
    """Remembers that this process ended because it was told to."""
    await _note_clean(tools, b"1")


async def _note_clean(tools: Tools, value: bytes) -> None:
    """A disk that is full keeps no device from serving, nor from ending."""
    try:
        await tools.journal.set_value(_CLEAN_KEY, value)
    except StorageError as error:
        _LOG.warning("cannot note how this process ends: %s", error.message)


async def _restore(tools: Tools, key: str, body: bytes, *, was_clean: bool) -> UpdateRecord | None:
    try:
        record = read_record_bytes(body)
    except StorageError as error:
        _LOG.warning("forgot an update that cannot be read: %s", error.message)
        await tools.journal.delete_record(key)
        return None
    active = await in_thread(tools.repository.read_ref, record.model, "active")
    is_target = active is not None and active.identity == record.identity
    restored = change(record, state=get_restart(record.state, ref_is_target=is_target))
    if active is None and restored.state in (State.ACTIVE, State.PROBATION):
        restored = change(restored, state=State.RESOLVING, artifacts=(), index=0)  # not whole any more: found out again
    restored = _count_death(tools, restored, was_clean=was_clean)
    if restored != record:  # like any other move: written before anything is done about it
        data = write_record_bytes(restored)
        await tools.journal.save_record(key, model=restored.model, state=restored.state, body=data)
    return restored


def _count_death(tools: Tools, record: UpdateRecord, *, was_clean: bool) -> UpdateRecord:
    """Deaths of this process count against a version on probation, within one boot of the machine."""
    if record.state is not State.PROBATION or was_clean:
        return record
    deaths = record.unclean_boots + 1 if record.boot == tools.boot else 1
    return change(record, unclean_boots=deaths, boot=tools.boot)


async def serve_active(tools: Tools) -> None:
    """Points every slot at its ref `active`, else at `previous`; a loader only takes note."""
    for model in await in_thread(tools.repository.list_models):
        for name in REF_NAMES:
            if await _serve(tools, model, name):
                break


async def _serve(tools: Tools, model: str, name: RefName) -> bool:
    try:
        stored = await in_thread(find_sound_ref, tools.repository, model, name)
        if stored is None:
            return False
        if tools.serves:
            await tools.activator.prove(stored)
            await tools.activator.switch(stored)
    except EdgeferryError as error:
        _LOG.error("the %s version of %s does not serve: %s: %s", name, model, error.code, error.message)
        return False
    tools.served[stored.model] = stored.identity
    return True


async def watch_serving(tools: Tools, turns: Turns) -> None:
    """Lets `previous` serve while the worker of `active` is dead and its files are not whole, for ever."""
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        for model in list(tools.served) if tools.serves else ():
            if await _is_lost(tools, model):
                async with turns.work.take(_FIRST, gives_way=False):  # no update switches meanwhile
                    serves = not await _is_lost(tools, model) or await _serve(tools, model, "previous")
                if not serves:
                    await asyncio.sleep(_LOOK_AGAIN_S)


async def _is_lost(tools: Tools, model: str) -> bool:
    """Whether what serves is dead and cannot be started again; only what ref `active` names gives way."""
    if tools.activator.is_alive(model):
        return False
    active = await in_thread(tools.repository.refs.read, model, "active")
    if active is None or active.identity != tools.served.get(model):
        return False
    return await in_thread(tools.repository.find_version, model, active.version, active.identity) is None


def pick_current(records: Iterable[UpdateRecord]) -> UpdateRecord | None:
    """Of one model's records the one to walk or show: under way, else active, else the newest."""
    rows = sorted(records, key=lambda one: one.changed_at, reverse=True)
    under_way = [one for one in rows if one.state is not State.ACTIVE and one.state not in TERMINAL]
    active = [one for one in rows if one.state is State.ACTIVE]
    return next(iter((*under_way, *active, *rows)), None)
