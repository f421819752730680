"""What an HTTP answer means: each status its leaf, each range that does not fit its reason."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.errors import (
    AccessDenied,
    CaptivePortal,
    EdgeferryError,
    LinkBroken,
    LinkTimeout,
    ObjectChanged,
    ObjectMissing,
    ServerBusy,
    ServerFailed,
)
from edgeferry.transport.answers import (
    HttpAnswer,
    RangeFacts,
    RangeRequest,
    find_retry_after_s,
    judge_range,
    redact_url,
    require_ok,
)

URL = "https://store.example/blobs/ab?sv=1&sig=SECRET"
WHOLE = {"content-length": "10"}
PART = {"content-length": "6", "content-range": "bytes 4-9/10"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (302, LinkBroken),
        (304, LinkBroken),
        (400, ServerFailed),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, ObjectMissing),
        (407, AccessDenied),
        (408, LinkTimeout),
        (410, ObjectMissing),
        (412, ObjectChanged),
        (416, ObjectChanged),
        (429, ServerBusy),
        (500, ServerFailed),
        (502, ServerFailed),
        (503, ServerBusy),
        (507, ServerFailed),
        (511, CaptivePortal),
    ],
)
def test_each_status_has_its_leaf_and_the_message_no_secret(status: int, expected: type[EdgeferryError]) -> None:
    with pytest.raises(expected) as asked:
        require_ok(HttpAnswer(status, {}, b"", URL))
    with pytest.raises(expected) as ranged:
        judge_range(RangeRequest(URL, 4), status, {})
    for error in (asked.value, ranged.value):
        assert type(error) is expected
        assert "SECRET" not in error.message and "store.example/blobs/ab" in error.message
        assert error.values["status"] == status


def test_an_answer_below_300_is_handed_back() -> None:
    answer = HttpAnswer(204, {}, b"", URL)
    assert require_ok(answer) is answer


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "9" * 30}, 86_400.0),
        ({"retry-after": "Mon, 23 Nov 2026 10:00:30 GMT", "date": "Mon, 23 Nov 2026 10:00:00 GMT"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 09:00:00 GMT", "date": "Mon, 23 Nov 2026 10:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86_400.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "²"}, None),
        ({}, None),
    ],
)
def test_the_server_says_how_long_to_wait(headers: dict[str, str], expected: float | None) -> None:
    assert find_retry_after_s(headers) == expected
    with pytest.raises(ServerBusy) as caught:
        require_ok(HttpAnswer(503, headers, b"", URL))
    assert caught.value.retry_after_s == expected


GOOD = [
    (RangeRequest(URL), 200, WHOLE, RangeFacts(200, 0, 10, None)),
    (RangeRequest(URL), 200, {}, RangeFacts(200, 0, None, None)),
    (RangeRequest(URL), 200, {**WHOLE, "etag": '"a"'}, RangeFacts(200, 0, 10, '"a"')),
    (RangeRequest(URL, 4, '"a"', 10), 206, {**PART, "etag": '"a"'}, RangeFacts(206, 4, 10, '"a"')),
    (RangeRequest(URL, 4), 206, {"content-range": "bytes 4-9/*"}, RangeFacts(206, 4, None, None)),
    (RangeRequest(URL, 4, '"a"'), 206, {**PART, "etag": 'W/"a"'}, RangeFacts(206, 4, 10, 'W/"a"')),
    (RangeRequest(URL, 4, None, 10), 200, WHOLE, RangeFacts(200, 0, 10, None)),
    (RangeRequest(URL, 4, '"a"', 10), 200, {**WHOLE, "etag": '"b"'}, RangeFacts(200, 0, 10, '"b"')),
    (RangeRequest(URL, 4, None, 10, 7), 206, {"content-range": "bytes 4-6/10"}, RangeFacts(206, 4, 10, None)),
    (RangeRequest(URL, 0, None, 10, 7), 206, {"content-range": "bytes 0-6/10"}, RangeFacts(206, 0, 10, None)),
    (RangeRequest(URL, 4, None, 10, 7), 200, WHOLE, RangeFacts(200, 0, 10, None)),
    (RangeRequest(URL, 10), 416, {"content-range": "bytes */10"}, RangeFacts(416, 10, 10, None, is_empty=True)),
    (RangeRequest(URL, 0, None, 10), 200, {**WHOLE, "content-type": "text/html"}, RangeFacts(200, 0, 10, None)),
    (RangeRequest(URL), 200, {**WHOLE, "content-encoding": "identity"}, RangeFacts(200, 0, 10, None)),
]


@pytest.mark.parametrize(("request_", "status", "headers", "expected"), GOOD)
def test_an_answer_that_fits_says_where_its_bytes_belong(
    request_: RangeRequest, status: int, headers: dict[str, str], expected: RangeFacts
) -> None:
    assert judge_range(request_, status, headers) == expected


BAD = {
    "another start": (RangeRequest(URL, 4), 206, {"content-range": "bytes 3-9/10"}, LinkBroken),
    "a later start": (RangeRequest(URL, 4), 206, {"content-range": "bytes 5-9/10"}, LinkBroken),
    "no range": (RangeRequest(URL, 4), 206, {}, LinkBroken),
    "a range that is none": (RangeRequest(URL, 4), 206, {"content-range": "bytes 4-x/10"}, LinkBroken),
    "other units": (RangeRequest(URL, 4), 206, {"content-range": "lines 4-9/10"}, LinkBroken),
    "a range backwards": (RangeRequest(URL, 4), 206, {"content-range": "bytes 4-3/10"}, LinkBroken),
    "what azurite says at the end": (RangeRequest(URL, 10), 206, {"content-range": "bytes 10-9/10"}, LinkBroken),
    "a range beyond its size": (RangeRequest(URL, 4), 206, {"content-range": "bytes 4-10/10"}, LinkBroken),
    "range and length apart": (RangeRequest(URL, 4), 206, {**PART, "content-length": "7"}, LinkBroken),
    "more than was asked for": (RangeRequest(URL, 4, None, 10, 7), 206, PART, LinkBroken),
    "less than was asked for": (RangeRequest(URL, 4, None, 10, 7), 206, {"content-range": "bytes 4-5/10"}, LinkBroken),
    "a part nobody asked for": (RangeRequest(URL), 206, PART, LinkBroken),
    "another size": (RangeRequest(URL, 4, None, 11), 206, PART, ObjectChanged),
    "another size from the start": (RangeRequest(URL, 0, None, 11), 200, WHOLE, LinkBroken),
    "another size starting over": (RangeRequest(URL, 4, None, 11), 200, WHOLE, ObjectChanged),
    "another tag": (RangeRequest(URL, 4, '"a"'), 206, {**PART, "etag": '"b"'}, ObjectChanged),
    "shorter than what is here": (RangeRequest(URL, 12), 416, {"content-range": "bytes */10"}, ObjectChanged),
    "a page": (RangeRequest(URL), 200, {**WHOLE, "content-type": "text/html; charset=utf-8"}, CaptivePortal),
    "a page of another size": (
        RangeRequest(URL, 4, None, 11),
        200,
        {**WHOLE, "content-type": "TEXT/HTML"},
        CaptivePortal,
    ),
    "compressed": (RangeRequest(URL), 200, {**WHOLE, "content-encoding": "gzip"}, LinkBroken),
    "no content": (RangeRequest(URL), 204, {}, LinkBroken),
}


@pytest.mark.parametrize(("request_", "status", "headers", "expected"), BAD.values(), ids=BAD.keys())
def test_an_answer_that_does_not_fit_is_not_appended(
    request_: RangeRequest, status: int, headers: dict[str, str], expected: type[EdgeferryError]
) -> None:
    with pytest.raises(expected) as caught:
        judge_range(request_, status, headers)
    assert "SECRET" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (URL, "https://store.example/blobs/ab"),
        ("http://user:pass@host:8080/a#frag", "http://host:8080/a"),
        ("http://[bad", "(not a URL)"),
    ],
)
def test_a_redacted_url_holds_no_secret(url: str, expected: str) -> None:
    assert redact_url(url) == expected


@given(
    st.integers(0, 20),
    st.sampled_from([200, 206, 416]),
    st.dictionaries(
        st.sampled_from(["content-range", "content-length", "etag", "content-type"]),
        st.one_of(st.text(max_size=20), st.from_regex(r"bytes (\d{1,3}-\d{1,3}|\*)/(\d{1,3}|\*)", fullmatch=True)),
    ),
)
def test_bytes_are_appended_only_where_the_server_says_they_belong(
    start: int, status: int, headers: dict[str, str]
) -> None:
    try:
        facts = judge_range(RangeRequest(URL, start), status, headers)
    except EdgeferryError:
        return
    assert facts.start in (0, start)
    if facts.start and not facts.is_empty:
        assert re.fullmatch(rf"bytes {start}-.*", headers["content-range"].strip())
