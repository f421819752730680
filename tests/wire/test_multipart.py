"""Forms as clients write them come apart into the same fields; broken and hostile ones are refused, no more."""

from __future__ import annotations

import time

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.errors import RequestInvalid
from edgeferry.wire.multipart import HEAD_MAX_BYTES, PARTS_MAX, read_parts

FORM = "multipart/form-data; boundary=b"
IMAGE = b'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg'


def make_body(*parts: tuple[bytes, bytes], boundary: bytes = b"b") -> bytes:
    """A form of (header, content)."""
    lines = [b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts]
    return b"".join(lines) + b"--" + boundary + b"--\r\n"


def _read(body: bytes, content_type: str = FORM) -> list[tuple[str, bytes]]:
    return [(part.name, bytes(part.content)) for part in read_parts(body, content_type)]


async def _encode(fields: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """A form as aiohttp's client writes it, fields with a file name."""
    form = aiohttp.FormData()
    for name, content in fields:
        form.add_field(name, content, filename="picture.jpg", content_type="application/octet-stream")
    writer = form()
    return await writer.as_bytes(), str(writer.headers["Content-Type"])


@given(st.lists(st.tuples(st.text("abcXYZ_09", min_size=1), st.binary()), min_size=1, max_size=PARTS_MAX))
async def test_what_a_client_writes_is_read_back(fields: list[tuple[str, bytes]]) -> None:
    assert _read(*await _encode(fields)) == fields


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (IMAGE, "image"),
        (b"Content-Disposition: form-data; name=image; filename=a.jpg; filename*=utf-8''a.jpg", "image"),
        (b'content-disposition:form-data;name="image"', "image"),
        (b'Content-Type: image/jpeg\r\nContent-Disposition: form-data; filename="name=x;.jpg"; name="image"', "image"),
        (b'Content-Disposition: form-data; name="a\\"b"', 'a"b'),
        ('Content-Disposition: form-data; name="größe"'.encode(), "größe"),
        (b'Content-Disposition: form-data; filename="a.jpg"', ""),
        (b"Content-Type: image/jpeg", ""),
        (b'Content-Transfer-Encoding: BINARY\r\nContent-Disposition: form-data; name="image"', "image"),
    ],
)
def test_a_name_is_found_in_every_way_that_clients_write_it(head: bytes, name: str) -> None:
    assert _read(make_body((head, b"\xff\xd8"))) == [(name, b"\xff\xd8")]


@pytest.mark.parametrize("boundary", ["b", "----WebKitFormBoundary7MA4YWxkTrZu0gW", "a b'()+_,./:=?-c", "0" * 70])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_boundary_may_be_quoted_and_must_be_where_it_has_spaces(boundary: str, quote: str) -> None:
    content_type = f"multipart/form-data; charset=utf-8; Boundary={quote}{boundary}{quote}"
    body = make_body((IMAGE, b"x"), boundary=boundary.encode())
    if quote or " " not in boundary:
        assert _read(body, content_type) == [("image", b"x")]
    else:
        with pytest.raises(RequestInvalid):
            _read(body, content_type)


def test_what_looks_like_an_end_inside_a_picture_is_none() -> None:
    content = b"\r\n\r\n--\r\n-b--\r\n--\r\n--x--\r\nb"
    assert _read(make_body((IMAGE, content))) == [("image", content)]


def test_parts_are_views_into_the_body() -> None:
    body = make_body((IMAGE, bytes(1000)))
    (part,) = read_parts(body, FORM)
    assert part.content.obj is body


def test_a_form_may_begin_with_an_empty_line_and_be_empty() -> None:
    assert _read(b"\r\n" + make_body((IMAGE, b"x"))) == [("image", b"x")]
    assert _read(b"--b--") == []
    assert _read(make_body((b"A: b", b""))) == [("", b"")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"b",
        b"preamble\r\n" + make_body((IMAGE, b"x")),
        b"--b\r\n",
        b"--b\r\n" + IMAGE + b"\r\n\r\n",
        b"--b\r\n" + IMAGE + b"\r\n\r\nx\r\n--b",
        b"--b\r\n" + IMAGE + b"\r\n\r\nx\r\n--c--\r\n",
        b"--bc\r\n" + IMAGE + b"\r\n\r\nx\r\n--b--",
        b"--b\n" + IMAGE + b"\n\nx\n--b--",
        make_body((IMAGE, b"x\r\n--bb")),
        make_body((b'Content-Disposition: form-data; name="\xff"', b"x")),
        make_body((b"Content-Transfer-Encoding: base64\r\n" + IMAGE, b"eA==")),
        make_body((b"X: " + b"y" * HEAD_MAX_BYTES + b"\r\n" + IMAGE, b"x")),
        make_body(*[(IMAGE, b"x")] * (PARTS_MAX + 1)),
    ],
)
def test_a_broken_or_excessive_form_is_refused(body: bytes) -> None:
    with pytest.raises(RequestInvalid):
        _read(body)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'b' * 71}",
        'a; boundary="b',
        'multipart/form-data; boundary="b\\"',
        "multipart/form-data; boundary=b*",
        'multipart/form-data; boundary="b "',
    ],
)
def test_a_form_without_a_proper_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(RequestInvalid, match="boundary"):
        _read(make_body((IMAGE, b"x")), content_type)


@given(
    st.binary(max_size=300) | st.lists(st.sampled_from([b"--b", b"\r\n", b"--", IMAGE, b"\xff", b":;="])).map(b"".join)
)
def test_no_bytes_do_more_than_be_refused(body: bytes) -> None:
    for each in (body, b"--b\r\n" + body):
        try:
            parts = read_parts(each, FORM)
        except RequestInvalid:
            continue
        assert sum(len(part.content) for part in parts) <= len(each)


@given(st.text(max_size=200), st.text('; ="\\abn*', max_size=200))
def test_no_header_does_more_than_be_refused(first: str, second: str) -> None:
    for content_type in (first, "multipart/form-data" + second):
        try:
            assert read_parts(make_body((IMAGE, b"x")), content_type)
        except RequestInvalid:
            continue


@pytest.mark.parametrize("piece", [b";", b'; a="', b'; a=\\"', b"; ", b'="'])
def test_a_hostile_header_costs_no_more_than_its_length(piece: bytes) -> None:
    head = b"Content-Disposition: form-data" + piece * ((HEAD_MAX_BYTES - 100) // len(piece))
    began = time.process_time()
    _read(make_body(*[(head, b"x")] * PARTS_MAX))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("piece", [b"\r\n--", b"\r\n", b"\r\n--bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"])
def test_a_picture_of_almost_ends_costs_no_more_than_its_length(piece: bytes) -> None:
    boundary = b"b" * 40
    body = make_body((IMAGE, piece * (2_000_000 // len(piece))), boundary=boundary)
    began = time.process_time()
    _read(body, f"multipart/form-data; boundary={boundary.decode()}")
    assert time.process_time() - began < 0.5
