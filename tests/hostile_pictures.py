"""Pictures of every kind, and what a hostile or broken sender makes of them."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def make_scene(width: int = 40, height: int = 24) -> Image.Image:
    """Red on top left, green on top right, blue below: no two turns of it look alike."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (250, 10, 10)
    pixels[: height // 2, width // 2 :] = (10, 250, 10)
    pixels[height // 2 :] = (10, 10, 250)
    return Image.fromarray(pixels)


def make_seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene = make_scene(64, 48)
    kinds = ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"]
    odd = [encode(scene.convert("CMYK"), "JPEG"), encode(scene.convert("P"), "PNG"), encode(scene, "JPEG", exif=exif)]
    odd.append(encode(Image.fromarray(np.full((7, 9), 0x8055, np.uint16)), "TIFF", compression="tiff_lzw"))
    return [encode(scene, kind) for kind in kinds] + odd


def mutate(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 12)):
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                changed[at : at + 4] = chance.choice([b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff"])
            case 2:
                del changed[at : at + chance.randint(1, 50)]
            case _:
                changed[at:at] = changed[at : at + chance.randint(1, 50)]
        if not changed:
            break
    return bytes(changed)
