"""The cheapest source that this release can decode is taken; what is here already is not fetched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.errors import ManifestInvalid
from edgeferry.link.route import FULL_CODECS, pick_route
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import FileEntry, Source

TARGET, BASE, OTHER = (Digest.of(name) for name in (b"target", b"base", b"other"))


def make_full(size: int, codec: str = "zstd", memory: int = 0) -> Source:
    """A full download of `size` bytes."""
    return Source(kind="full", codec=codec, blob=str(Digest.of(f"{size}{codec}".encode())), size=size, memory=memory)


def make_patch(size: int, base: Digest = BASE, codec: str = "residual") -> Source:
    """A patch of `size` bytes on `base`."""
    return Source(kind="patch", codec=codec, blob=str(Digest.of(b"patch%d" % size)), size=size, base=str(base))


def make_entry(*sources: Source) -> FileEntry:
    """A file of 1000 bytes that can be had from `sources`."""
    return FileEntry(path="model.onnx", sha256=str(TARGET), md5="", size=1000, sources=sources)


def test_what_is_here_is_not_fetched() -> None:
    route = pick_route(make_entry(make_full(900)), {TARGET})
    assert route.steps == () and route.download_bytes == 0


def test_the_smallest_full_download_is_taken() -> None:
    route = pick_route(make_entry(make_full(1000, "none"), make_full(700, "planes-zstd"), make_full(800)), {BASE})
    assert [(step.source.codec, step.target, step.base) for step in route.steps] == [("planes-zstd", TARGET, None)]
    assert route.download_bytes == 700


def test_among_equals_the_one_that_needs_less_memory_is_taken() -> None:
    route = pick_route(make_entry(make_full(700, "planes-zstd", 5000), make_full(700, "zstd", 100)), set())
    assert route.steps[0].source.codec == "zstd"


def test_a_codec_of_a_later_release_is_passed_over() -> None:
    route = pick_route(make_entry(make_full(10, "magic"), make_full(1000, "none")), set())
    assert route.steps[0].source.codec == "none"


def test_a_file_without_a_usable_source_is_said_by_name() -> None:
    for sources in ((), (make_full(10, "magic"),), (make_patch(10),)):
        with pytest.raises(ManifestInvalid, match=r"model\.onnx"):
            pick_route(make_entry(*sources), {BASE})


def test_a_patch_is_taken_only_on_a_base_that_is_here_and_with_a_codec_that_is_known() -> None:
    entry = make_entry(make_full(900), make_patch(50), make_patch(40, OTHER), make_patch(30, BASE, "magic"))
    assert pick_route(entry, {BASE}).download_bytes == 900
    taken = pick_route(entry, {BASE}, patch_codecs={"residual"})
    assert [(step.source.size, step.base) for step in taken.steps] == [(50, BASE)]
    assert pick_route(entry, set(), patch_codecs={"residual"}).download_bytes == 900


_SOURCES = st.one_of(
    st.builds(make_full, st.integers(0, 2000), st.sampled_from([*sorted(FULL_CODECS), "magic"])),
    st.builds(make_patch, st.integers(0, 2000), st.sampled_from([BASE, OTHER])),
)


@given(st.lists(_SOURCES, max_size=6), st.sets(st.sampled_from([BASE, OTHER])))
def test_no_usable_source_is_cheaper_than_the_one_taken(sources: list[Source], have: set[Digest]) -> None:
    usable = [
        source
        for source in sources
        if source.codec in FULL_CODECS or (source.codec == "residual" and Digest.from_str(source.base) in have)
    ]
    if usable:
        route = pick_route(make_entry(*sources), have, patch_codecs={"residual"})
        assert route.steps[0].source in usable
        assert route.download_bytes == min(source.size for source in usable)
    else:
        with pytest.raises(ManifestInvalid):
            pick_route(make_entry(*sources), have, patch_codecs={"residual"})
