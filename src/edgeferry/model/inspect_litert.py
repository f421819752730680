"""LiteRT (.tflite) model bytes -> ModelFacts, and the files packed behind them, without flatbuffers or its schema.

What the facts mean is left to `families.py`; whether the graph is valid, to the engine that loads it.

Rules:
- Reads the first subgraph: inputs, outputs, operators; signatures; TFLite metadata; weights are measured and skipped.
- Packed files are a ZIP appended to the FlatBuffer; its directory is bounded before zipfile sees it, and its members
  pass the same checks as a bundle's.
- Every error is ModelUnreadable.

Sources: schema.fbs (version 3) and metadata_schema.fbs of TensorFlow Lite; slots below are in their order.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections import Counter

from edgeferry.errors import BundleError, ModelUnreadable
from edgeferry.model.bundle import BundleLimits, Member, check_members
from edgeferry.model.facts import ModelFacts, PackedFile, PictureFacts, PostProcessFacts, TensorFacts
from edgeferry.model.flatbuffer import Buffer, Table, read_flex_numbers
from edgeferry.model.litert_names import BUILTIN_OPERATORS, DTYPES

POST_PROCESS = "TFLite_Detection_PostProcess"
_CUSTOM = 32
_SEEN_THROUGH = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "QUANTIZE", "DEQUANTIZE", "CAST"})
_SEEN_THROUGH_MAX = 32
_RANK_MAX = 64
_TENSORS_MAX = 10_000
_CHANNELS_MAX = 65_536
_PACKED_LIMITS = BundleLimits(max_members=64, max_member_bytes=64 << 20, max_total_bytes=256 << 20)
_DIRECTORY_MAX_BYTES = 1 << 20
_END_MARK = b"PK\x05\x06"
_END_BYTES = 22
_COMMENT_MAX_BYTES = 0xFFFF


def inspect_litert(data: memoryview) -> ModelFacts:
    """Reads a LiteRT model.

    Raises:
        ModelUnreadable: not such a model, cut off, or of unreasonable size.
    """
    buffer = Buffer(data)
    model = buffer.get_root(b"TFL3")
    graph = model.get_item(2, 0)
    operators, makers, post_process = _read_operators(buffer, model, graph)
    metadata = _find_metadata(buffer, model)
    outputs = tuple(_read_tensor(graph, index, makers) for index in graph.get_ints(2, _TENSORS_MAX))
    inputs = tuple(_read_tensor(graph, index, {}) for index in graph.get_ints(1, _TENSORS_MAX))
    if not inputs or not outputs or not operators:
        raise ModelUnreadable("expected a LiteRT graph with inputs, operators and outputs, found none")
    described = metadata and next(metadata.iter_tables(3), None)
    return ModelFacts(
        format="litert",
        inputs=_describe(inputs, described, 2),
        outputs=_describe(outputs, described, 3),
        operators=operators,
        opset=model.get_int(0, "I"),
        producer=model.get_text(3),
        metadata=_read_texts(metadata) if metadata else {},
        signatures=_read_signatures(model, graph),
        weight_bytes=sum(each.get_vector(0, 1)[1] for each in model.iter_tables(4)),
        picture=_read_picture(described) if described else PictureFacts(),
        post_process=post_process,
        packed=_list_packed(data, _get_label_files(metadata, described) if metadata else frozenset()),
    )


def read_packed(data: memoryview, name: str) -> bytes:
    """Bytes of a file packed into the model.

    Raises:
        ModelUnreadable: there is no such file, or it is damaged.
    """
    with _open_packed(data) as archive:
        member = next((each for each in _check_packed(archive) if each.name == name), None)
        if member is None:
            raise ModelUnreadable(f"expected a file {name!r:.80} packed into the model, found none")
        try:
            with archive.open(member.info) as source:
                return source.read(member.size_bytes)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error) as error:
            raise ModelUnreadable(f"expected {name!r:.80} packed into the model, found it damaged") from error


# --- the graph --------------------------------------------------------------------------------------------------------
def _read_operators(
    buffer: Buffer, model: Table, graph: Table
) -> tuple[dict[str, int], dict[int, tuple[str, int]], PostProcessFacts | None]:
    """Counts, makers (tensor index -> operator that writes it, its first input), and the SSD operator or None."""
    names = [_read_operator_name(code) for code in model.iter_tables(1)]
    counts: Counter[str] = Counter()
    makers: dict[int, tuple[str, int]] = {}
    post_process = None
    for operator in graph.iter_tables(3):
        index = operator.get_int(0, "I")
        if index >= len(names):
            raise ModelUnreadable(f"expected an operator code below {len(names)}, found {index}")
        counts[names[index]] += 1
        inputs, outputs = operator.get_ints(1, _TENSORS_MAX), operator.get_ints(2, _TENSORS_MAX)
        makers.update(dict.fromkeys(outputs, (names[index], inputs[0] if inputs else -1)))
        if names[index] == POST_PROCESS and post_process is None:
            post_process = _read_post_process(buffer, graph, operator)
    return dict(counts), makers, post_process


def _read_operator_name(code: Table) -> str:
    # Codes above 127 stand in a second field; older files have only the first.
    builtin = max(code.get_int(0, "b"), code.get_int(3, "i"))
    if builtin == _CUSTOM:
        return code.get_text(1)
    return BUILTIN_OPERATORS[builtin] if 0 <= builtin < len(BUILTIN_OPERATORS) else f"builtin:{builtin}"


def _read_post_process(buffer: Buffer, graph: Table, operator: Table) -> PostProcessFacts:
    names = tuple(graph.get_item(0, index).get_text(3) for index in operator.get_ints(2, _RANK_MAX))
    start, count = operator.get_vector(5, 1)
    numbers = read_flex_numbers(buffer.data[start : start + count]) if count else {}
    classes, most = numbers.get("num_classes"), numbers.get("max_detections")
    return PostProcessFacts(
        outputs=names,
        num_classes=None if classes is None else int(classes),
        max_detections=None if most is None else int(most),
        score_threshold=numbers.get("nms_score_threshold"),
    )


def _read_tensor(graph: Table, index: int, makers: dict[int, tuple[str, int]]) -> TensorFacts:
    tensor = graph.get_item(0, index)
    shape = tensor.get_ints(7, _RANK_MAX) or tensor.get_ints(0, _RANK_MAX)
    scale, zero = _read_quantisation(tensor.get_table(4))
    kind, source = makers.get(index, ("", -1))
    for _ in range(_SEEN_THROUGH_MAX):
        if kind not in _SEEN_THROUGH or source not in makers:
            break
        kind, source = makers[source]
    return TensorFacts(
        tensor.get_text(3),
        DTYPES.get(tensor.get_int(1, "b"), ""),
        tuple(size if size >= 0 else None for size in shape),
        quant_scale=scale,
        quant_zero=zero,
        made_by=kind,
    )


def _read_quantisation(table: Table | None) -> tuple[float, int]:
    """Scale and zero point of a tensor quantised as a whole; (0, 0) otherwise."""
    scales = table.get_scalars(2, "f", _CHANNELS_MAX) if table else ()
    if table is None or len(scales) != 1:
        return 0.0, 0
    zeros = table.get_scalars(3, "q", _CHANNELS_MAX)
    return float(scales[0]), int(zeros[0]) if zeros else 0


def _read_signatures(model: Table, graph: Table) -> dict[str, dict[str, str]]:
    return {
        signature.get_text(2): {
            entry.get_text(0): graph.get_item(0, entry.get_int(1, "I")).get_text(3)
            for slot in (0, 1)
            for entry in signature.iter_tables(slot)
        }
        for signature in model.iter_tables(7)
        if signature.get_int(4, "I") == 0
    }


# --- TFLite metadata --------------------------------------------------------------------------------------------------
_METADATA_TEXTS = {"name": 0, "description": 1, "version": 2, "author": 4, "license": 5}
_IMAGE_PROPERTIES, _NORMALISATION = 2, 1
_COLOURS = {1: "rgb", 2: "grey"}
_LABEL_TYPES = (2, 3)


def _find_metadata(buffer: Buffer, model: Table) -> Table | None:
    """Root of the metadata that lies as a FlatBuffer of its own in one of the model's buffers."""
    for entry in model.iter_tables(6):
        if entry.get_text(0) == "TFLITE_METADATA":
            start, count = model.get_item(4, entry.get_int(1, "I")).get_vector(0, 1)
            return Buffer(buffer.data[start : start + count]).get_root(b"M001")
    return None


