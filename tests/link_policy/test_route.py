"""The cheapest route that this release can walk is taken; what is here already is not fetched."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.errors import ManifestInvalid
from edgeferry.link.route import Route, pick_route
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import FULL_CODECS, FileEntry, Source

TARGET, BASE, OTHER, BETWEEN = (Digest.of(name) for name in (b"target", b"base", b"other", b"between"))


def make_full(size: int, codec: str = "zstd", memory: int = 0) -> Source:
    """A full download of `size` bytes."""
    return Source(kind="full", codec=codec, blob=str(Digest.of(f"{size}{codec}".encode())), size=size, memory=memory)


def make_patch(size: int, base: Digest = BASE, codec: str = "efd1", memory: int = 0) -> Source:
    """A patch of `size` bytes on `base`."""
    blob = str(Digest.of(b"patch%d" % size))
    return Source(kind="patch", codec=codec, blob=blob, size=size, base=str(base), memory=memory)


def make_entry(*sources: Source, target: Digest = TARGET) -> FileEntry:
    """A file of 1000 bytes that can be had from `sources`."""
    return FileEntry(path="model.onnx", sha256=str(target), md5="", size=1000, sources=sources)


def test_what_is_here_is_not_fetched() -> None:
    route = pick_route(make_entry(make_full(900)), {TARGET})
    assert route.steps == () and route.download_bytes == 0


def test_the_smallest_full_download_is_taken() -> None:
    route = pick_route(make_entry(make_full(1000, "none"), make_full(700, "efd1"), make_full(800)), {BASE})
    assert [(step.source.codec, step.target, step.size, step.base) for step in route.steps] == [
        ("efd1", TARGET, 1000, None)
    ]
    assert route.download_bytes == 700


def test_among_equals_the_one_that_needs_less_memory_is_taken() -> None:
    route = pick_route(make_entry(make_full(700, "efd1", 5000), make_full(700, "zstd", 100)), set())
    assert route.steps[0].source.codec == "zstd"
    patches = make_entry(make_patch(50, BASE, memory=900), make_patch(50, OTHER, memory=800))
    assert pick_route(patches, {BASE, OTHER}).steps[0].base == OTHER


def test_a_codec_of_a_later_release_is_passed_over() -> None:
    route = pick_route(
        make_entry(make_full(10, "magic"), make_full(1000, "none"), make_patch(5, BASE, "magic")), {BASE}
    )
    assert route.steps[0].source.codec == "none"


def test_a_file_without_a_usable_source_is_said_by_name() -> None:
    for sources in ((), (make_full(10, "magic"),), (make_patch(10, OTHER),)):
        with pytest.raises(ManifestInvalid, match=r"model\.onnx"):
            pick_route(make_entry(*sources), {BASE})


def test_a_patch_is_taken_only_on_a_base_that_is_here_and_where_patches_are_wanted() -> None:
    entry = make_entry(make_full(900), make_patch(50), make_patch(40, OTHER), make_patch(30, BASE, "magic"))
    taken = pick_route(entry, {BASE})
    assert [(step.source.size, step.base) for step in taken.steps] == [(50, BASE)]
    assert pick_route(entry, set()).download_bytes == 900
    assert pick_route(entry, {BASE}, patch_codecs=frozenset()).download_bytes == 900


# --- patch over patch -------------------------------------------------------------------------------------------------
def walk_chain(direct: int, first: int, second: int) -> list[tuple[Digest | None, Digest]]:
    newest = make_entry(make_full(900), make_patch(direct), make_patch(second, BETWEEN))
    older = make_entry(make_full(800), make_patch(first), target=BETWEEN)
    return [(step.base, step.target) for step in pick_route(newest, {BASE}, also=(older,)).steps]


def test_a_chain_is_taken_when_it_is_cheaper_than_one_patch_and_than_the_full_file() -> None:
    chain = [(BASE, BETWEEN), (BETWEEN, TARGET)]
    assert walk_chain(direct=100, first=40, second=50) == chain
    assert walk_chain(direct=90, first=40, second=50) == [(BASE, TARGET)], "among equals the shorter way"
    assert walk_chain(direct=80, first=40, second=50) == [(BASE, TARGET)]
    assert walk_chain(direct=2000, first=500, second=500) == [(None, TARGET)]


def test_a_chain_needs_the_entry_of_the_file_between() -> None:
    newest = make_entry(make_full(900), make_patch(5, BETWEEN))
    assert [step.base for step in pick_route(newest, {BASE}).steps] == [None]


def test_a_full_file_between_and_a_patch_may_be_the_cheapest() -> None:
    newest = make_entry(make_full(900), make_patch(5, BETWEEN))
    older = make_entry(make_full(400), target=BETWEEN)
    assert pick_route(newest, set(), also=(older,)).download_bytes == 405


# --- any tangle of versions -------------------------------------------------------------------------------------------
_DIGESTS = [TARGET, BASE, OTHER, BETWEEN]
_SOURCES = st.one_of(
    st.builds(make_full, st.integers(0, 200), st.sampled_from([*sorted(FULL_CODECS), "magic"]), st.integers(0, 3)),
    st.builds(
        make_patch,
        st.integers(0, 200),
        st.sampled_from(_DIGESTS),
        st.sampled_from(["efd1", "magic"]),
        st.integers(0, 3),
    ),
)
_ENTRIES = st.builds(
    lambda sources, target: make_entry(*sources, target=target),
    st.lists(_SOURCES, max_size=4),
    st.sampled_from(_DIGESTS),
)


def list_routes(entries: list[FileEntry], have: set[Digest], walked: Route = Route()) -> list[Route]:  # noqa: B008
    """Every way to the target without going in a circle, found by trying them all."""
    reached = [step.target for step in walked.steps]
    if reached and reached[-1] == TARGET:
        return [walked]
    found = []
    for entry in entries:
        for source in entry.sources:
            alone = pick_route_of_one(entry, source, {*have, *reached})
            begins = alone is not None and (not reached or alone.steps[0].base == reached[-1])
            if alone is not None and begins and alone.steps[0].target not in {*reached, *have}:
                found += list_routes(entries, have, Route((*walked.steps, *alone.steps)))
    return found


def pick_route_of_one(entry: FileEntry, source: Source, have: set[Digest]) -> Route | None:
    try:
        one = make_entry(source, target=Digest.from_str(entry.sha256))
        return pick_route(one, have - {Digest.from_str(entry.sha256)})
    except ManifestInvalid:
        return None


@given(
    st.lists(_SOURCES, max_size=5), st.lists(_ENTRIES, max_size=4), st.sets(st.sampled_from([BASE, OTHER]), max_size=2)
)
def test_no_way_is_cheaper_than_the_one_taken_and_none_is_dearer_than_full(
    sources: list[Source], also: list[FileEntry], have: set[Digest]
) -> None:
    entry = make_entry(*sources)
    ways = list_routes([entry, *also], have)
    if not ways:
        with pytest.raises(ManifestInvalid):
            pick_route(entry, have, also=also)
        return
    route = pick_route(entry, have, also=also)
    assert route.cost == min(way.cost for way in ways)
    assert route.steps[-1].target == TARGET
    assert route.steps[0].base is None or route.steps[0].base in have
    assert all(after.base == before.target for before, after in pairwise(route.steps))
    full = [source.size for source in sources if source.kind == "full" and source.codec in FULL_CODECS]
    assert route.download_bytes <= min(full, default=route.download_bytes)
