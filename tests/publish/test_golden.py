"""Golden truth as operators write it: taken as it stands, or refused with what is wrong."""

from __future__ import annotations

import json
import struct
import zlib

import pytest
from tests.publish.desk import make_picture

from edgeferry.errors import ConfigInvalid
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Tolerance, TruthObject
from edgeferry.publish.golden import MAX_PICTURES, check_labels, read_golden


def pair(truth: object, name: str = "one") -> dict[str, bytes]:
    return {f"{name}.jpg": make_picture(len(name) + ord(name[0])), f"{name}.json": json.dumps(truth).encode()}


def make_many(count: int) -> dict[str, bytes]:
    pictures = {f"{number}.jpg": make_picture(number) for number in range(count)}
    return pictures | {f"{number}.json": b'{"label": "a"}' for number in range(count)}


def make_bomb() -> bytes:
    """A few bytes that claim 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + bytes(4)
        + b"IDAT"
        + bytes(4)
    )


def test_pictures_are_paired_with_their_truths() -> None:
    files = pair({"objects": [{"label": "leak", "box": [0.1, 0.2, 0.3, 0.4]}]}, "b") | pair({"label": "cat"}, "a")
    golden = read_golden(files | {"README.md": b"left alone"})
    assert [sample.truth for sample in golden.samples] == [
        (TruthObject(label="cat"),),
        (TruthObject(label="leak", box=(0.1, 0.2, 0.3, 0.4)),),
    ]
    assert golden.pictures == {Digest.of(data): data for data in (files["a.jpg"], files["b.jpg"])}
    assert golden.samples[0].size == len(files["a.jpg"])


def test_tolerance_is_the_operators() -> None:
    [sample] = read_golden(pair({"label": "cat", "tolerance": {"iou": 0.3, "share": 1.0}})).samples
    assert sample.tolerance == Tolerance(iou=0.3, share=1.0)


def test_a_picture_may_show_nothing() -> None:
    assert read_golden(pair({"objects": []})).samples[0].truth == ()


@pytest.mark.parametrize(
    "truth",
    [
        {},
        {"label": "a", "objects": []},
        {"labels": "a"},
        {"label": 1},
        {"objects": [{"label": "a", "box": [0.1, 0.2, 0.3]}]},
        {"objects": [{"label": "a", "box": [0.3, 0.2, 0.1, 0.4]}]},
        {"objects": [{"label": "a", "box": [10, 20, 300, 400]}]},
        ["a"],
    ],
    ids=["nothing", "both", "unknown field", "number", "three sides", "upside down", "pixels", "list"],
)
def test_a_truth_that_is_none_is_refused(truth: object) -> None:
    with pytest.raises(ConfigInvalid):
        read_golden(pair(truth))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"one.jpg": make_picture()},
        {"one.json": b"{}"},
        {"one.jpg": make_picture(), "one.json": b"\xff{"},
        make_many(1) | {"two.jpg": make_picture(0), "two.json": b'{"label": "b"}'},
        make_many(MAX_PICTURES + 1),
    ],
    ids=["empty", "no truth", "no picture", "no JSON", "twice the same picture", "too many"],
)
def test_a_folder_that_is_no_golden_folder_is_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(ConfigInvalid):
        read_golden(files)


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (b"", "0 bytes"),
        (b"no picture", "expected the bytes of a JPEG"),
        (b"%PDF-1.7", "PDF"),
        (make_picture()[:-30], "undamaged"),
        (make_bomb(), "pixels"),
    ],
    ids=["nothing", "text", "a document", "cut short", "a bomb"],
)
def test_a_picture_that_does_not_decode_is_refused_by_name(picture: bytes, why: str) -> None:
    with pytest.raises(ConfigInvalid, match=rf"two\.jpg.*{why}"):
        read_golden(pair({"label": "a"}) | {"two.jpg": picture, "two.json": b'{"label": "a"}'})


def test_a_truth_that_the_model_cannot_answer_is_refused_by_name() -> None:
    samples = read_golden(pair({"objects": [{"label": "leak"}, {"label": "fire"}]})).samples
    check_labels(samples, {"leak", "fire", "vessel"})
    with pytest.raises(ConfigInvalid, match="leak"):
        check_labels(samples, {"fire", "vessel"})
    with pytest.raises(ConfigInvalid, match="it knows none"):
        check_labels(samples, ())
