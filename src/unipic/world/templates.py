"""What the pieces of a picture are compared with: silhouettes, patterns within a contour, and letters.

A picture may be drawn by other means than `render`, so templates come sharp and blurred, between pixels, with stripes
and dots that start anywhere, stars and crosses in two builds, and letters in several weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from unipic.world.regions import strongest_near
from unipic.world.render import CONTOUR, OVERSAMPLING, PERIOD, mask, outline
from unipic.world.scene import DIAMETERS, LETTERS, SHAPES, textures_of

Array = NDArray[np.float32]

BLURS = (0.0, 0.7, 1.1)  # pixels
ROOM = 8  # pixels by which a template's window is wider than what is drawn in it
DOWN, RIGHT = (-1, 0, 1, 2), (-1, 0, 1)  # half pixels from a piece's middle to try; a heart's tip is easily missed
PHASES = np.arange(0, PERIOD, 0.5)  # pixels from an object's edge to its first stripe
SCHOOL = ("star", "cross", "heart")  # shapes that a school book builds otherwise than `render`
SLIMMER = {"star": 0.85, "cross": 0.87}  # there: a pentagram's waist and arms of a third, of `render`'s
LETTER_GRID = 20  # pixels that letters are stretched to, in both directions
LETTER_SIDE = 112  # pixels that they are drawn with before
LETTER_THINNING = (0, 4, 7)  # pixels taken off all around


@dataclass(frozen=True)
class Bank:
    """Templates of one window: N names, N×S×S images from 0 to 1, and of each the index of its blur in BLURS."""

    names: tuple[tuple[str, str], ...]
    images: Array
    blurs: NDArray[np.int64]

    @cached_property
    def rows(self) -> Array:
        return self.images.reshape(len(self.images), -1)

    @cached_property
    def squares(self) -> Array:
        return np.asarray(np.square(self.rows).sum(1), np.float32)

    @cached_property
    def sums(self) -> Array:
        return np.asarray(self.rows.sum(1), np.float32)

    @cached_property
    def most(self) -> Array:
        """The maximum of a pixel and its neighbours."""
        return strongest_near(self.images, (1,))

    @cached_property
    def least(self) -> Array:
        """The minimum of a pixel and its neighbours; beyond the window all is zero."""
        return -strongest_near(-self.images, (1,))


def overlap(a: Array, b: Array) -> float:
    """Soft intersection over union of two images."""
    low = float(np.minimum(a, b).sum())
    return low / (float(a.sum()) + float(b.sum()) - low)


@cache
def silhouettes(diameter: int, down: bool, right: bool) -> tuple[Bank, tuple[tuple[int, int], ...]]:
    """Filled shapes of a diameter, at each blur and each of DOWN and RIGHT of a square window's middle.

    down, right: whether that middle is half a pixel further. Names are (shape, "render" or "school"). The second
    result is where each template is, in half pixels down and right of the window's middle.
    """
    builds = [*((shape, "render") for shape in SHAPES if shape != "ring"), *((shape, "school") for shape in SCHOOL)]
    drawn = [(build, _contours(*build, diameter)[0]) for build in builds]
    blurred = [(name, _blurred(_centred(image), blur)) for blur in BLURS for name, image in drawn]
    places = [(y + down, x + right) for y, x in product(DOWN, RIGHT)]
    images = np.stack([_off(image, *place) for place in places for _, image in blurred])
    blurs = np.tile(np.repeat(np.arange(len(BLURS)), len(drawn)), len(places))
    names = tuple(name for name, _ in blurred) * len(places)
    return Bank(names, images, blurs), tuple(place for place in places for _ in blurred)


@cache
def patterns(shape: str, build: str, diameter: int, down: int, right: int) -> Bank:
    """A shape in its textures, placed and blurred as silhouettes are; a circle's silhouette may also be a ring.

    Names are (shape, texture), as many for each blur; the first of them is the filled shape.
    """
    size = next(s for s, d in DIAMETERS.items() if d == diameter)
    whole, contours = _contours(shape, build, diameter)
    drawn = [((shape, "filled"), whole)]
    drawn += [(("ring", "filled"), mask("ring", diameter))] if shape == "circle" else []
    for texture, contour in product(textures_of(shape, size)[1:], contours):
        drawn += [((shape, texture), contour + (whole - contour) * pattern) for pattern in _patterns(texture, diameter)]
    images = [_off(_blurred(_centred(image), blur), down, right) for blur in BLURS for _, image in drawn]
    names = tuple(name for name, _ in drawn) * len(BLURS)
    return Bank(names, np.stack(images), np.repeat(np.arange(len(BLURS)), len(drawn)))


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


@cache
def _contours(shape: str, build: str, diameter: int) -> tuple[Array, tuple[Array, ...]]:
    """A shape, and its contour as `render` draws it, which is thicker on slopes, and as a pen does."""
    edge = CONTOUR * OVERSAMPLING
    canvas = np.pad(_canvas(shape, build, diameter * OVERSAMPLING), edge)
    wide = np.asarray(Image.fromarray(canvas).filter(ImageFilter.MinFilter(2 * edge + 1)))
    angles = np.arange(0, 2 * np.pi, np.pi / 8)
    around = [(round(edge * np.sin(a)), round(edge * np.cos(a))) for a in angles]
    round_ = np.min([np.roll(canvas, step, (0, 1)) for step in around], axis=0)
    whole, *inside = (_reduced(image)[CONTOUR:-CONTOUR, CONTOUR:-CONTOUR] for image in (canvas, wide, round_))
    return whole, tuple(whole - i for i in inside)


def _canvas(shape: str, build: str, side: int) -> NDArray[np.uint8]:
    if build == "render":
        return (mask(shape, side) * 255).astype(np.uint8)
    canvas = Image.new("L", (side, side))
    corners = [(float(x), float(y)) for x, y in (_school(shape) + 1) * (side - 1) / 2]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    return np.asarray(canvas)


def _school(shape: str) -> NDArray[np.float64]:
    """Corners, in a box from -1 to 1: a pentagram, a cross of five squares, a heart of two circles on a right angle."""
    if shape == "heart":
        angles = np.radians(np.arange(-45, 181, 5))
        right = np.stack([1 + np.cos(angles), -np.sin(angles)], axis=1)
        points = np.concatenate([right, right[::-1] * (-1, 1), [(0, 1 + np.sqrt(2))]])
        low, high = points.min(0), points.max(0)
        return np.asarray((points - (low + high) / 2) * 2 / (high - low).max())
    points = np.array(outline(shape))
    if shape == "star":
        middle = points.mean(0)  # which its box's is not
        points[1::2] = middle + (points[1::2] - middle) * SLIMMER[shape]
    else:
        points[np.abs(points) < 1] *= SLIMMER[shape]
    return points


def _reduced(canvas: NDArray[np.uint8]) -> Array:
    return np.asarray(Image.fromarray(canvas).reduce(OVERSAMPLING), np.float32) / np.float32(255)


def _off(image: Array, down: int, right: int) -> Array:
    """Moved by half pixels; what is between two pixels is shared by them."""
    for axis, steps in enumerate((down, right)):
        image = (np.roll(image, steps // 2, axis) + np.roll(image, -(-steps // 2), axis)) / np.float32(2)
    return image


def _blurred(image: Array, radius: float) -> Array:
    if not radius:
        return image
    picture = Image.fromarray((image * 255).round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(picture, np.float32) / np.float32(255)


def _centred(image: Array) -> Array:
    return np.pad(image, ROOM // 2)


@cache
def letters() -> tuple[Bank, NDArray[np.float64]]:
    """All letters in each weight, stretched to one grid, and their width over height. Names are (letter, "filled")."""
    images, aspects = [], []
    for thinning, letter in product(LETTER_THINNING, LETTERS):
        whole = Image.fromarray((mask(letter, LETTER_SIDE) * 255).astype(np.uint8))
        image = np.asarray(whole.filter(ImageFilter.MinFilter(2 * thinning + 1)), np.float32) / np.float32(255)
        rows, columns = np.flatnonzero(image.max(1) > 0.5), np.flatnonzero(image.max(0) > 0.5)
        crop = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        images.append(stretched(crop))
        aspects.append(crop.shape[1] / crop.shape[0])
    names = tuple((letter, "filled") for letter in LETTERS) * len(LETTER_THINNING)
    return Bank(names, np.stack(images), np.zeros(len(names), np.int64)), np.array(aspects)


def stretched(crop: Array) -> Array:
    """A letter's pixels on the letters' grid."""
    return np.asarray(Image.fromarray(crop).resize((LETTER_GRID, LETTER_GRID), Image.Resampling.BILINEAR), np.float32)
