"""Image: bytes of a picture in, upright RGB pixels out; the resize that preprocessing uses; and pixels as a PNG.

What this file leaves to others: what a model wants to see (`preprocess.py`), drawing (`draw.py`).

Rules:
- Bounded before decoding: bytes, then the pixels that the header claims. Pillow's global limit is never relied on.
- JPEG goes through simplejpeg (libjpeg-turbo, with DCT scaling), everything else and CMYK JPEG through Pillow.
- EXIF orientation is applied. Transparency is laid on white (BACKGROUND). Animations give their first picture.
- More than 8 bits: 16-bit samples keep their high byte; 32-bit and float samples are taken as 0..1, 0..255 or
  0..65535, whichever is the smallest range that holds them, else stretched from their least to their greatest value.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from edgeferry.errors import MediaTypeRefused, PictureTooLarge, PictureUnreadable
from edgeferry.model.spec import Resample

Pixels = NDArray[np.uint8]
"""[height, width, 3], RGB, upright."""

Data = bytes | bytearray | memoryview
"""The bytes of a file."""

BACKGROUND = (255, 255, 255)

_READERS: tuple[tuple[bytes, int, type[ImageFile.ImageFile]], ...] = (  # first bytes, where they stand, who reads them
    (b"\xff\xd8\xff", 0, JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", 0, PngImagePlugin.PngImageFile),
    (b"GIF8", 0, GifImagePlugin.GifImageFile),
    (b"WEBP", 8, WebPImagePlugin.WebPImageFile),
    (b"II*\x00", 0, TiffImagePlugin.TiffImageFile),
    (b"MM\x00*", 0, TiffImagePlugin.TiffImageFile),
    (b"BM", 0, BmpImagePlugin.BmpImageFile),
)
_JPEG_SCANS_MAX = 200
"""A progressive JPEG can ask for a pass over all pixels with each few bytes; encoders write about ten of them."""

_PNG_LEVEL = 3
"""Of zlib, 0..9: a photo is 7 % larger than at 6 and done in 0.4 of the time (measured)."""

_LARGE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 18
_ORIENTATION_TAG = 0x0112
_TURNED = (5, 6, 7, 8)
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {  # EXIF 2.32, section 4.6.4, tag 274
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}

_DECODER_ERRORS = (  # what Pillow's and libjpeg's readers were seen to raise on damaged bytes
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError,
    EOFError, AttributeError, NotImplementedError, RuntimeError, AssertionError, zlib.error,
)  # fmt: skip

_OTHER_MEDIA = (
    (b"%PDF", 0, "a PDF document"),
    (b"PK\x03\x04", 0, "a ZIP file"),
    (b"\x1f\x8b", 0, "a gzip file"),
    (b"ftyp", 4, "an HEIC, AVIF or MP4 file"),
    (b"<svg", 0, "an SVG drawing"),
    (b"<?xml", 0, "an XML document"),
    (b"<html", 0, "an HTML page"),
    (b"<!DOCTYPE", 0, "an HTML page"),
    (b"--", 0, "a multipart form"),
    (b"{", 0, "a JSON document"),
    (b"data:", 0, "a data URL"),
)


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """The most bytes and the most pixels (width x height) that are decoded."""

    max_bytes: int = 32 << 20
    max_pixels: int = 50_000_000


DEFAULT_LIMITS = PictureLimits()


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture. `width`, `height`: the upright original in pixels; `pixels` may be smaller (DCT scaling)."""

    pixels: Pixels
    width: int
    height: int


def read_picture(
    data: Data, limits: PictureLimits = DEFAULT_LIMITS, *, enough: tuple[int, int] | None = None
) -> Picture:
    """Decodes a picture.

    Args:
        data: the whole file.
        limits: refused beyond these, before anything is decoded.
        enough: (width, height) that the caller needs; a JPEG over twice as large is decoded to a smaller picture that
            still has it. None: always all pixels.

    Raises:
        PictureTooLarge: more bytes or pixels than `limits`.
        MediaTypeRefused: a document of another kind.
        PictureUnreadable: empty, cut short, damaged, or of an unknown kind.
    """
    if len(data) > limits.max_bytes:
        raise PictureTooLarge(f"expected a picture of at most {limits.max_bytes} bytes, found {len(data)}")
    if not data:
        raise PictureUnreadable("expected a picture, found 0 bytes")
    reader = _find_reader(data)
    try:
        image = reader(_open(data))  # not Image.open: that would apply Pillow's process-wide pixel limit first
        _check_size(image, limits)
        return _decode(image, data, enough)
    except (Image.DecompressionBombError, MemoryError) as error:
        raise PictureTooLarge(f"expected a picture of at most {limits.max_pixels} pixels: {error}") from error
    except _DECODER_ERRORS as error:
        raise PictureUnreadable(f"expected a whole, undamaged picture: {error!s:.200}") from error


def resize(
    pixels: Pixels,
    width: int,
    height: int,
    *,
    resample: Resample = "bilinear",
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """Pixels [h, w, 3] or [h, w] -> [height, width, ...], filtered over all source pixels (area-aware kernels).

    `box` is the source region (left, top, right, bottom) in pixels, fractions allowed; None means all.
    """
    kernel = Image.Resampling.BICUBIC if resample == "bicubic" else Image.Resampling.BILINEAR
    if box is None and pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), kernel, box=box))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Grey [h, w], RGB [h, w, 3] or RGB with alpha [h, w, 4] as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", compress_level=_PNG_LEVEL)
    return stream.getvalue()


