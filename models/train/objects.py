"""Draws the things that the demo detector finds: people, fire, vessels, gauges, leaks. Pillow and numpy only.

Leaves placing, background and camera effects to `scene.py`.

Rules:
- Every drawing takes a generator of random numbers, so one seed gives one picture.
- Every drawing returns the exact box of its paint in canvas pixels, as (left, top, right, bottom).
"""

import numpy as np
from numpy.random import Generator
from PIL.ImageDraw import ImageDraw

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

COATS: list[Colour] = [(235, 120, 25), (225, 220, 40), (30, 60, 130), (170, 30, 35), (60, 65, 70)]
SKINS: list[Colour] = [(232, 190, 160), (190, 140, 105), (120, 80, 58)]
HELMETS: list[Colour] = [(245, 205, 20), (250, 250, 250), (240, 95, 20), (30, 110, 220), (215, 25, 30)]
HAIRS: list[Colour] = [(35, 25, 20), (90, 60, 35), (160, 130, 80), (20, 20, 22)]
HULLS: list[Colour] = [(160, 30, 30), (25, 45, 95), (30, 90, 60), (215, 110, 25), (50, 52, 58)]
FLAMES: list[Colour] = [(225, 70, 10), (250, 140, 20), (255, 220, 70)]


def jitter(rng: Generator, colour: Colour, spread: int = 25) -> Colour:
    """Returns `colour` with each channel moved by at most `spread`."""
    red, green, blue = (int(np.clip(v + rng.integers(-spread, spread + 1), 0, 255)) for v in colour)
    return red, green, blue


def pick(rng: Generator, colours: list[Colour]) -> Colour:
    """Returns one of `colours`."""
    return colours[int(rng.integers(0, len(colours)))]


def draw_person(pen: ImageDraw, rng: Generator, x: float, y: float, height: float, *, helmet: bool) -> Box:
    """Draws a person whose feet stand at (x, y)."""
    centre = x + rng.uniform(-0.02, 0.02) * height
    coat, skin = jitter(rng, pick(rng, COATS), 20), pick(rng, SKINS)
    stride = rng.uniform(0.04, 0.14) * height
    leg_width, hip, shoulder = max(2, int(height * 0.085)), y - 0.46 * height, y - 0.80 * height
    trousers = jitter(rng, (40, 45, 70))
    for side in (-1, 1):
        pen.line([centre + side * 0.05 * height, hip, x + side * stride, y], fill=trousers, width=leg_width)
    body = height * rng.uniform(0.10, 0.13)
    hands = _draw_arms(pen, rng, (centre, shoulder + 0.04 * height), (height, body), (coat, skin))
    radius = max(1, int(height * 0.04))
    pen.rounded_rectangle([centre - body, shoulder, centre + body, hip + 0.05 * height], radius=radius, fill=coat)
    if rng.random() < 0.7:
        stripe = shoulder + 0.2 * height
        width = max(1, int(height * 0.025))
        pen.line([centre - body, stripe, centre + body, stripe], fill=(235, 235, 215), width=width)
    top = _draw_head(pen, rng, (centre, shoulder), height, skin, helmet=helmet)
    left = min(x - stride - leg_width / 2, centre - body, hands[0])
    right = max(x + stride + leg_width / 2, centre + body, hands[1])
    return left, top, right, y + leg_width * 0.3


def _draw_arms(
    pen: ImageDraw,
    rng: Generator,
    neck: tuple[float, float],
    sizes: tuple[float, float],
    colours: tuple[Colour, Colour],
) -> tuple[float, float]:
    """Draws both arms of a person of (height, body width); returns the leftmost and rightmost pixel of the hands."""
    (centre, start), (height, body) = neck, sizes
    width, ends = max(2, int(height * 0.06)), []
    for side in (-1, 1):
        angle = rng.uniform(0.1, 1.3)
        hand_x = centre + side * (body + np.sin(angle) * 0.27 * height)
        hand_y = start + np.cos(angle) * 0.27 * height
        pen.line([centre + side * body * 0.9, start, hand_x, hand_y], fill=colours[0], width=width)
        half = width / 2
        pen.ellipse([hand_x - half, hand_y - half, hand_x + half, hand_y + half], fill=colours[1])
        ends.append(hand_x)
    return min(ends) - width / 2, max(ends) + width / 2


def _draw_head(
    pen: ImageDraw, rng: Generator, neck: tuple[float, float], height: float, skin: Colour, *, helmet: bool
) -> float:
    """Draws head and helmet or hair; returns the topmost pixel."""
    size = height * rng.uniform(0.075, 0.09)
    x, y = neck[0], neck[1] - size * 1.1
    pen.ellipse([x - size, y - size * 1.15, x + size, y + size * 1.15], fill=skin)
    if not helmet:
        hair = jitter(rng, pick(rng, HAIRS), 10)
        pen.chord([x - size * 1.02, y - size * 1.25, x + size * 1.02, y + size * 0.6], 185, 355, fill=hair)
        return y - size * 1.25
    shell = jitter(rng, pick(rng, HELMETS), 12)
    pen.pieslice([x - size * 1.25, y - size * 1.55, x + size * 1.25, y + size * 0.95], 180, 360, fill=shell)
    brim = y - size * 0.28
    pen.line([x - size * 1.55, brim, x + size * 1.55, brim], fill=shell, width=max(2, int(size * 0.3)))
    return y - size * 1.55


