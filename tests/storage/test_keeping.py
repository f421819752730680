"""What stays and what goes, as pure arithmetic: nothing that is needed, and no more than there is reason for."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edgeferry.model.digest import Digest
from edgeferry.storage.keeping import Disk, DiskLimits, Held, count_pressure, count_shortage, plan_gc

MB = 1 << 20
PLENTY = Disk(used_bytes=0, free_bytes=1000 * MB, total_bytes=2000 * MB)
LIMITS = DiskLimits(reserve_bytes=0, low_water_bytes=0)
SIZES = {Digest.of(b"%d" % n): 10 * MB for n in range(8)}
BLOBS = list(SIZES)


def hold(name: str, *numbers: int, rank: int | None = None, needed: bool = False) -> Held:
    return Held(name, frozenset(BLOBS[n] for n in numbers), rank, needed)


def test_with_plenty_of_room_only_what_never_was_active_and_content_of_nobody_goes() -> None:
    held = [hold("old", 0, rank=2), hold("active", 1, rank=0, needed=True), hold("rejected", 2)]
    leaving = plan_gc(held, SIZES, needed={BLOBS[3]}, disk=PLENTY, limits=LIMITS)
    assert leaving.versions == ("rejected",)
    assert leaving.blobs == set(BLOBS[4:]) | {BLOBS[2]}


def test_below_the_low_water_mark_the_longest_unused_goes_first_and_no_more_than_it_takes() -> None:
    held = [hold("third", 0, rank=3), hold("fourth", 1, rank=4), hold("active", 2, rank=0, needed=True)]
    sizes = {blob: SIZES[blob] for blob in BLOBS[:3]}
    limits = replace(LIMITS, low_water_bytes=64 * MB)
    disk = Disk(used_bytes=30 * MB, free_bytes=55 * MB, total_bytes=100 * MB)
    assert plan_gc(held, sizes, needed=set(), disk=disk, limits=limits).versions == ("fourth",)
    disk = replace(disk, free_bytes=MB)
    assert plan_gc(held, sizes, needed=set(), disk=disk, limits=limits).versions == ("fourth", "third")


def test_a_version_that_shares_its_bytes_frees_nothing_and_the_next_one_goes_too() -> None:
    held = [hold("fourth", 2, rank=4), hold("third", 0, rank=3), hold("active", 2, rank=0, needed=True)]
    sizes = {blob: SIZES[blob] for blob in (BLOBS[0], BLOBS[2])}
    disk = Disk(used_bytes=20 * MB, free_bytes=0, total_bytes=100 * MB)
    leaving = plan_gc(held, sizes, needed=set(), disk=disk, limits=replace(LIMITS, low_water_bytes=5 * MB))
    assert leaving.versions == ("fourth", "third")
    assert leaving.blobs == {BLOBS[0]}


def test_a_wanted_version_makes_others_give_way_only_where_that_is_enough() -> None:
    held = [hold("second", 0, rank=2), hold("active", 1, rank=0, needed=True)]
    sizes = {blob: SIZES[blob] for blob in BLOBS[:2]}
    disk = Disk(used_bytes=20 * MB, free_bytes=5 * MB, total_bytes=100 * MB)
    gone = plan_gc(held, sizes, needed=set(), disk=disk, limits=LIMITS, wanted_bytes=15 * MB)
    assert gone.versions == ("second",)
    vain = plan_gc(held, sizes, needed=set(), disk=disk, limits=LIMITS, wanted_bytes=16 * MB)
    assert vain.versions == ()


def test_the_default_low_water_mark_is_a_tenth_of_a_small_disk_and_64_mb_of_a_large_one() -> None:
    for total, free, pressure in ((100 * MB, 10 * MB, 0), (100 * MB, 9 * MB, MB), (10_000 * MB, 60 * MB, 4 * MB)):
        assert count_pressure(Disk(0, free, total), DiskLimits()) == pressure


def test_all_that_may_go_goes_when_a_person_asks() -> None:
    held = [hold("second", 0, rank=2), hold("active", 1, rank=0, needed=True)]
    leaving = plan_gc(held, SIZES, needed=set(), disk=PLENTY, limits=LIMITS, everything=True)
    assert (leaving.versions, leaving.blobs) == (("second",), set(BLOBS) - {BLOBS[1]})


def test_a_quota_counts_what_is_ours_and_what_is_wanted() -> None:
    limits = DiskLimits(quota_bytes=50 * MB, reserve_bytes=4 * MB, low_water_bytes=0)
    disk = Disk(used_bytes=40 * MB, free_bytes=100 * MB, total_bytes=1000 * MB)
    assert count_shortage(disk, limits, 10 * MB) == 0
    assert count_shortage(disk, limits, 11 * MB) == MB
    assert count_shortage(replace(disk, free_bytes=12 * MB), limits, 10 * MB) == 2 * MB
    assert count_pressure(replace(disk, used_bytes=51 * MB), limits) == MB


NUMBERS = st.integers(0, 7)
HELD = st.builds(
    Held,
    name=st.uuids().map(str),
    digests=st.frozensets(NUMBERS.map(lambda n: BLOBS[n]), max_size=3),
    rank=st.none() | st.integers(0, 5),
    needed=st.booleans(),
)
BYTES = st.integers(0, 120 * MB)


LIMITS_DRAWN = st.builds(DiskLimits, quota_bytes=BYTES, low_water_bytes=BYTES, reserve_bytes=st.just(0))


@given(st.lists(HELD, max_size=6), st.frozensets(st.sampled_from(BLOBS), max_size=3), LIMITS_DRAWN, BYTES, BYTES)
def test_nothing_that_is_needed_ever_goes_and_what_stays_has_its_content(
    held: list[Held], needed: frozenset[Digest], limits: DiskLimits, free: int, wanted: int
) -> None:
    disk = Disk(used_bytes=80 * MB, free_bytes=free, total_bytes=500 * MB)
    leaving = plan_gc(held, SIZES, needed=needed, disk=disk, limits=limits, wanted_bytes=wanted)
    gone = {one.name for one in held if one.name in leaving.versions}
    stays = [one for one in held if one.name not in gone]
    assert all(one.name in {each.name for each in stays} for one in held if one.needed)
    assert not leaving.blobs & needed.union(*(one.digests for one in stays))
    assert leaving.blobs | needed.union(*(one.digests for one in stays)) >= set(BLOBS)
    spare = [one for one in held if not one.needed and one.rank is not None]
    oldest_gone = min((one.rank or 0 for one in spare if one.name in gone), default=99)
    assert all((one.rank or 0) <= oldest_gone for one in spare if one.name not in gone)
    given_up = [one for one in spare if one.name in gone]
    if given_up:
        last = next(one for one in given_up if one.name == leaving.versions[-1])
        used = needed.union(last.digests, *(one.digests for one in stays))
        less = sum(size for blob, size in SIZES.items() if blob not in used)
        assert less < max(count_pressure(disk, limits), count_shortage(disk, limits, wanted)), "one too many went"
