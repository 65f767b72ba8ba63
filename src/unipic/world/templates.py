"""What the pieces of a picture are compared with: silhouettes, patterns within a contour, and letters.

A picture may be drawn by other means than `render`, so templates come sharp and blurred, between pixels, with stripes
and dots that start anywhere, and letters in two weights.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from unipic.world.render import OVERSAMPLING, PERIOD, mask, outline
from unipic.world.scene import DIAMETERS, LETTERS, SHAPES, textures_of

Array = NDArray[np.float32]

BLURS = (0.0, 0.7, 1.1)  # pixels
PHASES = np.arange(0, PERIOD, 0.5)  # pixels from an object's edge to its first stripe
SLIMMER = {"star": 0.85, "cross": 0.87}  # a pentagram's waist and arms of a third, of `render`'s
LETTER_GRID = 20  # pixels that letters are stretched to, in both directions
LETTER_SIDE = 112  # pixels that they are drawn with before
LETTER_THINNING = (0, 4, 7)  # pixels taken off all around


def overlap(a: Array, many: Array) -> Array:
    """Soft intersection over union of one image with each of many."""
    low = np.minimum(a, many).sum((-2, -1))
    return np.asarray(low / (a.sum() + many.sum((-2, -1)) - low), np.float32)


@cache
def silhouettes(diameter: int, side: int, down: bool, right: bool) -> tuple[tuple[str, ...], Array]:
    """Filled shapes of a diameter, at each blur, in the middle of a square window.

    down, right: half a pixel off the middle.
    """
    drawn = {name: mask(name, diameter) for name in SHAPES if name != "ring"}
    images = [_off(_centred(image, side), down, right) for image in (*drawn.values(), *_slim(diameter).values())]
    names = (*drawn, *SLIMMER)
    return names * len(BLURS), np.stack([_blurred(image, blur) for blur in BLURS for image in images])


@cache
def patterns(
    shape: str, diameter: int, side: int, down: bool, right: bool
) -> tuple[tuple[tuple[str, str], ...], Array]:
    """A shape in its textures, placed and blurred as silhouettes are; a circle's silhouette may also be a ring.

    Names are (shape, texture), as many for each blur.
    """
    size = next(s for s, d in DIAMETERS.items() if d == diameter)
    drawn = [((shape, "filled"), mask(shape, diameter))]
    drawn += [(("ring", "filled"), mask("ring", diameter))] if shape == "circle" else []
    for texture in textures_of(shape, size)[1:]:
        contour = mask(shape, diameter, "outlined")
        inside = mask(shape, diameter) - contour
        drawn += [((shape, texture), contour + inside * pattern) for pattern in _patterns(texture, diameter)]
    images = [_off(_centred(image, side), down, right) for _, image in drawn]
    return tuple(name for name, _ in drawn) * len(BLURS), np.stack(
        [_blurred(i, blur) for blur in BLURS for i in images]
    )


def _patterns(texture: str, diameter: int) -> list[Array]:
    """How much of each pixel within a contour is coloured, for each place where the pattern may start."""
    fine = (np.arange(diameter * 4) + 0.5) / 4
    on = (fine - PHASES[:, None]) % PERIOD < PERIOD / 2
    stripes = on.reshape(len(PHASES), diameter, 4).mean(-1, dtype=np.float32)
    if texture == "outlined":
        return [np.zeros((diameter, diameter), np.float32)]
    if texture == "striped":
        return [np.broadcast_to(s[:, None], (diameter, diameter)) for s in stripes]
    return [np.outer(a, b) for a, b in product(stripes[::2], stripes[::2])]


def _slim(diameter: int) -> dict[str, Array]:
    """Star and cross, drawn as `render` draws polygons, but nearer to what a school book has."""
    side, images = diameter * OVERSAMPLING, {}
    for shape, share in SLIMMER.items():
        points = np.array(outline(shape))
        if shape == "star":
            middle = points.mean(0)  # which its box's is not
            points[1::2] = middle + (points[1::2] - middle) * share
        else:
            points[np.abs(points) < 1] *= share
        canvas = Image.new("L", (side, side))
        ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in (points + 1) * (side - 1) / 2], fill=255)
        images[shape] = np.asarray(canvas.reduce(OVERSAMPLING), np.float32) / np.float32(255)
    return images


def _off(image: Array, down: bool, right: bool) -> Array:
    if down:
        image = (image + np.roll(image, 1, 0)) / np.float32(2)
    return (image + np.roll(image, 1, 1)) / np.float32(2) if right else image


def _blurred(image: Array, radius: float) -> Array:
    if not radius:
        return image
    picture = Image.fromarray((image * 255).round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(picture, np.float32) / np.float32(255)


def _centred(image: Array, side: int) -> Array:
    before = (side - len(image)) // 2
    after = side - len(image) - before
    return np.pad(image, ((before, after), (before, after)))


@cache
def letters() -> tuple[tuple[str, ...], Array, NDArray[np.float64]]:
    """All letters in each weight, stretched to one grid, and their width over height."""
    images, aspects = [], []
    for thinning, letter in product(LETTER_THINNING, LETTERS):
        whole = Image.fromarray((mask(letter, LETTER_SIDE) * 255).astype(np.uint8))
        image = np.asarray(whole.filter(ImageFilter.MinFilter(2 * thinning + 1)), np.float32) / np.float32(255)
        rows, columns = np.flatnonzero(image.max(1) > 0.5), np.flatnonzero(image.max(0) > 0.5)
        crop = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        images.append(stretched(crop))
        aspects.append(crop.shape[1] / crop.shape[0])
    return LETTERS * len(LETTER_THINNING), np.stack(images), np.array(aspects)


def stretched(crop: Array) -> Array:
    """A letter's pixels on the letters' grid."""
    return np.asarray(Image.fromarray(crop).resize((LETTER_GRID, LETTER_GRID), Image.Resampling.BILINEAR), np.float32)