@cache
def make_black_jpeg() -> bytes:
    """A black JPEG of 640 x 480 pixels, as large as cameras' pictures often are: for warming up."""
    return bytes(simplejpeg.encode_jpeg(np.zeros((480, 640, 3), np.uint8)))


def _open(data: Data) -> io.BytesIO | io.BufferedReader:
    """A file of the bytes. BytesIO copies all but bytes, which of a large picture is worth a view in Python."""
    large = not isinstance(data, bytes) and len(data) > _LARGE_BYTES
    return io.BufferedReader(_View(data)) if large else io.BytesIO(data)


class _View(io.RawIOBase):
    """Reads bytes where they lie."""

    def __init__(self, data: Data) -> None:
        self._view, self._at = memoryview(data), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        if start + offset < 0:
            raise ValueError(f"expected a place of 0 or more, found {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, into: Any) -> int:
        part = self._view[self._at : self._at + len(into)]
        into[: len(part)] = part
        self._at += len(part)
        return len(part)


def _find_reader(data: Data) -> type[ImageFile.ImageFile]:
    for magic, offset, reader in _READERS:
        if data[offset : offset + len(magic)] == magic:
            return reader
    for magic, offset, name in _OTHER_MEDIA:
        if data[offset : offset + len(magic)] == magic:
            raise MediaTypeRefused(f"expected the bytes of a picture, found {name}")
    raise PictureUnreadable("expected the bytes of a JPEG, PNG, BMP, WebP, TIFF or GIF picture, found none of these")


def _check_size(image: Image.Image, limits: PictureLimits) -> None:
    pixels = image.width * image.height
    if pixels > limits.max_pixels:
        raise PictureTooLarge(
            f"expected a picture of at most {limits.max_pixels} pixels, found {image.width}x{image.height}",
            width=image.width,
            height=image.height,
        )
    if image.format == "TIFF":
        _check_tiff_tile(image, limits)


def _check_tiff_tile(image: Image.Image, limits: PictureLimits) -> None:
    """A small TIFF may name tiles of any size (tags 322, 323); libtiff would allocate them."""
    tags = getattr(image, "tag_v2", {})
    sides = [tags.get(tag, 1) for tag in (322, 323)]
    if not all(isinstance(side, int) and side > 0 for side in sides) or sides[0] * sides[1] > limits.max_pixels:
        raise PictureTooLarge(f"expected TIFF tiles of at most {limits.max_pixels} pixels, found {sides!r:.60}")


def _decode(image: Image.Image, data: Data, enough: tuple[int, int] | None) -> Picture:
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        width, height = image.size
        orientation = _read_orientation(image)
        pixels = _decode_jpeg(data, image.size, enough if orientation not in _TURNED or not enough else enough[::-1])
    else:
        image.load()
        width, height = image.size
        orientation = _read_orientation(image)  # after load(): the TIFF reader turns the picture itself
        pixels = _make_rgb(image)
    if orientation in _TURNED:
        width, height = height, width
    upright = _UPRIGHT.get(orientation)
    return Picture(upright(pixels) if upright else pixels, width, height)


def _decode_jpeg(data: Data, size: tuple[int, int], enough: tuple[int, int] | None) -> Pixels:
    if _count_scans(data) > _JPEG_SCANS_MAX:
        raise PictureUnreadable(f"expected a JPEG of at most {_JPEG_SCANS_MAX} scans")
    smaller = enough is not None and size[0] >= 2 * enough[0] and size[1] >= 2 * enough[1]
    min_width, min_height = enough if enough is not None and smaller else (0, 0)
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=min_width, min_height=min_height)
    return pixels


def _count_scans(data: Data) -> int:
    """How often a marker Start of Scan stands in it. `bytes.count` takes six times as long."""
    numbers, count = np.frombuffer(data, np.uint8), 0
    for start in range(0, len(numbers), _BLOCK_BYTES):
        block = numbers[start : start + _BLOCK_BYTES + 1]
        count += int(np.count_nonzero(block[np.flatnonzero(block[:-1] == 0xFF) + 1] == 0xDA))
    return count


def _read_orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:
        return 1  # damaged EXIF is no reason to refuse the pixels
    return value if isinstance(value, int) else 1


def _make_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        return _spread_grey(_read_16_bit(image))
    if image.mode in ("I", "F"):
        return _spread_grey(_to_bytes(np.asarray(image, dtype=np.float64)))
    if image.has_transparency_data:
        return _lay_on_background(image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _read_16_bit(image: Image.Image) -> Pixels:
    return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)


def _to_bytes(samples: NDArray[np.float64]) -> Pixels:
    """32-bit or float samples [h, w] -> 0..255, by the smallest usual range that holds them."""
    samples = np.nan_to_num(samples, posinf=0.0, neginf=0.0)
    low, high = float(samples.min()), float(samples.max())
    top = next((top for top in (1.0, 255.0, 65535.0) if low >= 0 and high <= top), None)
    if top is None:
        samples, top = samples - low, high - low
    return np.rint(samples * (255.0 / top)).astype(np.uint8)


def _spread_grey(grey: Pixels) -> Pixels:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _lay_on_background(image: Image.Image) -> Pixels:
    ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return np.asarray(Image.alpha_composite(ground, image).convert("RGB"))
