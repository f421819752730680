"""v2_tensors: bodies of the Open Inference Protocol (KServe v2): tensors as JSON, as raw bytes after it, or both.

Sans-IO: a body in, a request out, whose tensors are bytes still; an answer's tensors in, a body out. What the numbers
mean is the worker's; routes are `serve/v2.py`'s. Source: the protocol's `required_api` and its binary tensor extension.

Rules:
- Nothing is believed: sizes, counts and names are bounded and compared before anything is made of them. Whatever does
  not fit is RequestInvalid.
- Binary tensors are never copied or looked at here (BYTES: their length prefixes are counted).
- Tensors as JSON cost an object per element, in this process: those of a request are held to JSON_INPUTS_MAX elements,
  those of an answer to JSON_OUTPUTS_MAX; whoever has more sends and asks for binary data. Numbers are read a piece at a
  time, between which other threads have their turn: one at the edge of a double's range costs a hundred common ones.
- No numpy: this runs in the main process. Raw tensors are little-endian, row by row; a BYTES element has its length
  before it, 4 bytes. JSON arrays may be nested or flat: brackets inside are not compared with the shape.
"""

from __future__ import annotations

import array
import math
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from edgeferry.errors import RequestInvalid

BYTES = "BYTES"
JSON_INPUTS_MAX = 1 << 19
JSON_OUTPUTS_MAX = 1 << 20
JSON_MAX_BYTES = 16 << 20
BYTES_ELEMENTS_MAX = 1 << 16
BYTES_JSON_MAX_BYTES = 4 << 20
TENSORS_MAX = 64
RANK_MAX = 8
SIDE_MAX = 1 << 31

_PIECE_BYTES = 64 << 10
_LENGTH = struct.Struct("<I")
_CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
DATATYPES = (*_CODES, BYTES)
"""All that can be sent and answered."""
ITEM_BYTES = {name: struct.calcsize("<" + code) for name, code in _CODES.items()}
Data = bytes | bytearray | memoryview
Number = int | float | bool


class TensorEntry(msgspec.Struct, frozen=True):
    """A tensor that lies in a body: its bytes follow those of the entries before it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size_bytes: int


class InputParameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """`binary_data_size`: so many bytes of this tensor stand after the JSON, in place of `data`."""

    binary_data_size: int | None = None


class InputTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input; `data` is a flat or nested array, unless its bytes come after the JSON."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: InputParameters = InputParameters()
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class OutputParameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """`binary_data`: as raw bytes or not; `classification`: so many of the best as `score:index:label`."""

    binary_data: bool | None = None
    classification: int = 0


class WantedOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """`binary_data_output`: what holds for outputs that do not say."""

    binary_data_output: bool = False


class InferRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of a request; without `outputs` all are answered."""

    inputs: tuple[InputTensor, ...]
    id: str = ""
    parameters: RequestParameters = RequestParameters()
    outputs: tuple[WantedOutput, ...] = ()


class AnswerParameters(msgspec.Struct, frozen=True):
    """`binary_data_size`: so many bytes of this tensor stand after the JSON."""

    binary_data_size: int


class AnswerTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output: with `data`, or with its bytes after the JSON. A number that JSON does not have (NaN) is null."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: AnswerParameters | None = None
    data: Sequence[Number | str | None] | None = None


class InferAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of an answer."""

    model_name: str
    model_version: str
    outputs: tuple[AnswerTensor, ...]
    id: str = ""


@dataclass(frozen=True, slots=True)
class TensorRequest:
    """A request, checked: the bytes of `inputs` stand in `body`, one after the other."""

    id: str
    inputs: tuple[TensorEntry, ...]
    body: Data
    outputs: tuple[WantedOutput, ...]
    is_binary: bool


@dataclass(frozen=True, slots=True)
class OutTensor:
    """An output with its bytes, and whether they leave as they are."""

    entry: TensorEntry
    data: Data
    is_binary: bool


_REQUESTS = msgspec.json.Decoder(InferRequest)
_FLAT: dict[str, msgspec.json.Decoder[Any]] = {
    name: msgspec.json.Decoder(list[float] if name.startswith("FP") else list[bool] if name == "BOOL" else list[int])
    for name in _CODES
}
_TEXTS = msgspec.json.Decoder(list[str])


# --- requests ---------------------------------------------------------------------------------------------------------
def read_infer(body: bytes, header_length: str | None = None) -> TensorRequest:
    """Reads a request; `header_length` is the header Inference-Header-Content-Length, None where there is none.

    Raises:
        RequestInvalid: it is not what the protocol says; the message names what was expected and found.
    """
    head, tail = _split(body, header_length)
    if len(head) > JSON_MAX_BYTES:
        raise RequestInvalid(f"expected at most {JSON_MAX_BYTES} bytes of JSON, found {len(head)}: send binary data")
    request = _read_json(head)
    _require_few(request)
    sizes = [_get_binary_size(one) for one in request.inputs]
    if sum(size or 0 for size in sizes) != len(tail):
        raise RequestInvalid(f"expected {sum(size or 0 for size in sizes)} bytes after the JSON, found {len(tail)}")
    counts = [_count_elements(one) for one in request.inputs]
    as_json = sum(count for count, size in zip(counts, sizes, strict=True) if size is None)
    _require_few_numbers(as_json, "inputs", most=JSON_INPUTS_MAX)
    blocks, at = [], 0
    for one, size, count in zip(request.inputs, sizes, counts, strict=True):
        block = _pack_json(one, count) if size is None else tail[at : at + size]
        _require_size(one, block, count)
        blocks.append(block)
        at += size or 0
    entries = (
        TensorEntry(one.name, one.datatype, one.shape, len(block))
        for one, block in zip(request.inputs, blocks, strict=True)
    )
    whole = tail if None not in sizes else b"".join(blocks)
    return TensorRequest(request.id, tuple(entries), whole, request.outputs, request.parameters.binary_data_output)


def get_json_size(body: bytes, header_length: str | None = None) -> int:
    """How many bytes of a request are JSON; raises RequestInvalid where the header is wrong."""
    return len(_split(body, header_length)[0])


def _split(body: bytes, header_length: str | None) -> tuple[memoryview, memoryview]:
    view = memoryview(body)
    if header_length is None:
        return view, view[:0]
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
        raise RequestInvalid(f"expected a number in Inference-Header-Content-Length, found {header_length!r:.40}")
    size_bytes = int(header_length)
    if size_bytes > len(body):
        raise RequestInvalid(f"expected {size_bytes} bytes of JSON as the header says, found a body of {len(body)}")
    return view[:size_bytes], view[size_bytes:]


def _read_json(head: memoryview) -> InferRequest:
    try:
        return _REQUESTS.decode(head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestInvalid(f"expected an inference request of the v2 protocol: {error!s:.300}") from error


def _require_few(request: InferRequest) -> None:
    for what, found in (("inputs", request.inputs), ("outputs", request.outputs)):
        names = [one.name for one in found]
        if len(names) > TENSORS_MAX or len(set(names)) != len(names):
            raise RequestInvalid(f"expected at most {TENSORS_MAX} {what}, each once, found {len(names)}")
    if not request.inputs:
        raise RequestInvalid("expected at least one input, found none")


def _require_few_numbers(count: int, what: str, *, most: int) -> None:
    if count > most:
        raise RequestInvalid(f"expected {what} of at most {most} elements as JSON in all, found {count}:"
                             " send or ask for binary data")  # fmt: skip


def _get_binary_size(one: InputTensor) -> int | None:
    size = one.parameters.binary_data_size
    if size is not None and size < 0:
        raise RequestInvalid(f"expected the size of input {one.name!r:.80}, found {size}")
    if (size is None) == (not bytes(one.data)):
        raise RequestInvalid(f"expected either data or binary_data_size for input {one.name!r:.80}")
    return size


def _count_elements(one: InputTensor) -> int:
    if one.datatype not in DATATYPES:
        known = ", ".join(DATATYPES)
        raise RequestInvalid(f"expected input {one.name!r:.80} of {known}, found datatype {one.datatype!r:.40}")
    if len(one.shape) > RANK_MAX or not all(0 < side < SIDE_MAX for side in one.shape):
        raise RequestInvalid(
            f"expected at most {RANK_MAX} sides of 1 or more for input {one.name!r:.80}, found {list(one.shape)!r:.100}"
        )
    return math.prod(one.shape)


def _require_size(one: InputTensor, data: Data, count: int) -> None:
    if one.datatype == BYTES:
        if count > BYTES_ELEMENTS_MAX:
            raise RequestInvalid(f"expected at most {BYTES_ELEMENTS_MAX} elements of BYTES, found {count}")
        found = sum(1 for _ in iterate_bytes(data, limit=count))
        if found != count:
            raise RequestInvalid(f"expected {count} elements in input {one.name!r:.80}, found {found}")
    elif len(data) != count * ITEM_BYTES[one.datatype]:
        needed = count * ITEM_BYTES[one.datatype]
        raise RequestInvalid(
            f"expected {needed} bytes for input {one.name!r:.80} {one.datatype}{list(one.shape)}, found {len(data)}"
        )


def _pack_json(one: InputTensor, count: int) -> bytes:
    """The elements of a JSON array as raw bytes. Numbers stand between commas: they are counted before any is made."""
    raw = bytes(one.data)
    if one.datatype == BYTES:
        return _pack_texts(one, raw)
    found = raw.count(b",") + 1 if raw.startswith(b"[") else 0
    if found != count:
        raise RequestInvalid(f"expected {count} elements in input {one.name!r:.80} {list(one.shape)}, found {found}")
    try:
        decode = _FLAT[one.datatype].decode
        return b"".join(_pack(one.datatype, decode(piece)) for piece in _iterate_pieces(raw.translate(None, b"[]")))
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, struct.error) as error:
        raise RequestInvalid(
            f"expected numbers of {one.datatype} in input {one.name!r:.80}, found others: {error!s:.100}"
        ) from error


def _iterate_pieces(numbers: bytes) -> Iterator[bytes]:
    """What stands between commas, as arrays of about `_PIECE_BYTES`."""
    at = 0
    while at <= len(numbers):
        comma = numbers.find(b",", at + _PIECE_BYTES)
        end = comma if comma >= 0 else len(numbers)
        yield b"[" + numbers[at:end] + b"]"
        at = end + 1


def _pack_texts(one: InputTensor, raw: bytes) -> bytes:
    if len(raw) > BYTES_JSON_MAX_BYTES:
        raise RequestInvalid(f"expected at most {BYTES_JSON_MAX_BYTES} bytes of BYTES as JSON, found {len(raw)}")
    try:
        return pack_bytes([text.encode() for text in _TEXTS.decode(raw)])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise RequestInvalid(
            f"expected a flat array of strings in input {one.name!r:.80}, found another: {error!s:.100}"
        ) from error


# --- raw bytes --------------------------------------------------------------------------------------------------------
def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """Elements of a BYTES tensor, each with its length before it."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def iterate_bytes(data: Data, *, limit: int) -> Iterator[memoryview]:
    """The elements of a BYTES tensor, at most one more than `limit`; raises RequestInvalid where a length is wrong."""
    view, at, found = memoryview(data), 0, 0
    while at < len(view) and found <= limit:
        end = at + _LENGTH.size
        size = _LENGTH.unpack_from(view, at)[0] if end <= len(view) else len(view)
        if end + size > len(view):
            raise RequestInvalid(f"expected an element of BYTES within {len(view)} bytes, found one that ends later")
        yield view[end : end + size]
        at, found = end + size, found + 1


