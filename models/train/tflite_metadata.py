"""Writes the TFLITE_METADATA table (metadata_schema.fbs of TensorFlow Lite support, file identifier M001) by hand.

Field numbers stand beside their names below; only what readers use is written.
"""

from collections.abc import Callable, Sequence

import flatbuffers

IMAGE, BOXES = 2, 3  # ContentProperties
NORMALIZATION = 1  # ProcessUnitOptions
RGB, BOUNDARIES = 1, 1  # ColorSpaceType, BoundingBoxType
AXIS_LABELS, VALUE_LABELS = 2, 3  # AssociatedFileType
LABELS_FILE = "labels.txt"
PIXEL_MEAN, PIXEL_STD = 0.0, 255.0

Field = tuple[int, str, int]  # slot, kind (offset, u8, i8), value


class MetadataBuilder:
    """A thin layer over the flatbuffer builder: tables, vectors, strings."""

    def __init__(self) -> None:
        self.builder = flatbuffers.Builder(1024)

    def table(self, *fields: Field) -> int:
        self.builder.StartObject(max(slot for slot, _, _ in fields) + 1)
        write = {
            "offset": self.builder.PrependUOffsetTRelativeSlot,
            "u8": self.builder.PrependUint8Slot,
            "i8": self.builder.PrependInt8Slot,
        }
        for slot, kind, value in fields:
            write[kind](slot, value, 0)
        return int(self.builder.EndObject())

    def text(self, value: str) -> int:
        return int(self.builder.CreateString(value))

    def vector(self, values: Sequence[float], prepend: Callable[[float], None]) -> int:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            prepend(value)
        return int(self.builder.EndVector())

    def offsets(self, values: Sequence[int]) -> int:
        return self.vector(values, self.builder.PrependUOffsetTRelative)

    def input_image(self, side_px: int) -> int:
        """TensorMetadata of an RGB picture normalised from 0..255 to 0..1."""
        floats = self.builder.PrependFloat32
        mean, std = self.vector([PIXEL_MEAN], floats), self.vector([PIXEL_STD], floats)
        options = self.table((0, "offset", mean), (1, "offset", std))  # NormalizationOptions: mean, std
        unit = self.table((0, "u8", NORMALIZATION), (1, "offset", options))  # ProcessUnit
        image = self.table((0, "i8", RGB))  # ImageProperties: color_space
        content = self.table((0, "u8", IMAGE), (1, "offset", image))
        name, note = self.text("image"), self.text(f"RGB {side_px}x{side_px}, stretched; pixels as 0..1")
        units = self.offsets([unit])
        return self.table((0, "offset", name), (1, "offset", note), (3, "offset", content), (4, "offset", units))

    def output(self, name: str, *, content: int | None = None, labels: int | None = None) -> int:
        """TensorMetadata: name, content, associated files."""
        fields: list[Field] = [(0, "offset", self.text(name))]
        if content is not None:
            fields.append((3, "offset", content))
        if labels is not None:
            fields.append((6, "offset", self.offsets([labels])))
        return self.table(*fields)

    def labels_file(self, kind: int) -> int:
        return self.table((0, "offset", self.text(LABELS_FILE)), (2, "i8", kind))  # AssociatedFile: name, type

    def box_content(self) -> int:
        """Content of boxes: index holds where left, top, right, bottom stand in (top, left, bottom, right)."""
        order = self.vector([1, 0, 3, 2], self.builder.PrependUint32)
        boxes = self.table((0, "offset", order), (1, "i8", BOUNDARIES))  # BoundingBoxProperties: index, type
        return self.table((0, "u8", BOXES), (1, "offset", boxes))

    def finish(self, name: str, version: str, image: int, outputs: list[int]) -> bytes:
        """ModelMetadata: name, version, subgraph_metadata, license, min_parser_version."""
        inputs, answers = self.offsets([image]), self.offsets(outputs)
        subgraphs = self.offsets([self.table((2, "offset", inputs), (3, "offset", answers))])
        title, number = self.text(name), self.text(version)
        licence, parser = self.text("Apache-2.0"), self.text("1.0.0")
        root = self.table(
            (0, "offset", title),
            (2, "offset", number),
            (3, "offset", subgraphs),
            (5, "offset", licence),
            (7, "offset", parser),
        )
        self.builder.Finish(root, b"M001")
        return bytes(self.builder.Output())


def make_detector_metadata(name: str, version: str, side_px: int) -> bytes:
    """Metadata of a detector with the four outputs of TFLite_Detection_PostProcess."""
    builder = MetadataBuilder()
    image = builder.input_image(side_px)
    outputs = [
        builder.output("location", content=builder.box_content()),
        builder.output("category", labels=builder.labels_file(VALUE_LABELS)),
        builder.output("score"),
        builder.output("number of detections"),
    ]
    return builder.finish(name, version, image, outputs)


def make_classifier_metadata(name: str, version: str, side_px: int) -> bytes:
    """Metadata of a classifier with one output of probabilities."""
    builder = MetadataBuilder()
    image = builder.input_image(side_px)
    labels = builder.labels_file(AXIS_LABELS)
    return builder.finish(name, version, image, [builder.output("probability", labels=labels)])
