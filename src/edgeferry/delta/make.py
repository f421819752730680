"""Makes patches and coded full files: every way is tried, the smallest that fits the memory bound is kept.

parse both -> match tensors -> fit -> code -> beside it, plain differs -> the smallest -> apply again and compare

The operator's side. Formats: docs/formats/patch.md and coded.md.

Rules:
- What is returned was applied and compared, byte by byte.
- The same bytes on every run.
- A file that is no model, or a damaged one, is opaque bytes: it is patched all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from edgeferry.delta import codecs
from edgeferry.delta.apply import CODEC, apply_patch, gather, get_member_memory
from edgeferry.delta.bits import BitWriter
from edgeferry.delta.container import (
    DIGEST_BYTES,
    MEMORY_UNIT,
    PREFIX_BYTES,
    Container,
    Header,
    Piece,
    Streams,
    make_container,
    make_nested,
)
from edgeferry.delta.fit import Fit, fit_tensor
from edgeferry.delta.make_members import make_zip_members
from edgeferry.delta.match import match_tensors
from edgeferry.delta.members import Member, list_base_files, list_ranges
from edgeferry.delta.order import put_in_order
from edgeferry.delta.predict import Files
from edgeferry.delta.rans import Encoder
from edgeferry.delta.record_bytes import make_records
from edgeferry.delta.records import Copy, Range, find_gaps, list_base_ranges
from edgeferry.delta.scales import find_places, follow_scales
from edgeferry.delta.tensor_codec import Sink, make_model, write_tensor
from edgeferry.delta.tensors import Tensor, find_tensors
from edgeferry.errors import InvariantBroken
from edgeferry.model.digest import Digest

MIN_ELEMENTS = 16
MEMORY_BOUND_BYTES, MEMORY_FIXED_BYTES = 96_000_000, 32 << 20
"""What applying may take: the greater of the first, and the second plus twice the largest tensor."""
TENSOR_WORK_BYTES = 32 << 20
MEMBER_WORK_BYTES = 2 << 20
"""What packing and unpacking take beside a member's own bytes."""
MEMBER_MAX_BYTES = 1 << 30
"""Files in an archive that unpack to more are not looked into."""
WHOLE_BYTES, PIECE_BYTES = 20 << 20, 8 << 20
"""Files above the first are patched in pieces of at most the second, so that memory stays bounded."""
SAMPLES, SAMPLE_BYTES = 4, 32
"""How a piece is looked for in the base."""
HOPELESS, HOPELESS_BYTES = 1.25, 1 << 16
"""Where a quick differ needs so many times and so many more bytes than the best way known, slow ones are not tried."""
BZIP2_MAX_BYTES = 4 << 20
RECORD_BYTES = 9
"""About what a record costs in the map."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch or coded full file.

    Attributes:
        data: its bytes. codec: as a manifest's source names it.
        way: in words. memory_bytes: what applying it takes.
        sizes_by_way: bytes of every way that was tried.
    """

    data: bytes
    codec: str
    way: str
    memory_bytes: int
    sizes_by_way: dict[str, int] = field(default_factory=dict)


def tell_nobody(_done: int, _total: int) -> None:
    """A Progress that nobody looks at."""


def make_patch(base: bytes, target: bytes, *, full_digests: bool = False, progress: Progress = tell_nobody) -> Patch:
    """The shortest patch from `base` to `target`.

    Args:
        base: a whole file, of any content.
        target: another one.
        full_digests: carry whole digests, for use without a manifest.
        progress: told bytes of the target that are done, and all.
    """
    return _pick(
        base, target, has_base=True, digest_bytes=DIGEST_BYTES if full_digests else PREFIX_BYTES, progress=progress
    )


def make_full(target: bytes, *, progress: Progress = tell_nobody) -> Patch:
    """The shortest coded full file in the container."""
    return _pick(b"", target, has_base=False, digest_bytes=PREFIX_BYTES, progress=progress)


