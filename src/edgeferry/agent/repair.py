"""Damaged bytes of a download: which pieces they are, and these pieces again.

What this file leaves to others: noticing damage, and whether the whole is right afterwards (`steps.py`).

Rules:
- Nothing is written down: what is damaged is found anew from the bytes and the list, so that a kill costs one piece.
- The list is checked against its digest in the signed manifest before it is believed, and kept until the update ends.
- Within the budget, and nothing for nothing: a list, and a piece, come whole or are not asked for. What one day does
  not hold is found to be damaged another day.
- A list that is not there or does not fit its blob is no help: the whole is fetched again.
"""

from __future__ import annotations

from edgeferry.agent.fetch import Progress, make_url
from edgeferry.agent.places import keep_chunk_list, read_chunk_list
from edgeferry.agent.record import Artifact, Target
from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import Tools
from edgeferry.errors import ObjectMissing
from edgeferry.model.chunks import CHUNK_BYTES, find_damaged, get_list_size
from edgeferry.model.digest import Digest
from edgeferry.storage.partial import PartialFile


async def repair(
    tools: Tools,
    artifact: Artifact,
    target: Target,
    partial: PartialFile,
    progress: Progress,
    *,
    most_bytes: int | None = None,
) -> int | None:
    """Fetches the damaged pieces of a whole download; leaves it empty where nobody can say which they are.

    Returns:
        What is left of `most_bytes`, which the budget allows.

    Raises:
        BudgetTooSmall: a piece is missing, or the list, and what is left of the budget does not hold it.
        LinkError, AccessError: the transfer ended early; what came is in `partial`.
        NoSpace, StorageFailed: the disk does not do as asked.
    """
    chunk_list, most_bytes = await _get_list(tools, artifact, target, most_bytes=most_bytes)
    if chunk_list is None:
        partial.truncate(0)
        return most_bytes
    url = make_url(target.repo, Digest.from_str(artifact.blob).blob_path, target.sas)
    for start, stop in await in_thread(find_damaged, partial.read_pieces(CHUNK_BYTES), chunk_list):
        end = _get_end(start, stop, most_bytes)
        if end > start and not await tools.fetcher.fill(
            url, partial, start=start, stop=end, progress=progress, most_bytes=most_bytes
        ):
            break
        most_bytes = _lessen(most_bytes, end - start)
        if end < stop:
            piece_bytes = min(CHUNK_BYTES, stop - end)
            raise tools.gate.make_too_small("a damaged piece of a download", piece_bytes, most_bytes or 0)
    return most_bytes


def _get_end(start: int, stop: int, most_bytes: int | None) -> int:
    """Where the last whole piece ends that the budget holds of a damaged stretch."""
    if most_bytes is None or stop - start <= most_bytes:
        return stop
    return start + most_bytes // CHUNK_BYTES * CHUNK_BYTES


async def _get_list(
    tools: Tools, artifact: Artifact, target: Target, *, most_bytes: int | None
) -> tuple[bytes | None, int | None]:
    """The list, None where there is none that fits; and what is left of `most_bytes`."""
    digest, size_bytes = Digest.from_str(artifact.chunks), get_list_size(artifact.size)
    kept = await in_thread(read_chunk_list, tools.repository, artifact, size_bytes)
    if kept is not None:
        return kept, most_bytes
    if most_bytes is not None and size_bytes > most_bytes:
        raise tools.gate.make_too_small("the list of a download's pieces", size_bytes, most_bytes)
    try:
        url = make_url(target.repo, digest.blob_path, target.sas)
        data = await tools.fetcher.fetch_small(url, max_bytes=size_bytes)
    except ObjectMissing:
        return None, most_bytes
    left = _lessen(most_bytes, len(data))
    if len(data) != size_bytes or Digest.of(data) != digest:
        return None, left
    await in_thread(keep_chunk_list, tools.repository, artifact, data)
    return data, left


def _lessen(most_bytes: int | None, size_bytes: int) -> int | None:
    return None if most_bytes is None else max(0, most_bytes - size_bytes)
