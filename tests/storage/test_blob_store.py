"""One suite over every place where versions are published: a folder, Azurite as Azure Blob, moto as S3."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeferry.errors import ConfigInvalid, Conflict, LinkDown, NameInvalid, StorageFailed, StoreRefused
from edgeferry.storage.blob_store import PART_BYTES, BlobStore, open_blob_store, parse_azure_url
from fixtures_azurite import Azurite
from fixtures_s3 import S3

OpenAgain = Callable[[], BlobStore]


@pytest.fixture(
    params=[
        "folder",
        pytest.param("azurite", marks=pytest.mark.needs_azurite),
        pytest.param("s3", marks=pytest.mark.needs_s3),
    ]
)
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> OpenAgain:
    """Opens the same empty place each time it is called."""
    if request.param == "folder":
        return lambda: open_blob_store(str(tmp_path / "published"), {})
    if request.param == "s3":
        s3: S3 = request.getfixturevalue("s3")
        place = f"s3://{s3.make_bucket()}/some/prefix"
        return lambda: open_blob_store(place, s3.environ)
    azurite: Azurite = request.getfixturevalue("azurite")
    url = azurite.make_container() + "/some/prefix"
    return lambda: open_blob_store(url, azurite.environ)


@pytest.fixture
def store(open_again: OpenAgain) -> BlobStore:
    return open_again()


def test_what_was_put_is_found_by_anybody_else(store: BlobStore, open_again: OpenAgain) -> None:
    store.put("targets/detector/1.0.0+b-1/x.manifest.json", b"hello")
    found = open_again().find("targets/detector/1.0.0+b-1/x.manifest.json", 5)
    assert found is not None
    assert found.data == b"hello"
    assert found.etag


def test_what_is_not_there_is_none(store: BlobStore) -> None:
    assert store.find("metadata/timestamp.json", 100) is None


def test_put_replaces(store: BlobStore) -> None:
    store.put("a", b"one")
    store.put("a", b"two")
    assert store.find("a", 9) == (b"two", store.find("a", 9).etag)  # type: ignore[union-attr]


def test_put_new_never_replaces(store: BlobStore) -> None:
    assert store.put_new("a", b"one")
    assert not store.put_new("a", b"two")
    assert store.find("a", 9)[0] == b"one"  # type: ignore[index]


def test_of_two_writers_who_read_the_same_only_the_first_wins(store: BlobStore, open_again: OpenAgain) -> None:
    store.put("metadata/timestamp.json", b"v1")
    first, second = store.find("metadata/timestamp.json", 9), open_again().find("metadata/timestamp.json", 9)
    assert first is not None
    assert second is not None
    store.put_if("metadata/timestamp.json", b"v2 of the first", first.etag)
    with pytest.raises(Conflict):
        open_again().put_if("metadata/timestamp.json", b"v2 of the second", second.etag)
    assert store.find("metadata/timestamp.json", 99)[0] == b"v2 of the first"  # type: ignore[index]


def test_a_swap_of_what_is_not_there_is_a_conflict(store: BlobStore) -> None:
    with pytest.raises(Conflict):
        store.put_if("a", b"new", '"made-up"')


def test_an_object_over_the_limit_is_refused(store: BlobStore) -> None:
    store.put("a", b"123456")
    with pytest.raises(StorageFailed):
        store.find("a", 5)


def test_paths_are_listed_below_their_folder(store: BlobStore) -> None:
    for path in ("golden/a", "golden/b/c", "goldeneye/d", "other"):
        store.put(path, b"x")
    assert sorted(store.list_paths("golden")) == ["golden/a", "golden/b/c"]


@pytest.mark.parametrize("path", ["../a", "/a", "a//b", "a/../b", "", "a\0b", "a/", ".hidden", "a b"])
def test_a_path_that_is_not_plain_is_refused(store: BlobStore, path: str) -> None:
    with pytest.raises(NameInvalid):
        store.put(path, b"x")
    with pytest.raises(NameInvalid):
        store.find(path, 1)


def test_a_large_object_comes_back_whole(store: BlobStore) -> None:
    data = bytes(range(256)) * 50_000
    store.put("blobs/large", data)
    assert store.find("blobs/large", len(data))[0] == data  # type: ignore[index]


@pytest.mark.parametrize("size_bytes", [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 7])
def test_a_blob_is_written_once_and_its_bytes_are_counted_as_they_leave(store: BlobStore, size_bytes: int) -> None:
    data = random.Random(size_bytes).randbytes(size_bytes)
    sent: list[int] = []
    store.put_blob("blobs/one", data, sent.append)
    assert store.find("blobs/one", size_bytes)[0] == data  # type: ignore[index]
    assert (sum(sent), max(sent)) == (size_bytes, min(size_bytes, PART_BYTES))
    sent.clear()
    store.put_blob("blobs/one", bytes(size_bytes), sent.append)
    assert store.find("blobs/one", size_bytes)[0] == data  # type: ignore[index]
    assert sum(sent) == size_bytes


@pytest.mark.needs_s3
def test_a_missing_bucket_is_refused_with_what_to_do(s3: S3) -> None:
    with pytest.raises(StoreRefused, match="create"):
        open_blob_store("s3://nothere", s3.environ).put("a", b"x")
    with pytest.raises(StoreRefused, match="create"):
        open_blob_store("s3://nothere", s3.environ).put_blob("a", bytes(PART_BYTES + 1), lambda _: None)


@pytest.mark.needs_s3
def test_what_a_buckets_policy_denies_is_refused(s3: S3) -> None:
    bucket = s3.make_bucket()
    store = open_blob_store(f"s3://{bucket}", s3.environ)
    store.put("a", b"x")
    s3.set_policy(bucket, ("Deny", "*"))
    with pytest.raises(StoreRefused) as caught:
        store.find("a", 1)
    assert s3.environ["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


@pytest.mark.needs_azurite
def test_a_missing_container_is_refused_with_what_to_do(azurite: Azurite) -> None:
    with pytest.raises(StoreRefused, match="create"):
        open_blob_store(f"{azurite.url}/nothere", azurite.environ).put("a", b"x")


@pytest.mark.needs_azurite
def test_a_wrong_key_is_refused_and_not_shown(azurite: Azurite) -> None:
    key = "d3Jvbmcga2V5"
    with pytest.raises(StoreRefused) as caught:
        open_blob_store(azurite.make_container(), {"AZURE_STORAGE_ACCOUNT_KEY": key}).put("a", b"x")
    assert key not in str(caught.value)


def test_a_server_that_is_not_there_is_the_link() -> None:
    with pytest.raises(LinkDown) as caught:
        open_blob_store("http://127.0.0.1:9/account/container?sig=secret", {}).find("a", 1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "account", "container", "prefix", "endpoint"),
    [
        ("https://acc.blob.core.windows.net/c", "acc", "c", "", "https://acc.blob.core.windows.net"),
        (
            "https://acc.privatelink.blob.core.windows.net/c/p/q/",
            "acc",
            "c",
            "p/q",
            "https://acc.privatelink.blob.core.windows.net",
        ),
        (
            "http://127.0.0.1:10000/devstoreaccount1/c/p",
            "devstoreaccount1",
            "c",
            "p",
            "http://127.0.0.1:10000/devstoreaccount1",
        ),
    ],
)
def test_azure_urls_are_taken_apart(url: str, account: str, container: str, prefix: str, endpoint: str) -> None:
    place = parse_azure_url(f"{url}?sv=1&sig=s", {"AZURE_STORAGE_ACCOUNT_KEY": "k"})
    assert (place.account, place.container, place.prefix, place.endpoint) == (account, container, prefix, endpoint)
    assert (place.sas, place.key) == ("sv=1&sig=s", "k")
    assert "sig" not in repr(place)


def test_the_key_of_a_connection_string_is_used_for_its_own_account_only() -> None:
    environ = {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=acc;AccountKey=a2V5;EndpointSuffix=core.windows.net"}
    assert parse_azure_url("https://acc.blob.core.windows.net/c", environ).key == "a2V5"
    assert parse_azure_url("https://other.blob.core.windows.net/c", environ).key == ""


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "https://acc.blob.core.windows.net/", "http://127.0.0.1:1/account", "s3://"]
)
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigInvalid):
        open_blob_store(url, {})


def test_an_s3_url_names_bucket_and_prefix() -> None:
    assert open_blob_store("s3://models/site-a", {}).name == "the bucket 'models'"