def _pick(base: bytes, target: bytes, *, has_base: bool, digest_bytes: int, progress: Progress) -> Patch:
    plan = _Plan(base, target, has_base, digest_bytes)
    found = list(_make_by_members(plan, progress))
    found += _list_fitting(plan, progress, known=found)
    bound = max(MEMORY_BOUND_BYTES, MEMORY_FIXED_BYTES + 2 * len(target))
    found = [each for each in found if each.memory_bytes <= bound]
    best = min(found, key=lambda each: len(each.data))
    again = memoryview(bytearray(len(target)))
    apply_patch(base, best.data, again)
    if again != target:
        raise InvariantBroken(f"the patch by {best.way} does not give its target again")
    progress(len(target), len(target))
    return Patch(best.data, CODEC, best.way, best.memory_bytes, {each.way: len(each.data) for each in found})


@dataclass(frozen=True, slots=True)
class _Plan:
    base: bytes
    target: bytes
    has_base: bool
    digest_bytes: int


def _list_fitting(
    plan: _Plan, progress: Progress, *, beside_bytes: int = 0, known: Sequence[Patch] = ()
) -> list[Patch]:
    """All ways that fit the memory bound, with `beside_bytes` that are taken already."""
    tensors = find_tensors(plan.target, min_elements=MIN_ELEMENTS)
    largest = max((each.size_bytes for each in tensors), default=0)
    bound = max(MEMORY_BOUND_BYTES, MEMORY_FIXED_BYTES + 2 * largest) - beside_bytes
    ways = _list_ways(plan, tensors, progress, known=known)
    return [each for each in ways if each.memory_bytes <= bound]


def _list_ways(
    plan: _Plan, tensors: Sequence[Tensor], progress: Progress, *, known: Sequence[Patch]
) -> Iterator[Patch]:
    """Ways beside those that are `known`."""
    by_tensors = list(_make_by_tensors(plan, tensors, progress)) if tensors else []
    yield from by_tensors
    known = [*known, *by_tensors]
    size_bytes = min((len(each.data) for each in known), default=len(plan.target))
    if max(len(plan.target), len(plan.base)) > WHOLE_BYTES:
        if not known or _guess_plain(plan) < HOPELESS * size_bytes:
            ranges = ([(0, len(plan.base))], [(0, len(plan.target))])
            yield _wrap(plan, None, _make_pieces(plan, *ranges), way="in pieces")
            return
        fits = len(plan.base) + 2 * len(plan.target) + (4 << 20) <= MEMORY_BOUND_BYTES
        if not plan.has_base or size_bytes > _get_small(plan) or not fits:
            return
        methods: tuple[int, ...] = (codecs.HDIFF,)
    else:
        methods = _choose_methods(plan, known, size_bytes)
    for method, data in codecs.encode_each(methods, plan.base, plan.target):
        piece = Piece(method, len(plan.target), data, 0, len(plan.base))
        yield _wrap(plan, None, (piece,), way=codecs.METHODS[method])


def _choose_methods(plan: _Plan, known: Sequence[Patch], size_bytes: int) -> tuple[int, ...]:
    """All, unless a quick differ and a sample say that plain ones are far behind `size_bytes`."""
    quick = codecs.probe(plan.base, plan.target) if known else 0
    if quick <= max(HOPELESS * size_bytes, size_bytes + HOPELESS_BYTES):
        return _list_methods(plan, len(plan.target), slow=True)
    if _guess_plain(plan) > HOPELESS * size_bytes and size_bytes > _get_small(plan):
        return ()
    return _list_methods(plan, len(plan.target), slow=False)


