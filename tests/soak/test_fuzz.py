"""Seeded fuzzing of whatever reads bytes from outside: it answers or refuses, in bounded time, and never crashes."""

from __future__ import annotations

import io
import random
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from edgeferry.delta.apply import decode_full
from edgeferry.delta.codecs import compress_zstd
from edgeferry.delta.make import make_full
from edgeferry.errors import EdgeferryError
from edgeferry.model.bundle import BundleLimits
from edgeferry.model.digest import Digest
from edgeferry.model.inspect import inspect_model
from edgeferry.model.labels import read_labels
from edgeferry.model.manifest import FileEntry, Manifest, make_manifest_bytes, read_manifest_bytes
from edgeferry.model.spec import AnswerSpec, InputSpec, ModelSpec, Stage
from edgeferry.storage.repository import Repository
from edgeferry.trust.bundle_object import make_bundle_object, read_bundle_object
from edgeferry.vision.image import PictureLimits, read_picture
from edgeferry.wire import mqtt_packets as mqtt

ROOT = Path(__file__).resolve().parent.parent.parent
SEED = 20261123
ONE_TRY_MAX_S = 5.0


@dataclass(frozen=True)
class Target:
    """A reader of hostile bytes: what it is fed with, mutated, and how often in the short form."""

    name: str
    make_seeds: Callable[[Path], list[bytes]]
    read: Callable[[bytes, Path], object]
    rounds: int


def make_pictures(folder: Path) -> list[bytes]:
    picture = Image.effect_noise((40, 30), 60)
    seeds = []
    for form in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"):
        out = io.BytesIO()
        picture.convert("RGB").save(out, form)
        seeds.append(out.getvalue())
    return seeds


def read_models(*names: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [(ROOT / "models" / name).read_bytes() for name in names]


def make_zips(folder: Path) -> list[bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("model.onnx", bytes(3000))
        bundle.writestr("labels.txt", "a\nb\n")
    return [out.getvalue()]


def unpack(data: bytes, folder: Path) -> None:
    repository = Repository(folder / "storage")
    repository.prepare()
    zip_path = folder / "in.zip"
    zip_path.write_bytes(data)
    limits = BundleLimits(max_member_bytes=1 << 20, max_total_bytes=1 << 20)
    before = sorted(path.name for path in folder.iterdir())
    try:
        repository.unpack_classic(zip_path, "stem", limits)
    finally:
        assert sorted(path.name for path in folder.iterdir()) == before, "something was written outside the storage"


def make_streams(folder: Path) -> list[bytes]:
    packets = [mqtt.Publish("devices/d/messages/events/", b"x" * 40, 1, 7), mqtt.PingReq(), mqtt.PubAck(7)]
    return [b"".join(mqtt.encode(packet) for packet in packets)]


def make_coded(folder: Path) -> list[bytes]:
    data = (ROOT / "models/gauge/1.0.0/gauge.onnx").read_bytes()[:60_000]
    return [make_full(data).data, compress_zstd(data)]


def decode(data: bytes, folder: Path) -> None:
    codec = "zstd" if data[:1] == b"\x28" else "efd1"
    decode_full(data, codec, memoryview(bytearray(60_000)))


def make_manifests(folder: Path) -> list[bytes]:
    stage = Stage(
        file="m.onnx",
        task="classification",
        input=InputSpec(width=8, height=8, layout="nhwc", dtype="uint8"),
        answer=AnswerSpec(family="classification"),
    )
    file = FileEntry(path="m.onnx", sha256=str(Digest.of(b"m")), md5="", size=1)
    return [make_manifest_bytes(Manifest(model="m", version="1", spec=ModelSpec(stages=(stage,)), files=(file,)))]


def make_bundles(folder: Path) -> list[bytes]:
    return [make_bundle_object({"1.root.json": b"{}" * 50})]


TARGETS = [
    Target("pictures", make_pictures, lambda data, _: read_picture(data, PictureLimits(max_pixels=1_000_000)), 400),
    Target("onnx", read_models("gauge/1.0.0/gauge.onnx"), lambda data, _: inspect_model("m.onnx", data), 300),
    Target("litert", read_models("gauge/1.0.0/gauge-int8.tflite"), lambda d, _: inspect_model("m.tflite", d), 300),
    Target("labels", lambda _: ["\ufeffa\r\nb\n???\n".encode()], lambda data, _: read_labels(data), 500),
    Target("zips", make_zips, unpack, 500),
    Target("mqtt", make_streams, lambda data, _: mqtt.PacketDecoder().feed(data), 4000),
    Target("coded", make_coded, decode, 500),
    Target("manifests", make_manifests, lambda data, _: read_manifest_bytes(data), 2000),
    Target(
        "bundle objects",
        lambda _: [make_bundle_object({"1.root.json": b"{}" * 50})],
        lambda d, _: read_bundle_object(d),
        1000,
    ),
]


def mutate(seed: bytes, dice: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 8))):
        at = dice.randrange(len(data) + 1) if dice.random() < 0.5 else dice.randrange(min(len(data), 200) + 1)
        kind = dice.randrange(5)
        if kind == 0 and at < len(data):
            data[at] = dice.randrange(256)
        elif kind == 1:
            data[at : at + 4] = dice.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
        elif kind == 2:
            del data[at : at + dice.randint(1, 64)]
        elif kind == 3:
            data[at:at] = data[at : at + dice.randint(1, 64)]
        elif dice.random() < 0.1:
            del data[at:]
    return bytes(data)


def fuzz(target: Target, folder: Path, rounds: int, seed: int) -> int:
    """Feeds `rounds` mutations; returns how many were refused. Anything but a leaf of our errors ends the test."""
    dice, refused = random.Random(seed), 0
    seeds = target.make_seeds(folder)
    for number in range(rounds):
        data = mutate(dice.choice(seeds), dice)
        begun = time.process_time()
        try:
            target.read(data, folder)
        except EdgeferryError as error:
            refused += 1
            assert error.code, type(error)
        spent = time.process_time() - begun
        assert spent < ONE_TRY_MAX_S, f"{target.name}, seed {seed}, round {number}: {spent:.1f} s"
    return refused


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_mutated_bytes_are_read_or_refused(target: Target, tmp_path: Path) -> None:
    refused = fuzz(target, tmp_path, target.rounds, SEED)
    assert 0 < refused < target.rounds, "the mutations reach only one side"


@pytest.mark.soak_full
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_mutated_bytes_are_read_or_refused_in_full(target: Target, tmp_path: Path) -> None:
    refused = fuzz(target, tmp_path, 20 * target.rounds, SEED + 1)
    assert 0 < refused < 20 * target.rounds, "the mutations reach only one side"
