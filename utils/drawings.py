"""Synthetic drawings: what photographs lack, but logos, charts and comics are made of.

Generators that have seen only photographs shift pure colours, by up to 37 of 255 levels. A few
drawings among the training photographs teach them flat, saturated colours, straight edges and
letters.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE = 640  # pixels
_ZOOM = 2  # drawn larger and averaged, so that edges are smooth
_CANVAS = _SIDE * _ZOOM
_CHARACTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789&?!%")


def draw(rng: np.random.Generator) -> np.ndarray:
    """Return a drawing (640, 640, 3), uint8: coloured panels with shapes, lines and words on them.

    Args:
        rng: the only source of randomness.
    """
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), _colour(rng))
    pen = ImageDraw.Draw(canvas)
    panels = int(rng.integers(1, 5))
    side = _CANVAS / panels
    for row in range(panels):
        for column in range(panels):
            corner = (column * side, row * side)
            pen.rectangle((*corner, corner[0] + side, corner[1] + side), fill=_colour(rng))
    for _ in range(rng.integers(15, 45)):
        _draw_shape(pen, rng)
    return np.asarray(canvas.resize((_SIDE, _SIDE), Image.Resampling.BOX))


def _draw_shape(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draw a rectangle, an ellipse, a polygon, a line or a word at a random place."""
    kind = rng.choice(["rectangle", "ellipse", "polygon", "line", "word"])
    size = _CANVAS * _log_uniform(rng, 0.02, 0.6)
    x, y = rng.uniform(-0.1, 1, 2) * _CANVAS
    width, height = size * rng.uniform(0.4, 1, 2)
    colour = _colour(rng)
    match kind:
        case "rectangle":
            pen.rectangle((x, y, x + width, y + height), fill=colour)
        case "ellipse":
            pen.ellipse((x, y, x + width, y + height), fill=colour)
        case "polygon":
            corners = (x, y) + size * rng.uniform(0, 1, (rng.integers(3, 6), 2))
            pen.polygon([tuple(corner) for corner in corners.tolist()], fill=colour)
        case "line":
            end = (x, y) + size * rng.uniform(-1, 1, 2)
            thickness = int(_ZOOM * _log_uniform(rng, 1, 16))
            pen.line((x, y, *end.tolist()), fill=colour, width=thickness)
        case "word":
            word = "".join(rng.choice(_CHARACTERS, rng.integers(3, 12)))
            font = ImageFont.load_default(_ZOOM * _log_uniform(rng, 14, 90))
            pen.text((x, y), word, fill=colour, font=font)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Return a random colour; half of its channels are 0 or 255, where a generator errs most."""
    anything = rng.integers(0, 256, 3)
    extreme = rng.choice([0, 255], 3)
    red, green, blue = np.where(rng.random(3) < 0.5, extreme, anything).tolist()
    return red, green, blue


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))