def _get_small(plan: _Plan) -> int:
    """Bytes below which hdiffpatch is always asked: it is quick where little differs, and has no map to carry."""
    return max(HOPELESS_BYTES, len(plan.target) // 100)


def _guess_plain(plan: _Plan) -> int:
    """About how many bytes hdiffpatch needs, by a sample; 0 for small files, which are tried as a whole."""
    return codecs.probe_hdiff(plan.base, plan.target) if plan.has_base else len(plan.target)


def _list_methods(plan: _Plan, size_bytes: int, *, slow: bool) -> tuple[int, ...]:
    """All methods, or those that are quick. bzip2 decodes large files too slowly."""
    if not slow:
        return (codecs.HDIFF, codecs.RAW) if plan.has_base else (codecs.RAW,)
    by_bzip2 = size_bytes <= BZIP2_MAX_BYTES
    with_base = (codecs.HDIFF, codecs.HDIFF_LZMA, codecs.FROM, *((codecs.HDIFF_BZ2,) if by_bzip2 else ()))
    return (
        *(with_base if plan.has_base else ()),
        *(codecs.ZSTD, codecs.LZMA),
        *((codecs.BZ2,) if by_bzip2 else ()),
        codecs.RAW,
    )


def _make_pieces(plan: _Plan, base_ranges: list[Range], target_ranges: list[Range]) -> tuple[Piece, ...]:
    """The remainder in pieces, each beside the part of the base's remainder where it likely comes from."""
    whole, base = (
        gather(memoryview(data), ranges) for data, ranges in ((plan.target, target_ranges), (plan.base, base_ranges))
    )
    count = max(1, -(-len(whole) // PIECE_BYTES), -(-len(base) // (2 * PIECE_BYTES)))
    pieces = []
    for number in range(count):
        part = whole[len(whole) * number // count : len(whole) * (number + 1) // count]
        first, last = len(base) * number // count, len(base) * (number + 1) // count
        if count > 1:
            first, last = _find_window(part, base, first=first, last=last)
        window = base[first:last]
        fitting = (
            (method, data)
            for method, data in codecs.encode_each(_list_methods(plan, len(part), slow=True), window, part)
            if codecs.get_memory(method, len(window), data, len(part)) <= MEMORY_BOUND_BYTES
        )
        method, data = min(fitting, key=lambda each: (len(each[1]), each[0]))
        pieces.append(Piece(method, len(part), data, first, last - first))
    return tuple(pieces)


def _find_window(part: bytes, base: bytes, *, first: int, last: int) -> tuple[int, int]:
    """The part of the base that a piece is patched from: around the same place, or where samples of it stand."""
    margin = PIECE_BYTES // 4  # what was inserted before shifts the rest
    first, last = max(0, first - margin), min(len(base), last + margin)
    places = [len(part) * number // (SAMPLES + 1) for number in range(1, SAMPLES + 1)]
    samples = [(place, part[place : place + SAMPLE_BYTES]) for place in places]
    if sum(base.find(sample, first, last) >= 0 for _, sample in samples) * 2 >= SAMPLES:
        return first, last
    begins = sorted(at - place for place, sample in samples if (at := base.find(sample)) >= 0)
    if not begins:
        return first, last
    begin = max(0, min(begins[len(begins) // 2], len(base)) - margin)
    return begin, min(len(base), begin + len(part) + 2 * margin)


def _count(ranges: Iterable[Range]) -> int:
    return sum(end - start for start, end in ranges)


# --- with tensors -----------------------------------------------------------------------------------------------------
def _make_by_tensors(plan: _Plan, tensors: Sequence[Tensor], progress: Progress) -> Iterator[Patch]:
    files = Files(memoryview(plan.base), memoryview(plan.target))
    base = find_tensors(plan.base, min_elements=MIN_ELEMENTS) if plan.has_base else ()
    places = find_places(base, tensors, files)
    copies: list[Copy] = []
    fits: list[Fit] = []
    for tensor, match in match_tensors(base, tensors, files, places=places):
        progress(tensor.start // 2, len(plan.target))  # the other half is for plain differs
        if isinstance(match, Copy):
            copies.append(match)
        else:
            fits.append(fit_tensor(match, files))
    used = {fit.record.start: fit.record for fit in fits}
    vectors = [fit_tensor(each, files) for each in follow_scales(tensors, used, files, places=places)]
    yield _code(plan, files, put_in_order([*copies, *_keep(fits, vectors, copies)]))


def _keep(fits: list[Fit], vectors: list[Fit], copies: list[Copy]) -> list[Fit]:
    """Those that earn their keep. A vector of scales may be a tensor of its own too: the shorter one stays."""
    by_start = {fit.record.start: fit for fit in fits}
    taken = [(each.start, each.end) for each in copies] + [(fit.record.start, fit.record.end) for fit in fits]
    for vector in vectors:
        tensor, record = by_start.get(vector.record.start), vector.record
        if tensor is None and all(record.end <= start or record.start >= end for start, end in taken):
            taken.append((record.start, record.end))
            by_start[record.start] = vector
        elif tensor and tensor.record.end == record.end and vector.bits < tensor.bits:
            by_start[record.start] = vector
    return [fit for fit in by_start.values() if fit.bits / 8 + RECORD_BYTES < 0.97 * fit.record.size_bytes]


def _code(plan: _Plan, files: Files, ordered: Sequence[Copy | Fit]) -> Patch:
    sink = Sink(Encoder(), BitWriter(), make_model())
    fits = [each for each in ordered if isinstance(each, Fit)]
    for fit in fits:
        write_tensor(fit.record, fit.side, files, sink=sink)
    records = [each.record if isinstance(each, Fit) else each for each in ordered]
    lanes = _choose_lanes(sum(fit.record.elements for fit in fits), sink.encoder.get_size_bytes())
    plain = make_records(records)
    method, data = min(
        codecs.encode_each((codecs.RAW, codecs.LZMA, codecs.ZSTD), b"", plain), key=lambda each: len(each[1])
    )
    streams = Streams(method, len(plain), data, lanes, sink.encoder.finish(lanes), sink.bits.finish())
    target_ranges = find_gaps(((record.start, record.end) for record in records), len(plan.target))
    base_ranges = find_gaps(list_base_ranges(records), len(plan.base))
    return _wrap(plan, streams, _make_pieces(plan, base_ranges, target_ranges), way="tensors")


def _choose_lanes(elements: int, size_bytes: float) -> int:
    """Many lanes decode fast, each costs three bytes: at least what speed asks for, more where it does not show."""
    fast = elements >> 14
    cheap = min(elements >> 12, int(size_bytes) >> 9)
    return 1 << max(3, min(10, max(fast, cheap).bit_length()))


# --- members of archives ----------------------------------------------------------------------------------------------
def _make_by_members(plan: _Plan, progress: Progress) -> Iterator[Patch]:
    def make_body(base: bytes | None, target: bytes, beside_bytes: int) -> bytes | None:
        nested = _Plan(base or b"", target, base is not None, 0)
        found = _list_fitting(nested, tell_nobody, beside_bytes=beside_bytes + MEMBER_WORK_BYTES)
        progress(min(len(target), len(plan.target)) // 2, len(plan.target))
        best = min(found, key=lambda each: len(each.data), default=None)
        return make_nested(best.data) if best else None

    base = plan.base if plan.has_base else None
    members = make_zip_members(base, plan.target, max_bytes=MEMBER_MAX_BYTES, make_body=make_body)
    if members:
        target_ranges = find_gaps(list_ranges(members), len(plan.target))
        base_ranges = find_gaps(list_base_files(members), len(plan.base))
        yield _wrap(plan, None, _make_pieces(plan, base_ranges, target_ranges), way="members", members=members)


# --- wrapping ---------------------------------------------------------------------------------------------------------
def _wrap(
    plan: _Plan, streams: Streams | None, pieces: tuple[Piece, ...], *, way: str, members: tuple[Member, ...] = ()
) -> Patch:
    needed = [codecs.get_memory(each.method, each.base_bytes, each.data, each.size_bytes) for each in pieces]
    memory = max(needed + [get_member_memory(each) for each in members])
    if streams:
        memory = max(memory, TENSOR_WORK_BYTES)
    memory = -(-memory // MEMORY_UNIT) * MEMORY_UNIT
    digests = [bytes.fromhex(Digest.of(data).hex)[: plan.digest_bytes] for data in (plan.base, plan.target)]
    header = Header(plan.has_base, digests[0] if plan.has_base else b"", digests[1], len(plan.target), memory)
    return Patch(make_container(Container(header, streams, pieces, members)), CODEC, way, memory)
