"""Which bytes an update asks for, and from where: a blob under its digest, or a classic URL that names no content.

What this file leaves to others: moving them (`fetch.py`), whether the link may be used (`gate.py`), what they are
(`steps.py`: verify).
"""

from __future__ import annotations

from edgeferry.agent.fetch import Progress, make_url
from edgeferry.agent.record import Target, UpdateRecord
from edgeferry.agent.repair import repair
from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import Tools
from edgeferry.errors import CaptivePortal
from edgeferry.model.digest import Digest
from edgeferry.storage.partial import PartialFile
from edgeferry.transport.http import RangeReply

_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml")


async def transfer(
    tools: Tools, record: UpdateRecord, target: Target, partial: PartialFile, *, most_bytes: int | None
) -> None:
    def progress(length_bytes: int) -> None:
        tools.progress(record.key, length_bytes)

    if record.kind == "classic":
        await _transfer_classic(tools, record, target, partial, progress, most_bytes=most_bytes)
        return
    artifact = record.artifact
    if artifact.chunks and record.damages and partial.length_bytes == artifact.size:
        most_bytes = await repair(tools, artifact, target, partial, progress, most_bytes=most_bytes)
    url = make_url(target.repo, Digest.from_str(artifact.blob).blob_path, target.sas)
    await tools.fetcher.download(url, partial, size_bytes=artifact.size, progress=progress, most_bytes=most_bytes)


async def _transfer_classic(
    tools: Tools,
    record: UpdateRecord,
    target: Target,
    partial: PartialFile,
    progress: Progress,
    *,
    most_bytes: int | None,
) -> None:
    """A URL names no content: what came before goes on only for the same entity tag, or where an MD5 will tell."""
    key, own = f"etag:{record.model}", record.identity.encode()
    noted, _, tag = (await tools.journal.get_value(key) or b"").partition(b" ")
    etag = tag.decode("utf-8", "replace") if noted == own else ""

    async def begin(reply: RangeReply) -> None:
        await in_thread(tools.repository.require_space, partial.count_missing(reply.total_bytes or 0))
        await in_thread(partial.reserve, reply.total_bytes or 0)
        await tools.journal.set_value(key, own + b" " + (reply.etag or "").encode())

    if not etag and not target.md5:
        partial.truncate(0)
    await tools.fetcher.download(
        target.url,
        partial,
        size_bytes=None,
        progress=progress,
        etag=etag or None,
        begin=begin,
        most_bytes=most_bytes,
    )
    if not target.md5 and await is_page(partial):  # nothing that comes later would tell
        partial.truncate(0)
        raise CaptivePortal("expected a bundle, the network answered with a page")


async def is_page(partial: PartialFile) -> bool:
    head = await in_thread(partial.read_head)
    return head.lstrip().lower().startswith(_PAGE_STARTS)
