"""Memory that both processes map: places never overlap, are used again, and give their pages back."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.runtime import shared_bodies
from edgeferry.runtime.shared_bodies import (
    KEPT_BYTES,
    LEAST_BYTES,
    SIZE_BYTES,
    Place,
    SharedBodies,
    open_shared_bodies,
)


@pytest.fixture
def bodies() -> Iterator[SharedBodies]:
    shared = SharedBodies()
    yield shared
    shared.close()


def read(bodies: SharedBodies, place: Place) -> bytes:
    view = open_shared_bodies(os.dup(bodies.fd))
    return bytes(view[place[0] : sum(place)])


def count_held_bytes(bodies: SharedBodies) -> int:
    return os.fstat(bodies.fd).st_blocks * 512


def test_a_body_in_parts_is_read_as_one(bodies: SharedBodies) -> None:
    parts = [b"a" * LEAST_BYTES, bytearray(b"bc"), memoryview(b"d")]
    place = bodies.put(parts)
    assert place is not None
    assert read(bodies, place) == b"".join(parts)


@pytest.mark.parametrize("size", [0, LEAST_BYTES - 1, SIZE_BYTES + 1])
def test_small_bodies_and_those_without_room_are_left_to_the_socket(bodies: SharedBodies, size: int) -> None:
    assert bodies.put([bytes(size)]) is None


def test_a_place_is_used_again_only_when_it_was_given_back(bodies: SharedBodies) -> None:
    first, second = bodies.put([b"1" * LEAST_BYTES]), bodies.put([b"2" * LEAST_BYTES])
    assert first is not None and second is not None and first[0] != second[0]
    bodies.give_back(first)
    assert bodies.put([b"3" * LEAST_BYTES]) == first
    assert read(bodies, second) == b"2" * LEAST_BYTES


def test_what_a_large_body_took_goes_back_to_the_system(bodies: SharedBodies) -> None:
    place = bodies.put([b"x" * (8 << 20)])
    assert place is not None and count_held_bytes(bodies) >= 8 << 20
    bodies.give_back(place)
    assert count_held_bytes(bodies) <= KEPT_BYTES


def test_a_worker_cannot_write(bodies: SharedBodies) -> None:
    assert open_shared_bodies(os.dup(bodies.fd)).readonly


def test_closing_twice_gives_one_descriptor_back() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    shared = SharedBodies()
    for _ in range(2):
        shared.close()
    assert shared.put([b"x" * LEAST_BYTES]) is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_where_files_may_not_be_that_large_every_body_is_left_to_the_socket() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        shared = SharedBodies()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert shared.fd == -1 and shared.put([b"x" * LEAST_BYTES]) is None
    assert len(open_shared_bodies(shared.fd)) == 0
    shared.close()


@given(st.lists(st.tuples(st.booleans(), st.integers(LEAST_BYTES, 300 << 10)), max_size=40))
def test_places_never_overlap(steps: list[tuple[bool, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_bodies, "SIZE_BYTES", 1 << 20)
        shared, held = SharedBodies(), []
        for takes, size in steps:
            if not takes and held:
                shared.give_back(held.pop(size % len(held)))
            elif (place := shared.put([bytes(size)])) is not None:
                held.append(place)
        shared.close()
    assert all(sum(one) <= two[0] for one, two in pairwise(sorted(held)))
    assert all(sum(place) <= 1 << 20 for place in held)
