"""The vectors of docs/formats/patch.md: good ones give their target, to two readers; bad ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from delta.plain_decoder import apply_plainly
from edgeferry.delta.apply import apply_patch
from edgeferry.errors import DeltaBaseMismatch, DeltaDamaged, DeltaError

FOLDER = Path(__file__).resolve().parents[1] / "vectors" / "patch"
GOOD, BAD = sorted(FOLDER.glob("good-*.efd")), sorted(FOLDER.glob("bad-*.efd"))
_WORDS = ("the-base-is-another", "a-full-file-for-a-base", "a-method-with-a-base-and-none")
FOR_ANOTHER_BASE = {f"bad-{words}" for words in _WORDS}
MAX_BYTES = 21_000

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def read_base(path: Path) -> bytes:
    base = path.with_suffix(".base")
    return base.read_bytes() if base.exists() else b""


def apply(path: Path, base: bytes, size_bytes: int) -> bytes:
    target = bytearray(size_bytes)
    apply_patch(base, path.read_bytes(), memoryview(target))
    return bytes(target)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_vector_gives_its_target_to_two_readers(path: Path) -> None:
    target = path.with_suffix(".target").read_bytes()
    assert apply(path, read_base(path), len(target)) == target
    if path.stem != "good-an-archive":  # archives have a page of their own
        assert apply_plainly(read_base(path), path.read_bytes()) == target


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_vector_is_refused(path: Path) -> None:
    base, target = (FOLDER / "bad.base").read_bytes(), (FOLDER / "bad.target").read_bytes()
    with pytest.raises(DeltaBaseMismatch if path.stem in FOR_ANOTHER_BASE else DeltaDamaged):
        apply(path, base, len(target))


def test_the_vectors_are_there_and_small_and_bad_for_many_reasons() -> None:
    assert len(GOOD) >= 25 and len(BAD) >= 80
    assert all(path.stat().st_size < MAX_BYTES for path in FOLDER.iterdir())
    base, target = (FOLDER / "bad.base").read_bytes(), (FOLDER / "bad.target").read_bytes()
    reasons = set()
    for path in BAD:
        with pytest.raises(DeltaError) as caught:
            apply(path, base, len(target))
        reasons.add(caught.value.message)
    assert len(reasons) >= 55