def _read_texts(metadata: Table) -> dict[str, str]:
    texts = {key: metadata.get_text(slot) for key, slot in _METADATA_TEXTS.items()}
    return {key: text for key, text in texts.items() if text}


def _describe(tensors: tuple[TensorFacts, ...], described: Table | None, slot: int) -> tuple[TensorFacts, ...]:
    """Adds the names that the metadata gives, which follow the order of the tensors."""
    names = [each.get_text(0) for each in described.iter_tables(slot)] if described else []
    if len(names) != len(tensors):
        return tensors
    return tuple(
        TensorFacts(each.name, each.dtype, each.shape, each.quant_scale, each.quant_zero, name, each.made_by)
        for each, name in zip(tensors, names, strict=True)
    )


def _read_picture(described: Table) -> PictureFacts:
    """Normalisation and colours of the first input."""
    tensor = next(described.iter_tables(2), None)
    if tensor is None:
        return PictureFacts()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    for unit in tensor.iter_tables(4):
        options = unit.get_table(1) if unit.get_int(0, "B") == _NORMALISATION else None
        if options is not None:
            mean, std = options.get_scalars(0, "f", 16), options.get_scalars(1, "f", 16)
    content = tensor.get_table(3)
    image = content.get_table(1) if content and content.get_int(0, "B") == _IMAGE_PROPERTIES else None
    colour = _COLOURS.get(image.get_int(0, "b"), "") if image else ""
    return PictureFacts(mean, std, "rgb" if colour == "rgb" else "grey" if colour else "")


