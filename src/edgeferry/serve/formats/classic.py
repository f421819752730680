"""The shape of the guide's sample, string for string: a JSON array of quoted pseudo-JSON strings.

`"{'Class': 'cat','Score': '0.72265625','Location': '[0.13 0.09 0.98 0.71]'}"`: Python's `%s` of a numpy float32 and of
a numpy float32 array. What is kept is the form, not the faults: labels are right, locations lie inside the picture.

Rules (docs/formats/score.md):
- Locations follow the sample's two paths: 0..1 for .tflite models, pixels of the picture for .onnx models.
- Numbers are written as numpy 2 prints float32 by default (`numpy/_core/arrayprint.py: FloatingFormat`): shortest text
  that reads back as the same float32, at most 8 digits after the point, padded to equal width; scientific when the
  smallest non-zero is < 1e-4 or a thousandth of the largest. Held for 0..100000, which covers every picture. No numpy
  here: this runs in the main process.
"""

from __future__ import annotations

import struct
from decimal import Decimal

from edgeferry.serve.formats.score import make_score
from edgeferry.vision.answer import Answer, Box

_DIGITS_MAX = 8


def make_classic(answer: Answer, *, width: int, height: int, in_pixels: bool) -> list[str]:
    """The sample's strings. `width`, `height`: the upright picture in pixels; `in_pixels`: the ONNX path's units."""
    scale = (height, width, height, width) if in_pixels else (1, 1, 1, 1)
    lines = []
    for element in make_score(answer):
        top, left, bottom, right = (value * factor for value, factor in zip(element.location, scale, strict=True))
        location = format_array((top, left, bottom, right))
        score = format_scalar(element.score)
        lines.append(f"{{'Class': '{element.label}','Score': '{score}','Location': '{location}'}}")
    return lines


def format_scalar(value: float) -> str:
    """`str(numpy.float32(value))`, for 0..100000."""
    rounded = _to_float32(value)
    number = _shortest(rounded)
    if 0 < rounded < 1e-4:
        return f"{rounded:.{len(number.as_tuple().digits) - 1}e}"
    text = f"{number:f}"
    return text if "." in text else text + ".0"


def format_array(values: Box) -> str:
    """`str(numpy.array(values, numpy.float32))`, for 0..100000."""
    numbers = [_to_float32(value) for value in values]
    sizes = [abs(number) for number in numbers if number]
    scientific = bool(sizes) and (min(sizes) < _to_float32(1e-4) or _to_float32(max(sizes) / min(sizes)) > 1000)
    texts = _format_scientific(numbers) if scientific else _format_positional(numbers)
    return f"[{' '.join(texts)}]"


def _format_positional(numbers: list[float]) -> list[str]:
    texts = [_fraction(_cut(number, _DIGITS_MAX)) for number in numbers]
    left = max(text.index(".") for text in texts)
    right = max(len(text) - text.index(".") for text in texts)
    return [(" " * (left - text.index(".")) + text).ljust(left + right) for text in texts]


def _format_scientific(numbers: list[float]) -> list[str]:
    shortest = [len(_shortest(number).normalize().as_tuple().digits) - 1 for number in numbers]
    digits = min(max(shortest), _DIGITS_MAX)
    texts = [f"{number:.{digits}e}" for number in numbers]
    return texts if digits else [text.replace("e", ".e") for text in texts]


def _fraction(number: Decimal) -> str:
    """Positional text without trailing zeros, with its point: `1.`, `0.25`."""
    text = f"{number:f}"
    return text.rstrip("0") if "." in text else text + "."


def _cut(number: float, digits: int) -> Decimal:
    """The shortest text of a float32, rounded to `digits` after the point where it is longer."""
    short = _shortest(number)
    exponent = short.as_tuple().exponent
    return Decimal(f"{number:.{digits}f}") if isinstance(exponent, int) and exponent < -digits else short


def _shortest(number: float) -> Decimal:
    """The decimal with the fewest digits that reads back as the same float32; nine digits always do."""
    texts = (f"{number:.{digits}e}" for digits in range(9))
    return Decimal(next(text for text in texts if _to_float32(float(text)) == number))


def _to_float32(value: float) -> float:
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)
