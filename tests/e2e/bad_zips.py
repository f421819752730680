"""ZIPs that nobody should unpack, and ZIPs whose content is no model: name of the case -> how it is made."""

from __future__ import annotations

import io
import os
import random
import stat
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from e2e.tiny_models import make_quadrant_model, make_zip

LIMIT_BYTES = 48 << 20
"""What the devices of these tests take (`bundle_max_bytes`)."""

MakeZip = Callable[[Path], bytes]
"""From the folder around the device's storage to a ZIP."""


def make_infos_zip(*members: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    """A ZIP of exactly these members, doubles included."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for info, data in members:
            bundle.writestr(info, data)
    return out.getvalue()


def make_named_zip(name: str) -> bytes:
    """A good bundle, and one member whose name is its fault."""
    info = zipfile.ZipInfo("placeholder")
    info.filename = name  # the constructor would make the name harmless
    return make_infos_zip(*GOOD_FILES.items(), (info, b"evil"))


GOOD_FILES = {
    "model.onnx": make_quadrant_model(),
    "labels.txt": b"a\nb\nc\nd\n",
    "spec.toml": b'[input]\nmean = [0.0]\nstd = [255.0]\nfit = "stretch"\n',
}


def make_link_zip(target: str) -> bytes:
    info = zipfile.ZipInfo("labels.txt")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    info.create_system = 3
    return make_infos_zip(("model.onnx", GOOD_FILES["model.onnx"]), (info, target.encode()))


def make_total_bomb() -> bytes:
    """Four members, each below the ratio that is refused, together above what the device takes."""
    grain = random.Random(1).randbytes(400) + bytes(33_000)  # longer than what deflate looks back
    member = grain * (LIMIT_BYTES // 3 // len(grain))
    return make_infos_zip(*GOOD_FILES.items(), *((f"extra{n}.bin", member) for n in range(4)))


def make_lying_bomb() -> bytes:
    """Its directory announces 100 bytes for what unpacks to 20 MB."""
    data = bytes(20 << 20)
    bundle = bytearray(make_infos_zip(*GOOD_FILES.items(), ("zeros.bin", data)))
    for sign, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = bundle.rindex(sign)
        bundle[at + offset : at + offset + 4] = (100).to_bytes(4, "little")
    return bytes(bundle)


def make_overlapping_zip() -> bytes:
    """Two directory entries for one and the same data (D. Fifield's bomb in small)."""
    bundle = bytearray(make_infos_zip(("one.bin", b"x" * 1000), ("two.bin", b"x" * 1000)))
    first = bundle.index(b"PK\x01\x02")
    second = bundle.index(b"PK\x01\x02", first + 4)
    bundle[second + 42 : second + 46] = bundle[first + 42 : first + 46]
    return bytes(bundle)


def make_encrypted_zip() -> bytes:
    bundle = bytearray(make_zip(GOOD_FILES))
    for sign, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = bundle.index(sign)
        bundle[at + offset] |= 1
    return bytes(bundle)


UNSAFE: Mapping[str, MakeZip] = {
    "a member that climbs out": lambda around: make_named_zip("../../others.txt"),
    "a member that climbs out from inside": lambda around: make_named_zip("a/../../../evil.txt"),
    "an absolute member": lambda around: make_named_zip(str(around / "evil.txt")),
    "a member with backslashes": lambda around: make_named_zip("..\\..\\evil.txt"),
    "a member with a drive letter": lambda around: make_named_zip("C:evil.txt"),
    "a member in a folder": lambda around: make_named_zip("deep/model.txt"),
    "a member with a NUL in its name": lambda around: make_named_zip("evil.txt\x00.onnx"),
    "a link to a file outside": lambda around: make_link_zip(str(around / "others.txt")),
    "a relative link": lambda around: make_link_zip("../../others.txt"),
    "members of one name": lambda around: make_infos_zip(*GOOD_FILES.items(), ("model.onnx", b"other")),
    "members that differ in case only": lambda around: make_infos_zip(*GOOD_FILES.items(), ("MODEL.ONNX", b"other")),
    "members that overlap": lambda around: make_overlapping_zip(),
    "a ZIP with its beginning missing": lambda around: make_zip(GOOD_FILES)[100:],
    "an encrypted member": lambda around: make_encrypted_zip(),
}
TOO_LARGE: Mapping[str, MakeZip] = {
    "a bomb by its ratio": lambda around: make_infos_zip(*GOOD_FILES.items(), ("zeros.bin", bytes(40 << 20))),
    "a bomb by its total": lambda around: make_total_bomb(),
    "a thousand members": lambda around: make_infos_zip(*((f"{n}.txt", b"x") for n in range(1000))),
}
UNREADABLE: Mapping[str, MakeZip] = {
    "a bomb that lies about its size": lambda around: make_lying_bomb(),
    "a ZIP cut short": lambda around: make_zip(GOOD_FILES)[:-40],
    "a ZIP with a damaged member": lambda around: _damage(make_zip({**GOOD_FILES, "noise.bin": os.urandom(4096)})),
    "bytes that are no ZIP": lambda around: random.Random(2).randbytes(5000),
    "nothing at all": lambda around: b"",
    "labels that are no text": lambda around: make_zip({**GOOD_FILES, "labels.txt": b"a\x00b\xff\n"}),
}
INCOMPLETE: Mapping[str, MakeZip] = {
    "an empty ZIP": lambda around: make_zip({}),
    "no model": lambda around: make_zip({"labels.txt": b"a\nb\n"}),
    "two models": lambda around: make_zip({**GOOD_FILES, "second.tflite": b"TFL3"}),
    "two label files": lambda around: make_zip({**GOOD_FILES, "old_labels.txt": b"x\n"}),
}
NO_MODEL: Mapping[str, MakeZip] = {
    "text called .onnx": lambda around: make_zip({**GOOD_FILES, "model.onnx": b"this is no model at all\n" * 50}),
    "text called .tflite": lambda around: make_zip({"model.tflite": b"this is no model\n" * 50, "labels.txt": b"a\n"}),
    "nothing called .onnx": lambda around: make_zip({**GOOD_FILES, "model.onnx": b""}),
    "an .onnx cut short": lambda around: make_zip({**GOOD_FILES, "model.onnx": GOOD_FILES["model.onnx"][:-60]}),
    "noise behind the mark of .tflite": lambda around: make_zip(
        {"model.tflite": b"\x1c\0\0\0TFL3" + random.Random(3).randbytes(5000), "labels.txt": b"a\n"}
    ),
}
UNKNOWABLE: Mapping[str, MakeZip] = {
    "no labels": lambda around: make_zip({name: data for name, data in GOOD_FILES.items() if name != "labels.txt"}),
    "fewer labels than classes": lambda around: make_zip({**GOOD_FILES, "labels.txt": b"a\nb\n"}),
    "no spec where the model says too little": lambda around: make_zip(
        {name: data for name, data in GOOD_FILES.items() if name != "spec.toml"}
    ),
}
BY_CODE: Mapping[str, Mapping[str, MakeZip]] = {
    "bundle_unsafe": UNSAFE,
    "bundle_too_large": TOO_LARGE,
    "bundle_unreadable": UNREADABLE,
    "bundle_incomplete": INCOMPLETE,
    "model_unreadable": NO_MODEL,
    "spec_incomplete": UNKNOWABLE,
}


def _damage(bundle: bytes) -> bytes:
    at = bundle.index(b"noise.bin") + 2000
    return bundle[:at] + bytes(value ^ 0xFF for value in bundle[at : at + 64]) + bundle[at + 64 :]