def draw_fire(pen: ImageDraw, rng: Generator, x: float, y: float, height: float) -> Box:
    """Draws flames whose foot is centred on (x, y)."""
    width, tongues = height * rng.uniform(0.5, 0.8), 9
    for layer, colour in enumerate(FLAMES):
        scale, points = 1 - 0.28 * layer, []
        for i in range(tongues + 1):
            t = i / tongues
            lick = np.sin(t * np.pi) ** 0.7 * (1.0 if i % 2 else 0.6) * rng.uniform(0.8, 1)
            points.append((x + (t - 0.5) * width * scale, y - height * scale * lick))
        if layer == 0:  # one tongue reaches the top, so that the box is exact
            points[tongues // 2 + 1] = (x, y - height)
        foot = [(x + width * scale * 0.35, y), (x - width * scale * 0.35, y)]
        pen.polygon(points + foot, fill=jitter(rng, colour, 12))
    return x - width / 2, y - height, x + width / 2, y


def draw_vessel(pen: ImageDraw, rng: Generator, x: float, y: float, width: float) -> Box:
    """Draws a supply vessel whose keel is centred on (x, y)."""
    deck = width * rng.uniform(0.18, 0.26)
    hull, bow = jitter(rng, pick(rng, HULLS), 18), 1 if rng.random() < 0.5 else -1

    def at(along: float, up: float) -> tuple[float, float]:
        return x + bow * along * width, y - up

    def block(left: float, low: float, right: float, high: float, fill: Colour) -> None:
        (x0, y0), (x1, y1) = at(left, low), at(right, high)
        pen.rectangle([min(x0, x1), y1, max(x0, x1), y0], fill=fill)

    pen.polygon([at(-0.5, deck), at(0.5, deck * 1.2), at(0.38, 0), at(-0.44, 0)], fill=hull)
    pen.line([at(-0.44, deck * 0.2), at(0.4, deck * 0.2)], fill=(225, 225, 225), width=max(1, int(width * 0.012)))
    start, length = rng.uniform(-0.42, -0.1), rng.uniform(0.2, 0.32)
    house = deck * rng.uniform(1.2, 2.0)
    block(start, deck, start + length, deck + house, jitter(rng, (235, 235, 230), 15))
    block(start + 0.03, deck + house * 0.6, start + length - 0.03, deck + house * 0.82, (40, 60, 80))
    mast, mast_top = start + length * 0.5, deck + house + deck * rng.uniform(0.4, 1.2)
    pen.line([at(mast, deck + house), at(mast, mast_top)], fill=(70, 70, 70), width=max(2, int(width * 0.015)))
    if rng.random() < 0.6:
        pen.line([at(0.2, deck), at(0.35, deck * 2.0)], fill=(220, 170, 30), width=max(2, int(width * 0.02)))
    return x - width / 2, y - mast_top, x + width / 2, y


def draw_gauge(pen: ImageDraw, rng: Generator, x: float, y: float, size: float, *, value: float | None = None) -> Box:
    """Draws a pressure gauge centred on (x, y); `value` in 0..1 is where its needle points (random if None)."""
    radius, reading = size / 2, rng.random() if value is None else value

    def disc(r: float, fill: Colour) -> None:
        pen.ellipse([x - r, y - r, x + r, y + r], fill=fill)

    def ray(degrees: float, near: float, far: float, width: float, fill: Colour) -> None:
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        pen.line([x + c * near, y + s * near, x + c * far, y + s * far], fill=fill, width=max(1, int(width)))

    disc(radius, jitter(rng, (60, 62, 66), 30))
    face = radius * 0.86
    disc(face, jitter(rng, (240, 240, 235), 12))
    rim = [x - face * 0.9, y - face * 0.9, x + face * 0.9, y + face * 0.9]
    pen.arc(rim, 135, 315, fill=(40, 150, 60), width=max(2, int(radius * 0.13)))
    pen.arc(rim, 315, 405, fill=(205, 30, 30), width=max(2, int(radius * 0.13)))
    for tick in range(10):
        ray(148 + 27 * tick, face * 0.68, face * 0.85, radius * 0.04, (30, 30, 30))
    ray(135 + 270 * reading, 0, face * 0.75, max(2, radius * 0.09), (20, 20, 25))
    disc(radius * 0.12, (20, 20, 25))
    return x - radius, y - radius, x + radius, y + radius


def draw_leak(pen: ImageDraw, rng: Generator, x: float, y: float, width: float) -> Box:
    """Draws drops that fall into a dark, glossy puddle whose near edge is centred on (x, y)."""
    depth, fall = width * rng.uniform(0.22, 0.34), width * rng.uniform(0.35, 0.8)
    oil = jitter(rng, (22, 20, 26), 12)
    pen.ellipse([x - width / 2, y - depth, x + width / 2, y], fill=oil)
    violet, green = jitter(rng, (75, 60, 110), 20), jitter(rng, (50, 100, 105), 20)
    pen.ellipse([x - width * 0.34, y - depth * 0.8, x - width * 0.02, y - depth * 0.45], fill=violet)
    pen.ellipse([x + width * 0.05, y - depth * 0.5, x + width * 0.25, y - depth * 0.3], fill=green)
    jet, top = x + rng.uniform(-0.1, 0.1) * width, y - depth / 2 - fall
    pen.line([jet, top, jet, y - depth / 2], fill=oil, width=max(2, int(width * 0.05)))
    for drop in range(3):
        middle, half = top + fall * (drop + 0.5) / 3, width * 0.045
        pen.ellipse([jet - half, middle - half * 1.5, jet + half, middle + half * 1.5], fill=oil)
    return x - width / 2, top, x + width / 2, y
