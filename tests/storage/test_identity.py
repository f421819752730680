"""The identity of a file on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeferry.errors import StorageFailed
from edgeferry.storage.identity import read_file_identity


def test_hard_links_are_one_file_and_copies_are_not(tmp_path: Path) -> None:
    blob, link, copy = tmp_path / "blob", tmp_path / "link", tmp_path / "copy"
    blob.write_bytes(b"weights")
    os.link(blob, link)
    copy.write_bytes(b"weights")
    assert read_file_identity(blob) == read_file_identity(link) != read_file_identity(copy)


def test_a_file_written_to_in_place_is_another_file(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"weights")
    before = read_file_identity(blob)
    blob.write_bytes(b"other weights")
    assert read_file_identity(blob) != before


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed):
        read_file_identity(tmp_path / "nowhere")
