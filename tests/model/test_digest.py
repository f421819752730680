from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.errors import ManifestInvalid
from edgeferry.model.digest import Digest, Hasher

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_abc_is_that_of_fips_180() -> None:
    assert Digest.of(b"abc") == Digest(ABC)
    assert str(Digest.of(b"abc")) == f"sha256:{ABC}"


def test_a_blob_lies_under_the_first_two_digits() -> None:
    assert Digest(ABC).blob_path == f"blobs/sha256/ba/{ABC}"


@given(st.binary(max_size=200))
def test_a_digest_comes_back_from_its_text(data: bytes) -> None:
    digest = Digest.of(data)
    assert Digest.from_str(str(digest)) == digest


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", ABC, f"sha256:{ABC.upper()}", f"sha256:{ABC}0", f"sha256:{ABC[:-1]}", f"sha256: {ABC}",
     f"sha256:{ABC}\n", f"md5:{ABC}", "sha256:" + "g" * 64, "sha256:../../../etc/passwd", None, 7],
)  # fmt: skip
def test_anything_but_64_lower_case_digits_is_refused(text: str) -> None:
    with pytest.raises(ManifestInvalid):
        Digest.from_str(text)


@given(st.lists(st.binary(max_size=64), max_size=10))
def test_hashing_in_blocks_is_hashing_the_whole(blocks: list[bytes]) -> None:
    hasher, whole = Hasher(), b"".join(blocks)
    for block in blocks:
        hasher.update(memoryview(block))
    assert hasher.get_digest().hex == hashlib.sha256(whole).hexdigest()
    assert base64.b64decode(hasher.get_md5_base64()) == hashlib.md5(whole).digest()
    assert hasher.size_bytes == len(whole)
