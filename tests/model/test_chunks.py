"""A chunk list finds the damaged pieces, all of them and no others."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edgeferry.model.chunks import CHUNK_BYTES, CHUNK_DIGEST_BYTES, find_damaged, get_list_size, make_chunk_list


def cut(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]


@given(size=st.integers(CHUNK_BYTES + 1, 9 * CHUNK_BYTES), places=st.lists(st.floats(0, 0.999999), max_size=6))
def test_the_damaged_stretches_are_the_pieces_with_damage_and_neighbours_are_joined(
    size: int, places: list[float]
) -> None:
    data = bytes(size)
    damaged = bytearray(data)
    for place in places:
        damaged[int(place * size)] = 1
    holes = find_damaged(cut(bytes(damaged)), make_chunk_list(data))
    expected = {int(place * size) // CHUNK_BYTES for place in places}
    found = {at // CHUNK_BYTES for start, stop in holes for at in range(start, stop, CHUNK_BYTES)}
    assert found == expected
    assert all(stop < start for (_, stop), (start, _) in pairwise(holes))
    assert all(stop % CHUNK_BYTES == 0 or stop == size for _, stop in holes)


@given(size=st.integers(0, 5 * CHUNK_BYTES))
def test_a_list_has_an_entry_for_each_piece_and_one_piece_needs_none(size: int) -> None:
    expected = get_list_size(size) if size > CHUNK_BYTES else 0
    assert len(make_chunk_list(bytes(size))) == expected
    assert get_list_size(size) == len(cut(bytes(size))) * CHUNK_DIGEST_BYTES
