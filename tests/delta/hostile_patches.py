"""Patches that were made well and then damaged: seeded, blindly and with a feeling for what stands where.

Rules:
- `SAMPLES` are real patches of every way; each mutation begins with one of them (a splice with two).
- A mutation that knows the layout keeps lengths right, so that damage reaches what lies behind them.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from delta.model_pairs import PAIRS, get_full, get_pair, get_patch
from edgeferry.delta import codecs
from edgeferry.delta.container import MEMORY_UNIT, Container, Header, Piece, make_container, read_container
from edgeferry.delta.make import make_patch
from edgeferry.delta.varint import make_varint, read_varint
from edgeferry.model.digest import Digest

MEMORY_BYTES = 32 << 20
ODD_NUMBERS = (0, 1, 2, 127, 128, 255, 1 << 14, 65_535, 65_536, 1 << 24, (1 << 31) - 1, 1 << 32, 1 << 40, (1 << 62) - 1)


@dataclass(frozen=True)
class Sample:
    """A good patch: what it needs, what it gives, and what a manifest would say of its memory."""

    base: bytes
    target: bytes
    patch: bytes
    memory_bytes: int


# --- good patches -----------------------------------------------------------------------------------------------------
def make_texts() -> tuple[bytes, bytes]:
    """Two files without tensors, which differ here and there."""
    dice = np.random.default_rng(5)
    base = b"".join(b"line %d of a text that has no tensors %d\n" % (at, dice.integers(0, 99)) for at in range(300))
    return base, base[:4000] + b"something new in between" + base[4100:] + dice.bytes(200)


def wrap(base: bytes, target: bytes, pieces: tuple[Piece, ...], *, has_base: bool = True) -> bytes:
    """A patch of pieces alone, its header right."""
    digests = [bytes.fromhex(Digest.of(data).hex)[:12] for data in (base, target)]
    header = Header(has_base, digests[0] if has_base else b"", digests[1], len(target), MEMORY_BYTES)
    return make_container(Container(header, None, pieces))


def _make_by_method(method: int, *, has_base: bool) -> Sample:
    base, target = make_texts()
    base = base if has_base else b""
    piece = Piece(method, len(target), codecs.encode(method, base, target), 0, len(base))
    return Sample(base, target, wrap(base, target, (piece,), has_base=has_base), MEMORY_BYTES)


def _make_in_pieces() -> Sample:
    """Each method once, each piece from another part of the base."""
    base, target = make_texts()
    step = -(-len(target) // len(codecs.METHODS))
    pieces = []
    for at, method in enumerate(codecs.METHODS):
        part = target[at * step : (at + 1) * step]
        start, end = (at * step, min(len(base), (at + 2) * step)) if method in codecs.WITH_BASE else (0, 0)
        pieces.append(Piece(method, len(part), codecs.encode(method, base[start:end], part), start, end - start))
    return Sample(base, target, wrap(base, target, tuple(pieces)), MEMORY_BYTES)


def make_zip(model: bytes, method: int) -> bytes:
    """A classic bundle: a model, and labels that are stored."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo("model.onnx"), model, method)
        archive.writestr(zipfile.ZipInfo("labels.txt"), b"a label\n" * 20, zipfile.ZIP_STORED)
    return stream.getvalue()


def _make_archives(method: int) -> Sample:
    pair = get_pair("fine-tuned")
    base, target = (make_zip(model, method) for model in (pair.base, pair.target))
    patch = make_patch(base, target)
    return Sample(base, target, patch.data, patch.memory_bytes)


@cache
def make_samples() -> dict[str, Sample]:
    """All of them, by name."""
    found = {}
    for name in PAIRS:
        pair, patch = get_pair(name), get_patch(name)
        found[name] = Sample(pair.base, pair.target, patch.data, patch.memory_bytes)
    for name in ("fine-tuned", "duplicates", "bfloat16", "quantised in float64", "odd numbers"):
        pair, patch = get_pair(name), get_full(name)
        found[f"full, {name}"] = Sample(b"", pair.target, patch.data, patch.memory_bytes)
    for method, words in codecs.METHODS.items():
        found[words] = _make_by_method(method, has_base=True)
        if method not in codecs.WITH_BASE:
            found[f"full, {words}"] = _make_by_method(method, has_base=False)
    found["in pieces"] = _make_in_pieces()
    found["archives that are packed"] = _make_archives(zipfile.ZIP_DEFLATED)
    found["archives that are stored"] = _make_archives(zipfile.ZIP_STORED)
    return found


