"""A download's progress is the file's own length, whatever happens in between."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.storage.storage_samples import list_names

from edgeferry.errors import LinkBroken, NameInvalid, StorageFailed
from edgeferry.storage.partial import open_partial


def test_a_download_goes_on_where_it_stood(tmp_path: Path) -> None:
    with open_partial(tmp_path, "ab12", max_bytes=11) as partial:
        assert partial.length_bytes == 0
        partial.append(b"hello ")
        partial.sync()
    with open_partial(tmp_path, "ab12", max_bytes=11) as partial:
        assert partial.length_bytes == 6
        partial.append(bytearray(b"world"))
        hasher = partial.hash_whole()
    assert hasher.get_digest().hex == hashlib.sha256(b"hello world").hexdigest()
    assert hasher.size_bytes == 11
    assert (tmp_path / "ab12").read_bytes() == b"hello world"


def test_bytes_beyond_the_announced_size_are_refused_and_not_kept(tmp_path: Path) -> None:
    with open_partial(tmp_path, "ab12", max_bytes=4) as partial:
        partial.append(b"123")
        with pytest.raises(LinkBroken, match="at most 4"):
            partial.append(b"45")
        partial.append(b"4")
    assert (tmp_path / "ab12").read_bytes() == b"1234"


def test_a_longer_file_than_announced_starts_over(tmp_path: Path) -> None:
    (tmp_path / "ab12").write_bytes(b"123456")
    with open_partial(tmp_path, "ab12", max_bytes=4) as partial:
        assert partial.length_bytes == 0


def test_truncating_forgets_the_end_and_never_grows(tmp_path: Path) -> None:
    with open_partial(tmp_path, "ab12", max_bytes=10) as partial:
        partial.append(b"123456")
        partial.truncate(4)
        partial.truncate(9)
        assert partial.length_bytes == 4
        partial.append(b"x")
        assert (tmp_path / "ab12").read_bytes() == b"1234x"


def test_damaged_bytes_are_replaced_where_they_lie_and_the_length_stays(tmp_path: Path) -> None:
    with open_partial(tmp_path, "ab12", max_bytes=9) as partial:
        partial.append(b"good bad!")
        partial.overwrite(5, b"good")
        assert (partial.length_bytes, list(partial.read_pieces(4))) == (9, [b"good", b" goo", b"d"])
        with pytest.raises(LinkBroken):
            partial.overwrite(6, b"more")
        assert list(partial.read_pieces(9)) == [b"good good"]


def test_a_discarded_download_is_gone(tmp_path: Path) -> None:
    with open_partial(tmp_path, "ab12", max_bytes=10) as partial:
        partial.append(b"1")
        partial.discard()
        assert list_names(tmp_path) == []


@pytest.mark.parametrize("key", ["", "../x", "a/b", ".hidden", "a b", "a" * 129, "x\n", "ä"])
def test_a_key_that_is_no_plain_name_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(NameInvalid), open_partial(tmp_path, key, max_bytes=1):
        raise AssertionError("opened")


def test_a_link_in_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    folder = tmp_path / "partial"
    folder.mkdir()
    (folder / "ab12").symlink_to(victim)
    with pytest.raises(StorageFailed), open_partial(folder, "ab12", max_bytes=1):
        raise AssertionError("opened")
    assert victim.read_bytes() == b"precious"


@given(st.lists(st.one_of(st.binary(max_size=50), st.integers(0, 200)), max_size=20))
def test_the_length_is_always_the_files_own(tmp_path_factory: pytest.TempPathFactory, steps: list[bytes | int]) -> None:
    folder = tmp_path_factory.mktemp("partial")
    model = b""
    for step in steps:
        with open_partial(folder, "k", max_bytes=100_000) as partial:
            if isinstance(step, int):
                partial.truncate(step)
                model = model[:step]
            else:
                partial.append(step)
                model += step
            assert partial.length_bytes == len(model) == partial.path.stat().st_size
            assert partial.hash_whole().get_digest().hex == hashlib.sha256(model).hexdigest()


_WRITER = """
import pathlib, sys
from edgeferry.storage.partial import open_partial
with open_partial(pathlib.Path(sys.argv[1]), "ab12", max_bytes=1 << 30) as partial:
    for number in range(1 << 16):
        partial.append(bytes([number % 251]) * 4096)
        print(partial.length_bytes, flush=True)
"""


def test_a_kill_in_the_middle_loses_no_byte_that_was_appended(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    said = [int(writer.stdout.readline()) for _ in range(50)][-1]
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    with open_partial(tmp_path, "ab12", max_bytes=1 << 30) as partial:
        assert partial.length_bytes >= said
        data = partial.path.read_bytes()
    expected = b"".join(bytes([number % 251]) * 4096 for number in range(len(data) // 4096 + 1))
    assert data == expected[: len(data)]
