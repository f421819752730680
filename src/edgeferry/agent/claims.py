"""Whose is what lies in the shared storage root: names that classic updates have taken, and nobody else's.

What this file leaves to others: putting files there (`announce.py`, `places.py`).

Rules:
- A name is claimed before anything is put under it, and only when nothing lies there: what another module keeps in the
  storage is never replaced, whatever FileName says.
- What is claimed and not kept any more is removed, then the claim is given back.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgeferry.agent.machine import TERMINAL
from edgeferry.agent.record import UpdateRecord
from edgeferry.agent.threads import in_thread
from edgeferry.errors import NameInvalid
from edgeferry.names import get_stem
from edgeferry.storage.classic import get_classic_folder, get_zip_path
from edgeferry.storage.files import remove_tree
from edgeferry.storage.journal import Journal
from edgeferry.storage.repository import Repository

_OURS, _FREE = b"1", b""


async def claim(repository: Repository, journal: Journal, file_name: str) -> None:
    """Takes the names that an update of `file_name` uses.

    Raises:
        NameInvalid: something that is not ours lies there.
    """
    if await is_claimed(journal, file_name):
        return
    taken = await in_thread(_find_taken, repository, file_name)
    if taken:
        raise NameInvalid(f"FileName: expected a name that is free in the storage, {taken!r:.80} belongs to others")
    await journal.set_value(_get_key(file_name), _OURS)


async def is_claimed(journal: Journal, file_name: str) -> bool:
    """Whether what lies under the names of `file_name` is ours."""
    return await journal.get_value(_get_key(file_name)) == _OURS


async def release(repository: Repository, journal: Journal, rows: Iterable[UpdateRecord]) -> None:
    """Removes what updates that are not kept any more put into the storage, and gives their names back."""
    classic = [row for row in rows if row.kind == "classic"]
    kept = {_get_key(row.file_name) for row in classic if await in_thread(_is_kept, repository, row)}
    for key, file_name in {_get_key(row.file_name): row.file_name for row in classic}.items():
        if key not in kept and await journal.get_value(key) == _OURS:
            await in_thread(remove_tree, get_classic_folder(repository.storage_root, file_name))
            await journal.set_value(key, _FREE)


def _get_key(file_name: str) -> str:
    return f"shared:{get_stem(file_name)}"


def _find_taken(repository: Repository, file_name: str) -> str:
    root = repository.storage_root
    paths = (get_classic_folder(root, file_name), get_zip_path(root, file_name))
    return next((path.name for path in paths if path.exists() or path.is_symlink()), "")


def _is_kept(repository: Repository, row: UpdateRecord) -> bool:
    """Other modules see what serves, what would after a rollback, and what is under way; not all that is kept."""
    named = {ref.identity for ref in repository.refs.list_refs(row.model)}
    return row.state not in TERMINAL or row.identity in named
