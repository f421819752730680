"""Published files over HTTP: signatures, ranges, conditions, and no way out of the folder."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from edgeferry.app.hub import RunningHub
from edgeferry.errors import NotFound
from edgeferry.hub.http_files import parse_range
from edgeferry.storage.published_files import open_published_file
from edgeferry.wire.file_signatures import make_file_query

DATA = bytes(range(256)) * 4000


@pytest.fixture
async def http(hub: RunningHub) -> AsyncIterator[aiohttp.ClientSession]:
    folder = hub.settings.files
    assert folder is not None
    (folder / "blobs").mkdir()
    (folder / "blobs" / "ab.bin").write_bytes(DATA)
    (folder / "top.txt").write_text("top")
    context = ssl.create_default_context(cafile=str(hub.ca_pem_path))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield session


async def test_a_whole_file_and_its_head(hub: RunningHub, http: aiohttp.ClientSession) -> None:
    url = hub.make_file_url("blobs/ab.bin")
    async with http.get(url) as answer:
        assert (answer.status, await answer.read()) == (200, DATA)
        assert answer.headers["Accept-Ranges"] == "bytes"
        tag = answer.headers["ETag"]
    async with http.head(url) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(DATA)))
        assert answer.headers["ETag"] == tag


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-9", (206, "bytes 0-9/1024000", DATA[:10])),
        ("bytes=1023990-", (206, "bytes 1023990-1023999/1024000", DATA[-10:])),
        ("bytes=-5", (206, "bytes 1023995-1023999/1024000", DATA[-5:])),
        ("bytes=5-99999999", (206, "bytes 5-1023999/1024000", DATA[5:])),
        ("bytes=1024000-", (416, "bytes */1024000", b"")),
        ("bytes=-0", (416, "bytes */1024000", b"")),
        ("bytes=9-5", (200, None, DATA)),
        ("bytes=0-1,5-6", (200, None, DATA)),
        ("lines=0-9", (200, None, DATA)),
        ("bytes=-", (200, None, DATA)),
    ],
)
async def test_a_range(
    hub: RunningHub, http: aiohttp.ClientSession, header: str, wanted: tuple[int, str | None, bytes]
) -> None:
    async with http.get(hub.make_file_url("blobs/ab.bin"), headers={"Range": header}) as answer:
        assert (answer.status, answer.headers.get("Content-Range"), await answer.read()) == wanted


async def test_conditions(hub: RunningHub, http: aiohttp.ClientSession) -> None:
    url = hub.make_file_url("top.txt")
    async with http.get(url) as answer:
        tag = answer.headers["ETag"]
    cases = [
        ({"If-Match": tag}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-None-Match": tag}, 304),
        ({"If-None-Match": f'"x", {tag}'}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"Range": "bytes=0-0", "If-Match": tag}, 206),
        ({"Range": "bytes=0-0", "If-Range": tag}, 206),
        ({"Range": "bytes=0-0", "If-Range": '"other"'}, 200),
    ]
    for headers, status in cases:
        async with http.get(url, headers=headers) as answer:
            assert answer.status == status, headers
    assert hub.settings.files is not None
    (hub.settings.files / "top.txt").write_text("new")
    async with http.get(url, headers={"If-Match": tag}) as answer:
        assert answer.status == 412


async def test_one_signature_opens_a_folder_and_no_more(hub: RunningHub, http: aiohttp.ClientSession) -> None:
    now = int(time.time())
    good = make_file_query("blobs", hub.policies.keys["service"], now + 60)
    cases = [
        ("blobs/ab.bin", good, 200),
        ("blobs/none", good, 404),
        ("top.txt", good, 403),
        ("blobs2/x", good, 403),
        ("blobs/ab.bin", make_file_query("blobs", hub.policies.keys["service"], now - 1), 403),
        ("blobs/ab.bin", make_file_query("blobs", "AAAA", now + 60), 403),
        ("blobs/ab.bin", good.replace(f"se={now + 60}", f"se={now + 600}"), 403),
        ("blobs/ab.bin", good + "&sr=", 403),
        ("blobs/ab.bin", "", 403),
    ]
    for path, query, status in cases:
        async with http.get(URL(f"{hub.service_url}/files/{path}?{query}", encoded=True)) as answer:
            assert answer.status == status, (path, query)


async def test_plain_http_on_loopback_serves_files_and_nothing_else(
    hub: RunningHub, http: aiohttp.ClientSession
) -> None:
    query = make_file_query("", hub.policies.keys["service"], int(time.time()) + 60)
    base = f"http://127.0.0.1:{hub.ports.http_files}"
    async with http.get(URL(f"{base}/files/top.txt?{query}", encoded=True)) as answer:
        assert await answer.text() == "top"
    for path in ("/files/top.txt", f"/devices?{query}"):
        async with http.get(URL(base + path, encoded=True)) as answer:
            assert answer.status in (403, 404)


@pytest.mark.parametrize(
    "path",
    ["../secret", "%2e%2e/secret", "..%2fsecret", "blobs/../../secret", "link", "folderlink/secret", "blobs", "a%00b",
     "%5c..%5csecret", "/etc/passwd", "//etc/passwd", "fifo", ".", ""],
)  # fmt: skip
async def test_nothing_outside_the_folder_is_served(hub: RunningHub, http: aiohttp.ClientSession, path: str) -> None:
    folder = hub.settings.files
    assert folder is not None
    (folder.parent / "secret").write_text("secret")
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "folderlink").symlink_to(folder.parent)
    import os

    os.mkfifo(folder / "fifo")
    query = make_file_query("", hub.policies.keys["service"], int(time.time()) + 60)
    async with http.get(URL(f"{hub.service_url}/files/{path}?{query}", encoded=True)) as answer:
        assert answer.status == 404
        assert "secret" not in await answer.text()


@given(st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_any_path_is_refused_or_lies_in_the_folder(path: str) -> None:
    with pytest.raises(NotFound):
        open_published_file(Path("/nonexistent-folder"), path)


@given(st.text("bytes=-, 0123456789", max_size=20), st.integers(0, 2000))
@settings(max_examples=200, deadline=None)
def test_any_range_header_stays_in_the_file(header: str, size: int) -> None:
    span = parse_range(header, size)
    assert span is None or span == (0, 0) or 0 <= span[0] < span[1] <= size
