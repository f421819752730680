"""Signed queries of published files."""

from __future__ import annotations

import base64

import pytest

from edgeferry.errors import Forbidden
from edgeferry.wire.file_signatures import find_file_policy, make_file_query, verify_file_query
from edgeferry.wire.iothub_auth import make_sas_token

KEY = base64.b64encode(b"k" * 32).decode()
QUERY = make_file_query("/site/blobs/", KEY, 2000)


def check(query: str, path: str, now: float = 1000.0) -> None:
    verify_file_query(query, path=path, key_base64=KEY, now=now)


def test_a_signature_opens_its_folder_in_any_order_of_fields() -> None:
    assert find_file_policy(QUERY) == "service"
    check(QUERY, "site/blobs/a/b")
    check(QUERY, "site/blobs")
    check("&".join(reversed(QUERY.split("&"))), "site/blobs/x")
    check(make_file_query("", KEY, 2000), "anything")


@pytest.mark.parametrize(
    ("query", "path", "now"),
    [
        (QUERY, "site/blobs2/a", 1000.0),
        (QUERY, "site", 1000.0),
        (QUERY, "site/blobs/a", 2000.0),
        (QUERY.replace("se=2000", "se=9000"), "site/blobs/a", 1000.0),
        (QUERY.replace("sr=site%2Fblobs", "sr="), "site/blobs/a", 1000.0),
        (QUERY + "&se=9000", "site/blobs/a", 1000.0),
        (make_file_query("site", base64.b64encode(b"o" * 32).decode(), 2000), "site/a", 1000.0),
        (make_sas_token("site", KEY, 2000, "service").split(" ")[1], "site/a", 1000.0),
        ("", "site/a", 1000.0),
        ("sig=x&sr=&se=\u0663", "site/a", 1000.0),
        ("x" * 5000, "site/a", 1000.0),
    ],
)
def test_a_signature_opens_nothing_else(query: str, path: str, now: float) -> None:
    with pytest.raises(Forbidden):
        check(query, path, now)