def unpack(datatype: str, data: Data) -> Sequence[Number]:
    """The numbers of a raw tensor; not for BYTES."""
    if datatype == "BOOL":
        return [bool(value) for value in bytes(data)]
    if datatype == "FP16":
        return struct.unpack(f"<{len(data) // 2}e", data)
    values = array.array(_CODES[datatype])
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _pack(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BOOL":
        return bytes(values)
    if datatype == "FP16":
        return struct.pack(f"<{len(values)}e", *values)
    packed = array.array(_CODES[datatype], values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


# --- answers ----------------------------------------------------------------------------------------------------------
def make_answer(request_id: str, model: str, version: str, outputs: Sequence[OutTensor]) -> tuple[bytes, int | None]:
    """The body of an answer, and how many bytes of it are JSON; None when it is JSON as a whole.

    Raises:
        RequestInvalid: an output does not go into JSON; ask for binary data.
    """
    as_json = sum(math.prod(one.entry.shape) for one in outputs if not one.is_binary)
    _require_few_numbers(as_json, "outputs", most=JSON_OUTPUTS_MAX)
    tensors = tuple(_make_tensor(one) for one in outputs)
    head = msgspec.json.encode(InferAnswer(model, version, tensors, request_id))
    raw = [one.data for one in outputs if one.is_binary]
    return (b"".join([head, *raw]), len(head)) if raw else (head, None)


def _make_tensor(one: OutTensor) -> AnswerTensor:
    entry = one.entry
    if one.is_binary:
        return AnswerTensor(entry.name, entry.datatype, entry.shape, AnswerParameters(len(one.data)))
    return AnswerTensor(entry.name, entry.datatype, entry.shape, data=_list_elements(entry, one.data))


def _list_elements(entry: TensorEntry, data: Data) -> list[Number | str | None]:
    if entry.datatype != BYTES:
        return list(unpack(entry.datatype, data))
    try:
        return [bytes(element).decode() for element in iterate_bytes(data, limit=math.prod(entry.shape))]
    except UnicodeDecodeError as error:
        raise RequestInvalid(f"output {entry.name!r:.80} is no text: ask for binary_data") from error
