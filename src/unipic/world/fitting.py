"""Which shape, texture, size and place a piece of a picture has, and how far it misfits.

A piece is given as `alpha`, how much of its colour each pixel shows. The nearest template is found by one matrix
product with all of them; then the object is drawn again as that template, and what differs is pooled: a rim half a
pixel off, which blur and other hands make, weighs little, a hole or a mark weighs much.

Letters are read in `render`'s face, thinner or thicker, and as plain strokes; of other bold faces without serifs about
three in four, of thin ones and of those with serifs hardly any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unipic.world.regions import framed, pooled
from unipic.world.scene import DIAMETERS
from unipic.world.templates import BLURS, ROOM, letters, overlap, patterns, silhouettes, stretched

Array = NDArray[np.float32]

LEAST_OVERLAP = {14: 0.74, 20: 0.78, 28: 0.78}  # intersection over union of silhouettes, by diameter
GAIN = (1.0, 1.4)  # of a pattern over its blurred template: blur also weakens the pixels that strength is taken from
LETTER_MARGIN = 0.04  # by which a letter must fit better than a shape that also fits
FRAME = max(DIAMETERS.values()) + ROOM  # zeros around a piece while templates are laid over it
FINALISTS = 4  # silhouettes whose exact overlap is taken
WELL = 0.4  # of the most that may misfit, up to which no other silhouette is tried
POOL = 4  # pixels: the side of the squares over which misfits are averaged, one period of a pattern
# The most that may misfit: of the overlap with the template; on average, edges left out; over the worst square, edges
# left out; over the worst square. 99.7 % of what blur, JPEG, noise and other drawing libraries make of an object is
# within them. Letters are compared by their strokes alone, since fonts differ.
MOST = {
    "filled": (0.22, 0.07, 0.175, 0.24),
    "ring": (0.19, 0.07, 0.25, 0.25),
    "outlined": (0.60, 0.08, 0.26, 0.35),
    "striped": (0.24, 0.12, 0.20, 0.23),
    "dotted": (0.36, 0.14, 0.225, 0.33),
    "letter": (0.32, 0.08, 0.42),
    "small letter": (0.36, 0.12, 0.55),
}


@dataclass(frozen=True)
class Fit:
    """blur: index of the template's. center: row and column, in the piece's window. misfit: of the most that may be."""

    shape: str
    diameter: int
    texture: str
    blur: int
    center: tuple[float, float]
    overlap: float
    misfit: float


def fit(alpha: Array, filled: Array, own: NDArray[np.bool_]) -> Fit | None:
    """What fits best; None if nothing does.

    alpha: 0 in the ground, 1 in full colour; filled: the same with 1 within the contour; own: the piece's pixels.
    """
    rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    longer = max(side.stop - side.start for side in box)
    middle = (box[0].start + box[0].stop, box[1].start + box[1].stop)  # in half pixels
    shape = _shape(framed(alpha, FRAME), framed(filled, FRAME), middle, longer)
    if shape and shape.overlap >= 1 - LETTER_MARGIN:
        return shape
    letter = _letter(alpha[box], middle, longer)
    return letter if letter and (not shape or letter.overlap > shape.overlap + LETTER_MARGIN) else shape


def _shape(alpha: Array, filled: Array, middle: tuple[int, int], longer: int) -> Fit | None:
    """The first silhouette within which a texture fits well, or else the one with the least misfit.

    alpha and filled are framed.
    """
    near = [d for d in DIAMETERS.values() if d - 4 <= longer <= d + 5]
    known = sorted({found for d in near for found in _silhouettes(filled, middle, d)}, reverse=True)
    fits = []
    for _, name, diameter, place in known:
        fits.append(_textured(alpha, middle, name, diameter, place))
        if fits[-1].misfit <= WELL:
            break
    return min(fits, key=lambda f: f.misfit, default=None)


def _silhouettes(
    filled: Array, middle: tuple[int, int], diameter: int
) -> list[tuple[float, tuple[str, str], int, tuple[int, int]]]:
    """Overlap, name, diameter and place of those that fit, to half a pixel."""
    bank, places = silhouettes(diameter, middle[0] % 2 > 0, middle[1] % 2 > 0)
    local = _cut(filled, middle, diameter)
    products = bank.rows @ local.ravel()
    likeness = products / (bank.squares + float(np.square(local).sum()) - products)
    finalists = likeness.argpartition(-FINALISTS)[-FINALISTS:].tolist()
    found = ((overlap(local, bank.images[i]), bank.names[i], diameter, places[i]) for i in finalists)
    return [f for f in found if f[0] >= LEAST_OVERLAP[diameter]]


def _textured(
    alpha: Array, middle: tuple[int, int], name: tuple[str, str], diameter: int, place: tuple[int, int]
) -> Fit:
    """What fits best within a silhouette; place: half pixels down and right of the middle."""
    local = _cut(alpha, middle, diameter)
    bank = patterns(*name, diameter, *place)
    products = bank.rows @ local.clip(0, 1).ravel()
    gains = np.where(bank.blurs > 0, (products / bank.squares).clip(*GAIN), 1)
    nearest = int((gains * gains * bank.squares - 2 * gains * products).argmin())
    shape, texture = bank.names[nearest]
    blur, template = int(bank.blurs[nearest]), gains[nearest] * bank.images[nearest]
    first = blur * len(bank.names) // len(BLURS)  # the filled shape, as much blurred
    fits = overlap(local.clip(0, 1), template)
    parts = _misfits(fits, local - template, bank.most[first] - bank.least[first], bank.most[first])
    misfit = _worst(parts, MOST["ring" if shape == "ring" else texture])
    center = (middle[0] // 2 + place[0] / 2, middle[1] // 2 + place[1] / 2)
    return Fit(shape, diameter, texture, blur, center, fits, misfit)


def _letter(crop: Array, middle: tuple[int, int], longer: int) -> Fit | None:
    diameter = min(DIAMETERS.values(), key=lambda d: abs(d - longer))
    if abs(diameter - longer) > 3:
        return None
    bank, aspects = letters()
    grid = stretched(crop)
    low = np.minimum(grid.clip(0, 1), bank.images).sum((1, 2))
    overlaps = low / (grid.sum() + bank.sums - low)
    ratio = crop.shape[1] / crop.shape[0] / aspects
    overlaps = np.where((ratio > 0.7) & (ratio < 1.4), overlaps, 0)
    best = int(overlaps.argmax())
    limits = MOST["small letter" if diameter == DIAMETERS["small"] else "letter"]
    if overlaps[best] < max(1 - limits[0], float(grid.mean())):  # the latter is how well a plain block fits
        return None
    beyond = np.maximum(grid - bank.most[best], 0) - np.maximum(bank.least[best] - grid, 0)
    parts = _misfits(float(overlaps[best]), beyond, np.zeros_like(beyond), bank.most[best])
    letter, texture = bank.names[best]
    center = (middle[0] / 2, middle[1] / 2)
    return Fit(letter, diameter, texture, 0, center, float(overlaps[best]), _worst(parts, limits))


def _misfits(fits: float, difference: Array, slack: Array, whole: Array) -> tuple[float, ...]:
    """What MOST limits. difference: drawn less template; slack: how much of it is an edge's."""
    beyond = np.sign(difference) * np.maximum(np.abs(difference) - slack, 0)
    worst = np.abs(pooled(np.stack([beyond, difference]), POOL)).max((1, 2))
    return (1 - fits, float(np.abs(beyond).sum() / whole.sum()), *worst.tolist())


def _worst(parts: Sequence[float], most: Sequence[float]) -> float:
    return max(part / limit for part, limit in zip(parts, most, strict=False))


def _cut(framed_: Array, middle: tuple[int, int], diameter: int) -> Array:
    """A template's window around a point, given in half pixels, of an image with a frame around it."""
    side = diameter + ROOM
    top, left = (FRAME + m // 2 - side // 2 for m in middle)
    return framed_[top : top + side, left : left + side]