# --- damage that knows nothing ----------------------------------------------------------------------------------------
def flip_bits(patch: bytes, dice: random.Random) -> bytes:
    """A few bits are others, half of the time in the first bytes."""
    data = bytearray(patch)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(data) if dice.random() < 0.5 else min(len(data), 90))
        data[at] ^= 1 << dice.randrange(8)
    return bytes(data)


def set_bytes(patch: bytes, dice: random.Random) -> bytes:
    """A few bytes are extreme ones."""
    data, at = bytearray(patch), dice.randrange(len(patch))
    odd = dice.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff" * 9, dice.randbytes(8)])
    data[at : at + len(odd)] = odd
    return bytes(data)


def truncate(patch: bytes, dice: random.Random) -> bytes:
    """The end is missing."""
    return patch[: dice.randrange(len(patch))]


def take_out(patch: bytes, dice: random.Random) -> bytes:
    """A part is missing."""
    at = dice.randrange(len(patch))
    return patch[:at] + patch[at + dice.randint(1, 64) :]


def put_in(patch: bytes, dice: random.Random) -> bytes:
    """A part stands twice, or strange bytes stand in between."""
    at, length = dice.randrange(len(patch) + 1), dice.randint(1, 64)
    return patch[:at] + (patch[at : at + length] if dice.random() < 0.5 else dice.randbytes(length)) + patch[at:]


def splice(patch: bytes, dice: random.Random) -> bytes:
    """It goes on as another patch."""
    other = dice.choice(list(make_samples().values())).patch
    at = dice.randrange(min(len(patch), len(other)))
    return patch[:at] + other[at + dice.choice((0, 0, 1, -1)) :]


def damage(data: bytes, dice: random.Random) -> bytes:
    """One of these; nothing becomes something."""
    return dice.choice(BLIND)(data, dice) if data else dice.randbytes(3)


BLIND: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip_bits, set_bytes, truncate, take_out, put_in)


