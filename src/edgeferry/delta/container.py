"""The patch container: a header, a map, two streams of a tensor codec, and the remainder in one piece or several.

Instead of map and streams it may hold members, each with a nested container (docs/formats/patch-zip.md).

This file knows where things lie in a patch; docs/formats/patch.md is the norm. What they mean is read elsewhere.

Rules:
- The header takes at most 40 bytes, with 12-byte prefixes of the digests; the full ones stand in the manifest.
- A version that this release does not know is refused, as is every byte that does not belong there.
- Sizes are checked before anything is allocated by them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeferry.delta import codecs
from edgeferry.delta.kinds import Buffer
from edgeferry.delta.members import Member, make_members, read_members
from edgeferry.delta.varint import make_varint, read_varint
from edgeferry.errors import DeltaBaseMismatch, DeltaDamaged
from edgeferry.model.digest import Digest

MAGIC, VERSION = b"EFD", 1
PREFIX_BYTES, DIGEST_BYTES = 12, 32
MEMORY_UNIT = 1 << 20
MAX_BYTES = 1 << 40
MAX_PIECES = 1 << 16
_PIECES, _METHOD_MASK, _MAP, _BASE, _FULL_DIGESTS, _MEMBERS = 15, 15, 16, 32, 64, 128
_NESTED_AT = len(MAGIC) + 1


@dataclass(frozen=True, slots=True)
class Header:
    """What a patch says of itself.

    Attributes:
        has_base: it needs a base; otherwise it is a coded full file.
        base, target: the digests, as many bytes of each as travel (12 or 32); no base: empty.
        target_bytes: size of the target.
        memory_bytes: anonymous memory that applying it takes.
    """

    has_base: bool
    base: bytes
    target: bytes
    target_bytes: int
    memory_bytes: int

    def require_base(self, digest: Digest) -> None:
        """Raises DeltaBaseMismatch unless `digest` is the base's."""
        if bytes.fromhex(digest.hex)[: len(self.base)] != self.base:
            raise DeltaBaseMismatch(f"expected the base {self.base.hex()}..., found {digest.hex}")

    def require_target(self, digest: Digest) -> None:
        """Raises DeltaDamaged unless `digest` is the target's."""
        if bytes.fromhex(digest.hex)[: len(self.target)] != self.target:
            raise DeltaDamaged(f"expected the target {self.target.hex()}..., found {digest.hex}: the patch is damaged")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the remainder, `size_bytes` long, said in `method`, from a part of the base's remainder if need be."""

    method: int
    size_bytes: int
    data: Buffer
    base_start: int = 0
    base_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Streams:
    """The tensor codec's part: the map's method and bytes, lanes, symbols and bits. Nothing: no tensor is coded."""

    map_method: int
    map_bytes: int
    map_data: Buffer
    lanes: int
    symbols: Buffer
    bits: Buffer


@dataclass(frozen=True, slots=True)
class Container:
    """A whole patch. A single piece stands for all of both remainders: its sizes are not written."""

    header: Header
    streams: Streams | None
    pieces: tuple[Piece, ...] = field(default=())
    members: tuple[Member, ...] = field(default=())


