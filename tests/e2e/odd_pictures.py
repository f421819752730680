"""The cat of cat.jpg in every form that pictures take, and things that are no picture: name of the case -> bytes."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from e2e.tiny_models import encode, make_zip

MakePicture = Callable[[Image.Image], bytes]
"""From the cat (RGB, upright) to a file."""


def make_png(width: int, height: int, *, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of filtered `rows`, made by hand: Pillow does not write all kinds. `extra` are chunks before the pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = make_chunk(b"IHDR", head) + extra + make_chunk(b"IDAT", zlib.compress(rows, 1)) + make_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def make_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_rgb16(cat: Image.Image) -> bytes:
    pixels = np.asarray(cat).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return make_png(cat.width, cat.height, depth=16, colour=2, rows=rows)


def make_palette_with_clear(cat: Image.Image) -> bytes:
    picture = cat.quantize(128)
    return encode(picture, "PNG", transparency=bytes([255] * 127 + [200]))


def make_turned(orientation: int) -> MakePicture:
    """The cat as a camera that was held otherwise stores it: turned pixels, and a tag that says how to turn them."""
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]

    def make(cat: Image.Image) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return encode(cat if back is None else cat.transpose(back), "JPEG", quality=95, exif=exif)

    return make


def make_alpha(cat: Image.Image, *, level: int) -> Image.Image:
    picture = cat.convert("RGBA")
    picture.putalpha(level)
    return picture


def make_animation(kind: str) -> MakePicture:
    def make(cat: Image.Image) -> bytes:
        return encode(cat, kind, save_all=True, append_images=[Image.new("RGB", cat.size)] * 3)

    return make


ODD: dict[str, MakePicture] = {
    "grey": lambda cat: encode(cat.convert("L")),
    "grey JPEG": lambda cat: encode(cat.convert("L"), "JPEG"),
    "grey with alpha": lambda cat: encode(make_alpha(cat, level=255).convert("LA")),
    "grey of 16 bits": lambda cat: encode(Image.fromarray(np.asarray(cat.convert("L")).astype(np.uint16) * 257)),
    "grey TIFF of 16 bits": lambda cat: encode(
        Image.fromarray(np.asarray(cat.convert("L")).astype(np.uint16) * 257), "TIFF"
    ),
    "grey TIFF of 32 bits": lambda cat: encode(cat.convert("I"), "TIFF"),
    "TIFF of floats": lambda cat: encode(cat.convert("F"), "TIFF"),
    "RGB of 16 bits": make_rgb16,
    "alpha": lambda cat: encode(make_alpha(cat, level=255)),
    "half clear": lambda cat: encode(make_alpha(cat, level=210)),
    "palette": lambda cat: encode(cat.quantize(128)),
    "palette with a clear colour": make_palette_with_clear,
    "palette of a GIF": lambda cat: encode(cat, "GIF"),
    "moving GIF": make_animation("GIF"),
    "moving WebP": make_animation("WEBP"),
    "moving PNG": make_animation("PNG"),
    "CMYK JPEG": lambda cat: encode(cat.convert("CMYK"), "JPEG", quality=95),
    "CMYK TIFF": lambda cat: encode(cat.convert("CMYK"), "TIFF"),
    "LAB TIFF": lambda cat: encode(cat.convert("YCbCr"), "TIFF"),
    "packed TIFF": lambda cat: encode(cat, "TIFF", compression="tiff_lzw"),
    "progressive JPEG": lambda cat: encode(cat, "JPEG", progressive=True, quality=90),
    "lossless WebP": lambda cat: encode(cat, "WEBP", lossless=True),
    "BMP": lambda cat: encode(cat, "BMP"),
    "a JPEG with something behind it": lambda cat: encode(cat, "JPEG", quality=95) + bytes(1000),
    "a JPEG with damaged EXIF": lambda cat: encode(cat, "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    **{f"EXIF orientation {number}": make_turned(number) for number in range(1, 9)},
}
"""Each is the cat, and must be answered as one."""

MEAGRE: dict[str, MakePicture] = {
    "black and white": lambda cat: encode(cat.convert("1")),
    "one pixel": lambda cat: encode(Image.new("RGB", (1, 1))),
    "one line": lambda cat: encode(Image.new("RGB", (5000, 1))),
    "one column": lambda cat: encode(Image.new("L", (1, 5000))),
    "wholly clear": lambda cat: encode(Image.new("RGBA", (50, 50))),
}
"""Each is a picture: answered, whatever is found."""

SIDES = (20_000, 10_000)
"""200 megapixels."""


def make_huge_png(_: Image.Image) -> bytes:
    """200 megapixels in 30 KB, every one of them there."""
    row = bytes(1 + SIDES[0] // 8)
    return make_png(*SIDES, depth=1, colour=0, rows=row * SIDES[1])


def make_huge_jpeg(cat: Image.Image) -> bytes:
    return _patch_jpeg(cat, width=SIDES[0], height=SIDES[1])


def _patch_jpeg(cat: Image.Image, *, width: int, height: int) -> bytes:
    data = bytearray(encode(cat, "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def make_huge_gif(cat: Image.Image) -> bytes:
    data = bytearray(encode(cat.resize((8, 8)), "GIF"))
    data[6:10] = struct.pack("<HH", *SIDES)
    return bytes(data)


def make_huge_bmp(cat: Image.Image) -> bytes:
    data = bytearray(encode(cat.resize((8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", *SIDES)
    return bytes(data)


def make_huge_tiff(_: Image.Image) -> bytes:
    return encode(Image.new("1", SIDES), "TIFF", compression="tiff_lzw")


def make_many_scans(_: Image.Image) -> bytes:
    """A progressive JPEG whose last scan stands there five thousand times: a pass over all pixels for each."""
    data = encode(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 5000 + b"\xff\xd9"


def make_text_bomb(_: Image.Image) -> bytes:
    """A PNG with a compressed text of 300 MB."""
    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    extra = make_chunk(b"zTXt", b"Comment\0\0" + text)
    return make_png(8, 8, depth=8, colour=0, rows=bytes(72), extra=extra)


HUGE: dict[str, MakePicture] = {
    "a PNG of 200 megapixels": make_huge_png,
    "a JPEG of 200 megapixels": make_huge_jpeg,
    "a GIF of 200 megapixels": make_huge_gif,
    "a BMP of 200 megapixels": make_huge_bmp,
    "a TIFF of 200 megapixels": make_huge_tiff,
    "a JPEG of 65535 x 65535": lambda cat: _patch_jpeg(cat, width=65535, height=65535),
    "a PNG of 4 billion a side": lambda cat: make_png(2**31 - 1, 2**31 - 1, depth=8, colour=2, rows=b"\0"),
}


def cut(kind: str, **options: object) -> MakePicture:
    """The first half of a file."""

    def make(cat: Image.Image) -> bytes:
        data = encode(cat, kind, **options)
        return data[: len(data) // 2]

    return make


DAMAGED: dict[str, MakePicture] = {
    "nothing": lambda cat: b"",
    "half a JPEG": cut("JPEG"),
    "half a progressive JPEG": cut("JPEG", progressive=True),
    "half a PNG": cut("PNG"),
    "half a WebP": cut("WEBP"),
    "half a GIF": cut("GIF"),
    "half a BMP": cut("BMP"),
    "half a TIFF": cut("TIFF"),
    "the first bytes of a JPEG": lambda cat: encode(cat, "JPEG")[:30],
    "the mark of a PNG": lambda cat: b"\x89PNG\r\n\x1a\n",
    "a JPEG of no height": lambda cat: _patch_jpeg(cat, width=100, height=0),
    "a PNG of no width": lambda cat: make_png(0, 5, depth=8, colour=0, rows=b"\0" * 5),
    "noise behind the mark of a JPEG": lambda cat: b"\xff\xd8\xff\xe0" + random.Random(1).randbytes(20_000),
    "noise behind the mark of a PNG": lambda cat: b"\x89PNG\r\n\x1a\n" + random.Random(2).randbytes(20_000),
    "noise behind the mark of a TIFF": lambda cat: b"II*\0" + random.Random(3).randbytes(20_000),
    "noise behind the mark of a WebP": lambda cat: b"RIFF\x20\x4e\0\0WEBPVP8 " + random.Random(4).randbytes(20_000),
    "noise": lambda cat: random.Random(5).randbytes(20_000),
    "a TIFF that points to itself": lambda cat: (
        b"II*\0\x08\0\0\0\x01\0" + b"\0\x01\x03\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    ),
    "a JPEG of five thousand scans": make_many_scans,
    "plain text": lambda cat: b"This is not a picture.\n" * 100,
}
OTHER_KINDS: dict[str, MakePicture] = {
    "JSON": lambda cat: json.dumps({"url": "http://example.com/cat.jpg"}).encode(),
    "a web page": lambda cat: b"<!DOCTYPE html><html><body>cat</body></html>",
    "a PDF": lambda cat: b"%PDF-1.7\n" + bytes(100),
    "a ZIP": lambda cat: make_zip({"cat.jpg": encode(cat, "JPEG")}),
    "an SVG": lambda cat: b'<svg xmlns="http://www.w3.org/2000/svg" width="99999" height="99999"/>',
    "an HEIC file": lambda cat: b"\0\0\0\x18ftypheic" + bytes(100),
    "a form": lambda cat: (
        b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + encode(cat, "JPEG") + b"\r\n--x--"
    ),
    "a data URL": lambda cat: b"data:image/jpeg;base64,/9j/4AAQSkZJRg==",
}


def read_cat(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB")