# --- damage that knows the layout -------------------------------------------------------------------------------------
def pick_number(dice: random.Random, now: int) -> int:
    """A number instead of `now`: near to it, or far away."""
    near = (now + dice.choice((-2, -1, 1, 2)), now * 2, now // 2, now ^ 1 << dice.randrange(20))
    return max(0, dice.choice((*near, *dice.choices(ODD_NUMBERS, k=3))))


def change_header(container: Container, dice: random.Random) -> Container:
    """Sizes, memory and digests, or that there is a base."""
    header = container.header
    changes = (
        {"target_bytes": pick_number(dice, header.target_bytes)},
        {"memory_bytes": pick_number(dice, header.memory_bytes // MEMORY_UNIT) * MEMORY_UNIT},
        {"target": dice.randbytes(12)},
        {"base": dice.randbytes(12), "has_base": True},
        {"base": b"", "has_base": False},
    )
    return replace(container, header=replace(header, **dice.choice(changes)))


def change_map(container: Container, dice: random.Random) -> Container:
    """Numbers of the map are others; it is coded again, so that it is read."""
    streams = container.streams
    if streams is None or not streams.map_bytes:
        return change_pieces(container, dice)
    plain = memoryview(codecs.decode(streams.map_method, b"", streams.map_data, streams.map_bytes))
    numbers, at = [], 0
    while at < len(plain):
        number, at = read_varint(plain, at)
        numbers.append(number)
    if not numbers:  # a container that was damaged before
        return change_pieces(container, dice)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        index = dice.randrange(len(numbers))
        numbers[index] = pick_number(dice, numbers[index])
    if dice.random() < 0.1:
        numbers = numbers[: dice.randrange(len(numbers))] if dice.random() < 0.5 else [*numbers, 0]
    data = b"".join(map(make_varint, numbers))
    return replace(container, streams=replace(streams, map_method=codecs.RAW, map_bytes=len(data), map_data=data))


def change_streams(container: Container, dice: random.Random) -> Container:
    """Symbols and bits are others, cut or longer; or there are more lanes or fewer."""
    streams = container.streams
    if streams is None:
        return change_pieces(container, dice)
    kind = dice.randrange(5)
    symbols, bits = bytes(streams.symbols), bytes(streams.bits)
    if kind == 0:
        return replace(container, streams=replace(streams, lanes=pick_number(dice, streams.lanes)))
    if kind == 1:
        return replace(container, streams=replace(streams, symbols=dice.randbytes(len(symbols))))
    if kind == 2 and bits:
        return replace(container, streams=replace(streams, bits=damage(bits, dice)))
    if kind == 3:
        return replace(container, streams=replace(streams, symbols=bits, bits=symbols))
    damaged = damage(symbols, dice)
    return replace(container, streams=replace(streams, symbols=damaged[: len(damaged) // 2 * 2]))


def change_pieces(container: Container, dice: random.Random) -> Container:
    """Numbers or bytes of a piece are others, or its method; or pieces are swapped, missing or too many."""
    pieces = [one if one.size_bytes >= 0 else replace(one, size_bytes=0, base_bytes=0) for one in container.pieces]
    if not pieces:
        return container
    at = dice.randrange(len(pieces))
    data = bytes(pieces[at].data)
    kind = dice.randrange(8)
    if kind <= 2 and data:
        pieces[at] = replace(pieces[at], data=damage(data, dice))
        if len(container.pieces) == 1:
            return replace(container, pieces=tuple(pieces))
    elif kind == 3:
        pieces[at] = replace(pieces[at], method=dice.choice(list(codecs.METHODS)))
    elif kind == 4:
        dice.shuffle(pieces)
        pieces += pieces[: dice.randrange(2)]
    elif kind == 5:
        del pieces[at]
    else:
        name = dice.choice(("size_bytes", "base_start", "base_bytes"))
        pieces[at] = replace(pieces[at], **{name: pick_number(dice, getattr(pieces[at], name))})
    return replace(container, pieces=tuple(pieces))


def change_members(container: Container, dice: random.Random) -> Container:
    """A file of an archive lies elsewhere, has another size or level, or another body."""
    members = list(container.members)
    if not members:
        return change_hdiff_numbers(container, dice)
    at = dice.randrange(len(members))
    member, base = members[at], members[at].base
    kind = dice.randrange(6)
    if kind == 0:
        member = replace(member, level=dice.randrange(11))
    elif kind == 1:
        member = replace(member, packed_bytes=pick_number(dice, member.packed_bytes))
    elif kind == 2:
        member = replace(member, start=member.start + pick_number(dice, 0))
    elif kind == 3 and base:
        name = dice.choice(("start", "packed_bytes", "size_bytes"))
        member = replace(member, base=base._replace(**{name: pick_number(dice, getattr(base, name))}))
    elif kind == 4 and base:
        member = replace(member, base=base._replace(is_deflated=not base.is_deflated) if dice.random() < 0.5 else None)
    elif member.body:
        member = replace(member, body=damage(bytes(member.body), dice))
    members[at], end = member, 0
    for index, each in enumerate(members):  # a gap is never below zero
        members[index] = replace(each, start=max(each.start, end))
        end = members[index].end
    return replace(container, members=tuple(members))


def change_hdiff_numbers(container: Container, dice: random.Random) -> Container:
    """One of the first bytes of a piece: sizes in hdiffpatch's header, dictionaries, frame headers."""
    pieces = list(container.pieces)
    if not pieces:
        return container
    at = dice.randrange(len(pieces))
    data = bytearray(pieces[at].data)
    for _ in range(dice.randint(1, 3)):
        if data:
            data[dice.randrange(min(len(data), 48))] = dice.choice((0, 0x7F, 0x80, 0xFF, 40, dice.randrange(256)))
    pieces[at] = replace(pieces[at], data=bytes(data))
    return replace(container, pieces=tuple(pieces))


KNOWING = (
    *(change_header, change_map, change_map, change_streams, change_streams),
    *(change_pieces, change_hdiff_numbers, change_members),
)


def mutate(sample: Sample, dice: random.Random) -> bytes:
    """A damaged patch; now and then it may be as good as before."""
    if dice.random() < 0.4:
        return dice.choice((*BLIND, splice))(sample.patch, dice)
    container = read_container(sample.patch, base_bytes=len(sample.base))
    for _ in range(dice.choice((1, 1, 1, 2))):
        container = (change_members if container.members and dice.random() < 0.7 else dice.choice(KNOWING))(
            container, dice
        )
    return make_container(container)


def make_mutation(seed: int) -> tuple[str, bytes]:
    """A sample's name and a damaged patch of it; the same for the same seed."""
    dice = random.Random(seed)
    name = dice.choice(list(make_samples()))
    return name, mutate(make_samples()[name], dice)
