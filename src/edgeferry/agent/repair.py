"""Damaged bytes of a download: which pieces they are, and these pieces again.

What this file leaves to others: noticing damage, and whether the whole is right afterwards (`steps.py`).

Rules:
- Nothing is written down: what is damaged is found anew from the bytes and the list, so that a kill costs one piece.
- The list is checked against its digest in the signed manifest before it is believed, and kept until the update ends.
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


async def repair(tools: Tools, artifact: Artifact, target: Target, partial: PartialFile, progress: Progress) -> None:
    """Fetches the damaged pieces of a whole download; leaves it empty where nobody can say which they are.

    Raises:
        LinkError, AccessError: the transfer ended early; what came is in `partial`.
        NoSpace, StorageFailed: the disk does not do as asked.
    """
    chunk_list = await _get_list(tools, artifact, target)
    if chunk_list is None:
        partial.truncate(0)
        return
    url = make_url(target.repo, Digest.from_str(artifact.blob).blob_path, target.sas)
    for start, stop in await in_thread(find_damaged, partial.read_pieces(CHUNK_BYTES), chunk_list):
        filled = await tools.fetcher.fill(url, partial, start=start, stop=stop, progress=progress)
        if not filled:
            return


async def _get_list(tools: Tools, artifact: Artifact, target: Target) -> bytes | None:
    digest, size_bytes = Digest.from_str(artifact.chunks), get_list_size(artifact.size)
    kept = await in_thread(read_chunk_list, tools.repository, artifact, size_bytes)
    if kept is not None:
        return kept
    try:
        url = make_url(target.repo, digest.blob_path, target.sas)
        data = await tools.fetcher.fetch_small(url, max_bytes=size_bytes)
    except ObjectMissing:
        return None
    if len(data) != size_bytes or Digest.of(data) != digest:
        return None
    await in_thread(keep_chunk_list, tools.repository, artifact, data)
    return data
