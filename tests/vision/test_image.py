from __future__ import annotations

import io
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgeferry.errors import EdgeferryError, MediaTypeRefused, PictureTooLarge, PictureUnreadable
from edgeferry.vision.image import PictureLimits, read_picture, resize
from hostile_pictures import encode, make_scene, make_seeds, mutate

LIMITS = PictureLimits()


def make_png(width: int, height: int, *, bits: int = 8, kind: int = 0, rows: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return pack("!I", len(data)) + name + data + pack("!I", zlib.crc32(name + data))

    head = chunk(b"IHDR", pack("!IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def get_corners(pixels: np.ndarray) -> list[str]:
    """Names of the strongest channels at the four corners, clockwise from top left."""
    spots = (pixels[2, 2], pixels[2, -3], pixels[-3, -3], pixels[-3, 2])
    return ["rgb"[int(np.argmax(spot))] for spot in spots]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"])
def test_each_format_is_read_as_upright_rgb(kind: str) -> None:
    picture = read_picture(encode(make_scene(), kind))
    assert (picture.width, picture.height) == (40, 24)
    assert picture.pixels.shape == (24, 40, 3)
    assert picture.pixels.dtype == np.uint8
    assert get_corners(picture.pixels) == ["r", "g", "b", "b"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_is_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(make_scene(), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    picture = read_picture(data)
    assert (picture.width, picture.height) == expected.size
    assert picture.pixels.shape == (expected.height, expected.width, 3)
    assert get_corners(picture.pixels) == get_corners(np.asarray(expected))
    assert np.abs(picture.pixels.astype(int) - np.asarray(expected, dtype=int)).max() <= 8


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_smaller_and_keeps_its_size_and_turn(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(make_scene(1600, 900), "JPEG", exif=exif)
    enough = (200, 100)
    picture = read_picture(data, enough=enough)
    full = read_picture(data)
    assert (picture.width, picture.height) == (full.width, full.height)
    height, width = picture.pixels.shape[:2]
    assert enough[0] <= width < full.width
    assert enough[1] <= height < full.height
    assert get_corners(picture.pixels) == get_corners(full.pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"])
def test_large_bytes_are_read_where_they_lie_as_small_ones_are(kind: str) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (90, 100, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind)
    data = stream.getvalue() + bytes(1 << 20)
    assert np.array_equal(read_picture(bytearray(data)).pixels, read_picture(data).pixels)


def test_a_large_jpeg_is_not_copied_on_its_way_to_the_decoder() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (1500, 2000, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", quality=95)
    data = bytearray(stream.getvalue())
    tracemalloc.start()
    try:
        pixels = read_picture(data, enough=(250, 190)).pixels
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(data) > 2 << 20
    assert peak_bytes - pixels.nbytes < len(data) / 4


def test_a_jpeg_less_than_twice_too_large_is_decoded_in_full() -> None:
    data = encode(make_scene(390, 300), "JPEG")
    assert read_picture(data, enough=(200, 100)).pixels.shape == (300, 390, 3)


MODES: dict[str, Callable[[], tuple[bytes, tuple[int, int, int]]]] = {
    "grey": lambda: (encode(Image.new("L", (9, 7), 80), "PNG"), (80, 80, 80)),
    "grey jpeg": lambda: (encode(Image.new("L", (9, 7), 80), "JPEG"), (80, 80, 80)),
    "one bit": lambda: (encode(Image.new("1", (9, 7), 1), "PNG"), (255, 255, 255)),
    "one bit tiff": lambda: (encode(Image.new("1", (9, 7), 1), "TIFF", compression="group4"), (255, 255, 255)),
    "alpha, opaque": lambda: (encode(Image.new("RGBA", (9, 7), (200, 100, 50, 255)), "PNG"), (200, 100, 50)),
    "alpha, clear: white shows": lambda: (encode(Image.new("RGBA", (9, 7), (9, 9, 9, 0)), "PNG"), (255, 255, 255)),
    "alpha, half": lambda: (encode(Image.new("RGBA", (9, 7), (0, 0, 0, 128)), "WEBP", lossless=True), (127, 127, 127)),
    "grey and alpha": lambda: (encode(Image.new("LA", (9, 7), (100, 0)), "PNG"), (255, 255, 255)),
    "palette": lambda: (encode(Image.new("RGB", (9, 7), (200, 100, 50)).quantize(4), "PNG"), (200, 100, 50)),
    "palette with a clear colour": lambda: (
        encode(Image.new("RGB", (9, 7), (200, 100, 50)).quantize(4), "PNG", transparency=0),
        (255, 255, 255),
    ),
    "grey with a clear value": lambda: (encode(Image.new("L", (9, 7), 80), "PNG", transparency=80), (255, 255, 255)),
    "cmyk jpeg": lambda: (encode(Image.new("CMYK", (9, 7), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
    "cmyk tiff": lambda: (encode(Image.new("CMYK", (9, 7), (255, 0, 255, 0)), "TIFF"), (0, 255, 0)),
    "16-bit png": lambda: (encode(Image.fromarray(np.full((7, 9), 0x8055, np.uint16)), "PNG"), (128, 128, 128)),
    "16-bit tiff": lambda: (encode(Image.fromarray(np.full((7, 9), 0x4000, np.uint16)), "TIFF"), (64, 64, 64)),
    "16-bit rgb png": lambda: (
        make_png(1, 1, bits=16, kind=2, rows=b"\x00" + pack("!HHH", 0xFF00, 0x8000, 0x0100)),
        (255, 128, 1),
    ),
    "32-bit tiff": lambda: (encode(Image.fromarray(np.full((7, 9), 200, np.int32)), "TIFF"), (200, 200, 200)),
    "float tiff 0..1": lambda: (encode(Image.fromarray(np.full((7, 9), 0.5, np.float32)), "TIFF"), (128, 128, 128)),
    "float tiff 0..255": lambda: (encode(Image.fromarray(np.full((7, 9), 50.0, np.float32)), "TIFF"), (50, 50, 50)),
}


@pytest.mark.parametrize("name", MODES)
def test_every_odd_mode_comes_out_as_the_colour_it_shows(name: str) -> None:
    data, colour = MODES[name]()
    pixels = read_picture(data).pixels
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.reshape(-1, 3).astype(int) - colour).max() <= 2


def test_float_samples_beyond_the_usual_ranges_are_stretched_and_nan_is_black() -> None:
    samples = np.array([[-100.0, 0.0, 300.0], [np.nan, np.inf, 101.0]], np.float32)
    pixels = read_picture(encode(Image.fromarray(samples), "TIFF")).pixels[:, :, 0]
    assert pixels.tolist() == [[0, 64, 255], [64, 64, 128]]


def test_an_animation_gives_its_first_picture() -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert get_corners(read_picture(data).pixels) == ["r"] * 4


def test_nothing_is_no_picture() -> None:
    with pytest.raises(PictureUnreadable, match="0 bytes"):
        read_picture(b"")


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(PictureTooLarge, match="100 bytes"):
        read_picture(b"x" * 101, PictureLimits(max_bytes=100))


def test_a_header_that_claims_200_megapixels_is_refused_by_its_header() -> None:
    with pytest.raises(PictureTooLarge, match="20000x10000") as caught:
        read_picture(make_png(20_000, 10_000))
    assert caught.value.values == {"width": 20_000, "height": 10_000}


@pytest.mark.parametrize("bits", [1, 8])
def test_a_true_200_megapixel_picture_that_packs_small_is_refused_before_it_is_decoded(bits: int) -> None:
    row = b"\x00" + b"\x00" * (20_000 * bits // 8)
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(row * 1000) for _ in range(10)) + packer.flush()
    data = make_png(20_000, 10_000, bits=bits)
    data = data.replace(zlib.compress(b""), packed)
    started = time.perf_counter()
    with pytest.raises(PictureTooLarge):
        read_picture(data)
    assert time.perf_counter() - started < 1.0


def test_the_limit_is_ours_and_not_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(PictureTooLarge):
        read_picture(make_png(65_000, 65_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("JPEG", "PNG", "BMP"):  # the others apply it to their frames once more
        assert read_picture(encode(make_scene(), kind)).width == 40


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "WEBP", "TIFF", "GIF"])
def test_the_pixel_limit_holds_for_every_format(kind: str) -> None:
    data = encode(make_scene(40, 24), kind)
    read_picture(data, PictureLimits(max_pixels=960))
    with pytest.raises(PictureTooLarge):
        read_picture(data, PictureLimits(max_pixels=959))


def test_a_tiff_with_a_giant_tile_is_refused() -> None:
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 322: 1 << 20, 323: 1 << 20, 324: 0, 325: 64}
    entries = b"".join(pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    data = b"II*\x00" + pack("<I", 8) + pack("<H", len(tags)) + entries + pack("<I", 0) + bytes(64)
    with pytest.raises(PictureTooLarge, match="tile"):
        read_picture(data)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encode(make_scene(), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    scan = data[start : data.rindex(b"\xff\xd9")]
    with pytest.raises(PictureUnreadable, match="scans"):
        read_picture(data[:start] + scan * 500 + b"\xff\xd9")


@pytest.mark.parametrize("place", [(1 << 18) - 2, (1 << 18) - 1, 1 << 18, (1 << 19) - 1])
def test_no_scan_is_overlooked_between_blocks_that_are_counted_one_by_one(place: int) -> None:
    data = encode(make_scene(), "JPEG")
    data += b"\xff\xda" * (200 - data.count(b"\xff\xda"))
    with pytest.raises(PictureUnreadable, match="scans"):
        read_picture(data.ljust(place, b"\0") + b"\xff\xda")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"%PDF-1.7 ...", "PDF"),
        (b"\x00\x00\x00\x1cftypheic....", "HEIC"),
        (b"--boundary\r\nContent-Disposition: form-data", "multipart"),
        (b'{"image": "..."}', "JSON"),
        (b"data:image/png;base64,AAAA", "data URL"),
    ],
)
def test_a_document_of_another_kind_is_named(data: bytes, what: str) -> None:
    with pytest.raises(MediaTypeRefused, match=what):
        read_picture(data)


@pytest.mark.parametrize(
    "data", [b"\x00", b"\xff\xd8", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\x00", b"RIFF", b"hello"]
)
def test_the_bare_beginning_of_a_picture_is_unreadable(data: bytes) -> None:
    with pytest.raises(PictureUnreadable):
        read_picture(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"])
def test_a_picture_cut_anywhere_in_its_pixels_is_unreadable(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    for cut in range(1, int(len(data) * 0.97), max(1, len(data) // 40)):
        with pytest.raises(PictureUnreadable):
            read_picture(data[:cut])


def test_a_progressive_jpeg_cut_short_is_unreadable() -> None:
    data = encode(make_scene(400, 300), "JPEG", progressive=True)
    for cut in range(100, len(data) - 2, len(data) // 20):
        with pytest.raises(PictureUnreadable):
            read_picture(data[:cut])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_not_spoil_the_pixels() -> None:
    data = encode(make_scene(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert get_corners(read_picture(data).pixels) == ["r", "g", "b", "b"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says so when EXIF is damaged
@pytest.mark.parametrize("seed", range(30))
def test_mutated_pictures_are_read_or_refused_and_never_crash_or_hang(seed: int) -> None:
    chance = random.Random(seed)
    limits = PictureLimits(max_pixels=4_000_000)
    for data in make_seeds():
        mutated = mutate(data, chance)
        started = time.perf_counter()
        try:
            picture = read_picture(mutated, limits, enough=(16, 16))
        except EdgeferryError as error:
            assert error.code in ("picture_unreadable", "picture_too_large", "media_type_refused")
        else:
            assert picture.width * picture.height <= limits.max_pixels
            assert picture.pixels.shape[2] == 3
        assert time.perf_counter() - started < 5.0


def test_resize_takes_width_before_height_and_may_take_a_region() -> None:
    pixels = read_picture(encode(make_scene(40, 24), "PNG")).pixels
    assert resize(pixels, 10, 30).shape == (30, 10, 3)
    assert get_corners(resize(pixels, 8, 8, box=(20, 0, 40, 12))) == ["g"] * 4
    assert resize(pixels, 40, 24) is pixels


def test_real_photos_are_read_as_pillow_reads_them(shared_models: Path) -> None:
    for name in ("cat.jpg", "grace_hopper.jpg", "bird.png"):
        path = shared_models / "images" / name
        expected = np.asarray(Image.open(path).convert("RGB"), dtype=int)
        difference = np.abs(read_picture(path.read_bytes()).pixels.astype(int) - expected)
        assert difference.mean() < 1.0