def make_container(container: Container) -> bytes:
    """The patch's bytes."""
    header, streams, pieces = container.header, container.streams, container.pieces
    way = pieces[0].method if len(pieces) == 1 else _PIECES
    way |= _MAP * (streams is not None) | _BASE * header.has_base | _MEMBERS * bool(container.members)
    way |= _FULL_DIGESTS * (len(header.target) == DIGEST_BYTES)
    out = [MAGIC, bytes([VERSION, way]), header.base, header.target]
    out += [make_varint(header.target_bytes), make_varint(header.memory_bytes // MEMORY_UNIT)]
    if streams:
        out += [bytes([streams.map_method]), *map(make_varint, (streams.map_bytes, len(streams.map_data)))]
        out += [*map(make_varint, (streams.lanes, len(streams.symbols), len(streams.bits)))]
        out += [bytes(streams.map_data), bytes(streams.symbols), bytes(streams.bits)]
    if container.members:
        out.append(make_members(container.members))
    if len(pieces) != 1:
        out.append(make_varint(len(pieces)))
        for piece in pieces:
            out.append(bytes([piece.method]))
            base = (piece.base_start, piece.base_bytes) if piece.method in codecs.WITH_BASE else ()
            out += map(make_varint, (piece.size_bytes, len(piece.data), *base))
    return b"".join([*out, *(bytes(piece.data) for piece in pieces)])


def make_nested(data: bytes) -> bytes:
    """A member's body from a container without digests: what the outer one says is left out."""
    return data[_NESTED_AT:]


def read_header(data: Buffer) -> Header:
    """The header alone; raises DeltaDamaged."""
    return _read_header(memoryview(data))[0]


def _read_header(view: memoryview) -> tuple[Header, int, int]:
    """Header, way, and where the rest begins."""
    if bytes(view[:3]) != MAGIC or len(view) < 5:
        raise DeltaDamaged("expected a patch to begin with EFD")
    if view[3] != VERSION:
        raise DeltaDamaged(f"expected a patch of version {VERSION}, found {view[3]}: update this device first")
    way = view[_NESTED_AT]
    if way & _MAP and way & _MEMBERS:
        raise DeltaDamaged(f"expected a known way, found {way}")
    length = DIGEST_BYTES if way & _FULL_DIGESTS else PREFIX_BYTES
    header, at = _read_sizes(view, _NESTED_AT + 1, has_base=bool(way & _BASE), length=length)
    return header, way, at


def _read_sizes(view: memoryview, at: int, *, has_base: bool, length: int) -> tuple[Header, int]:
    base = bytes(view[at : at + length * has_base])
    at += len(base)
    target = bytes(view[at : at + length])
    at += length
    target_bytes, at = read_varint(view, at)
    memory, at = read_varint(view, at)
    if target_bytes > MAX_BYTES or memory * MEMORY_UNIT > MAX_BYTES or len(target) != length:
        raise DeltaDamaged("expected a sane size and memory in the patch's header")
    return Header(has_base, base, target, target_bytes, memory * MEMORY_UNIT), at


def read_container(data: Buffer, *, base_bytes: int) -> Container:
    """Where everything lies; raises DeltaDamaged. The sizes of a single piece are -1: all of both remainders."""
    view = memoryview(data)
    header, way, at = _read_header(view)
    if not header.has_base and base_bytes:
        raise DeltaBaseMismatch("expected no base: this is a coded full file")
    members: tuple[Member, ...] = ()
    if way & _MEMBERS:
        members, at = read_members(view, at, has_base=header.has_base, target_bytes=header.target_bytes)
    return _read_rest(view, at, header, way=way, members=members)


def read_nested(data: Buffer, *, has_base: bool) -> Container:
    """A member's body; raises DeltaDamaged, also where it holds members of its own."""
    view = memoryview(data)
    way = view[0] if view else 255
    if way & (_MEMBERS | _FULL_DIGESTS) or bool(way & _BASE) != has_base:
        raise DeltaDamaged(f"expected a known way in a member, found {way}")
    header, at = _read_sizes(view, 1, has_base=has_base, length=0)
    return _read_rest(view, at, header, way=way, members=())


def _read_rest(view: memoryview, at: int, header: Header, *, way: int, members: tuple[Member, ...]) -> Container:
    streams = None
    if way & _MAP:
        streams, at = _read_streams(view, at)
    method = way & _METHOD_MASK
    if method != _PIECES:
        _require_method(method, has_base=header.has_base)
        return Container(header, streams, (Piece(method, -1, view[at:], 0, -1),), members)
    return Container(header, streams, _read_pieces(view, at, header), members)


def _read_streams(view: memoryview, at: int) -> tuple[Streams, int]:
    method, numbers = view[at] if at < len(view) else 255, []
    _require_method(method, has_base=False)
    at += 1
    for _ in range(5):
        number, at = read_varint(view, at)
        numbers.append(number)
    map_bytes, map_length, lanes, symbols, bits = numbers
    ends = (at + map_length, at + map_length + symbols, at + map_length + symbols + bits)
    if ends[2] > len(view) or map_bytes > 1 << 24:
        raise DeltaDamaged("the patch is cut, or its map is too large")
    found = Streams(method, map_bytes, view[at : ends[0]], lanes, view[ends[0] : ends[1]], view[ends[1] : ends[2]])
    return found, ends[2]


def _read_pieces(view: memoryview, at: int, header: Header) -> tuple[Piece, ...]:
    count, at = read_varint(view, at)
    if count > MAX_PIECES:
        raise DeltaDamaged(f"expected at most {MAX_PIECES} pieces, found {count}")
    found: list[tuple[int, list[int]]] = []
    for _ in range(count):
        method, numbers = view[at] if at < len(view) else 255, []
        _require_method(method, has_base=header.has_base)
        at += 1
        for _ in range(4 if method in codecs.WITH_BASE else 2):
            number, at = read_varint(view, at)
            numbers.append(number)
        found.append((method, numbers))
    pieces = []
    for method, numbers in found:
        size_bytes, length, *base = numbers
        if at + length > len(view):
            raise DeltaDamaged("the patch is cut")
        pieces.append(Piece(method, size_bytes, view[at : at + length], *base))
        at += length
    if at != len(view):
        raise DeltaDamaged("expected nothing behind the last piece")
    return tuple(pieces)


def _require_method(method: int, *, has_base: bool) -> None:
    if method not in codecs.METHODS or (method in codecs.WITH_BASE and not has_base):
        raise DeltaDamaged(f"expected a known method, found {method}")
