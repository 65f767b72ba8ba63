"""Drawing scenes: shapes as polygons, eight times larger, averaged down; every object's mask is drawn once."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from unipic.world.scene import BACKGROUNDS, COLORS, DIAMETERS, LETTERS, TONES, Scene

Mask = NDArray[np.float32]

OVERSAMPLING = 8
CONTOUR = 2  # pixels around the pattern of an object that is not filled
PERIOD = 4  # pixels from one stripe or dot to the next, half of it coloured
RING_HOLE = 0.5  # of the ring's diameter
ARM = 0.38  # width of the cross's arms, of its diameter
STAR_WAIST = 0.45  # inner radius of the star, of its outer


def render(scene: Scene) -> Image.Image:
    """The RGB picture of a scene; the same scene gives the same bytes."""
    canvas = np.empty((scene.height, scene.width, 3), np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    for o in scene.objects:
        left, top, right, bottom = o.box
        alpha = mask(o.shape, DIAMETERS[o.size], o.texture)[..., None]
        patch = canvas[top:bottom, left:right]
        patch += alpha * (np.array(COLORS[o.color], np.float32) - patch)
    return Image.fromarray((canvas * TONES[scene.tone]).round().astype(np.uint8))


@cache
def mask(shape: str, diameter: int, texture: str = "filled") -> Mask:
    """How much of each pixel an object covers: diameter×diameter, 0 to 1."""
    side = diameter * OVERSAMPLING
    whole = _silhouette(shape, side)
    if texture != "filled":
        padded = ImageOps.expand(whole, edge := CONTOUR * OVERSAMPLING, fill=0)
        inside = np.asarray(padded.filter(ImageFilter.MinFilter(2 * edge + 1)))[edge:-edge, edge:-edge] > 127
        pattern = {"outlined": np.zeros((side, side), bool), "striped": _stripes(side), "dotted": _dots(side)}[texture]
        whole = Image.fromarray(np.where(inside & ~pattern, 0, np.asarray(whole)).astype(np.uint8))
    blocks = np.asarray(whole, np.float32).reshape(diameter, OVERSAMPLING, diameter, OVERSAMPLING)
    covered: Mask = blocks.mean((1, 3)) / np.float32(255)
    return covered


def _stripes(side: int) -> NDArray[np.bool_]:
    on = np.arange(side) // OVERSAMPLING % PERIOD < PERIOD // 2
    return np.broadcast_to(on[:, None], (side, side))


def _dots(side: int) -> NDArray[np.bool_]:
    stripes = _stripes(side)
    return stripes & stripes.T


def _silhouette(shape: str, side: int) -> Image.Image:
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    if shape in LETTERS:
        return _letter(shape, side)
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
        if shape == "ring":
            edge = side * (1 - RING_HOLE) / 2
            draw.ellipse((edge, edge, side - 1 - edge, side - 1 - edge), fill=0)
        return canvas
    draw.polygon([((x + 1) * (side - 1) / 2, (y + 1) * (side - 1) / 2) for x, y in outline(shape)], fill=255)
    return canvas


def outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape in a box from -1 to 1, y downwards. Raises KeyError for circle, ring and letters."""
    if shape == "star":
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, STAR_WAIST, 1.0)
        return _boxed(np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1))
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 80, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return _boxed(np.stack([x, y], axis=1))
    return _POLYGONS[shape]


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -0.87), (1, 0.87), (-1, 0.87)],
    "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
    "cross": [
        *[(-ARM, -1), (ARM, -1), (ARM, -ARM), (1, -ARM), (1, ARM), (ARM, ARM)],
        *[(ARM, 1), (-ARM, 1), (-ARM, ARM), (-1, ARM), (-1, -ARM), (-ARM, -ARM)],
    ],
}


def _boxed(points: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Centred in the box, filling its longer side."""
    low, high = points.min(0), points.max(0)
    scaled = (points - (low + high) / 2) * 2 / (high - low).max()
    return [(float(x), float(y)) for x, y in scaled]


def _letter(letter: str, side: int) -> Image.Image:
    """A bold capital that fills the height of its box (or its width, where it is wider)."""
    font = ImageFont.load_default(side)
    stroke = side // 14
    left, top, right, bottom = font.getbbox(letter, stroke_width=stroke)
    glyph = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(glyph).text((-left, -top), letter, fill=255, font=font, stroke_width=stroke)
    glyph = glyph.crop(glyph.getbbox())
    scale = side / max(glyph.size)
    glyph = glyph.resize((round(glyph.width * scale), round(glyph.height * scale)), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (side, side))
    canvas.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return canvas