def _get_label_files(metadata: Table, described: Table | None) -> frozenset[str]:
    """Names of packed files that the metadata declares to be labels, for the model, its graph or an output."""
    owners = [metadata.iter_tables(6)]
    if described is not None:
        owners += [described.iter_tables(4), *(each.iter_tables(6) for each in described.iter_tables(3))]
    return frozenset(each.get_text(0) for files in owners for each in files if each.get_int(2, "b") in _LABEL_TYPES)


# --- packed files -----------------------------------------------------------------------------------------------------
class _ViewFile(io.RawIOBase):
    """A memoryview as a file that zipfile can read, without copying it."""

    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._position, len(self._data))[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._position + size
        block = bytes(self._data[self._position : end])
        self._position += len(block)
        return block


def _find_directory_end(data: memoryview) -> int:
    """Where the ZIP's end record lies, by the same rules as zipfile; -1 without a ZIP."""
    last = len(data) - _END_BYTES
    if last < 0:
        return -1
    if bytes(data[last : last + 4]) == _END_MARK and bytes(data[-2:]) == b"\x00\x00":
        return last
    start = max(0, last - _COMMENT_MAX_BYTES)
    found = bytes(data[start:]).rfind(_END_MARK)
    return start + found if found >= 0 and start + found <= last else -1


def _open_packed(data: memoryview) -> zipfile.ZipFile:
    """Opens the ZIP behind the model after its directory was found small and no ZIP64."""
    end = _find_directory_end(data)
    if end < 0:
        return zipfile.ZipFile(io.BytesIO(_END_MARK + bytes(_END_BYTES - 4)))
    count, directory_bytes = struct.unpack_from("<H", data, end + 10)[0], struct.unpack_from("<I", data, end + 12)[0]
    is_zip64 = end >= 20 and bytes(data[end - 20 : end - 16]) == b"PK\x06\x07"
    if is_zip64 or count > _PACKED_LIMITS.max_members or directory_bytes > _DIRECTORY_MAX_BYTES:
        raise ModelUnreadable(f"expected at most {_PACKED_LIMITS.max_members} packed files, found a ZIP of {count}")
    try:
        return zipfile.ZipFile(_ViewFile(data))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise ModelUnreadable(f"expected the files packed into the model as a ZIP: {error}") from error


def _check_packed(archive: zipfile.ZipFile) -> tuple[Member, ...]:
    try:
        return check_members(archive.infolist(), _PACKED_LIMITS)
    except BundleError as error:
        raise ModelUnreadable(f"expected harmless files packed into the model: {error.message}") from error


def _list_packed(data: memoryview, label_files: frozenset[str]) -> tuple[PackedFile, ...]:
    with _open_packed(data) as archive:
        members = _check_packed(archive)
    return tuple(PackedFile(each.name, each.size_bytes, each.name in label_files) for each in members)
