"""Limbs: which points of a body, a hand or a face are joined by lines, by their names.

Rules:
- Points that the model is not sure of are no part of a limb.
- Bodies are COCO's 17 joints (MoveNet), hands and faces MediaPipe's; of the 468 points of a face mesh the oval, the
  eyes and the lips are joined. Points of other names stand alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from edgeferry.vision.answer import Point

LEAST_SCORE = 0.3
"""As MoveNet's model card recommends."""

_BODY = (
    "left_ear left_eye nose right_eye right_ear",
    "left_wrist left_elbow left_shoulder right_shoulder right_elbow right_wrist",
    "left_ankle left_knee left_hip right_hip right_knee right_ankle",
    "left_shoulder left_hip",
    "right_shoulder right_hip",
)
_HAND = (
    "wrist thumb_cmc thumb_mcp thumb_ip thumb_tip",
    "wrist index_mcp index_pip index_dip index_tip",
    "middle_mcp middle_pip middle_dip middle_tip",
    "ring_mcp ring_pip ring_dip ring_tip",
    "wrist pinky_mcp pinky_pip pinky_dip pinky_tip",
    "index_mcp middle_mcp ring_mcp pinky_mcp",
)
_FACE = (  # oval, the two eyes, outer and inner lips
    "10 338 297 332 284 251 389 356 454 323 361 288 397 365 379 378 400 377 152 148 176 149 150 136 172 58 132 93 234 "
    "127 162 21 54 103 67 109 10",
    "33 7 163 144 145 153 154 155 133 173 157 158 159 160 161 246 33",
    "263 249 390 373 374 380 381 382 362 398 384 385 386 387 388 466 263",
    "61 146 91 181 84 17 314 405 321 375 291 409 270 269 267 0 37 39 40 185 61",
    "78 95 88 178 87 14 317 402 318 324 308 415 310 311 312 13 82 81 80 191 78",
)
_PAIRS = tuple(pair for chain in (*_BODY, *_HAND, *_FACE) for pair in pairwise(chain.split()))


def list_sure(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that the model is sure of."""
    return tuple(point for point in points if point.score >= LEAST_SCORE)


def list_limbs(points: Sequence[Point]) -> tuple[tuple[Point, Point], ...]:
    """The pairs of points that a line joins."""
    named = {point.name: point for point in list_sure(points)}
    return tuple((named[one], named[other]) for one, other in _PAIRS if one in named and other in named)
