"""Finding objects in a picture from its pixels alone.

The ground is the palette's colour that most of the border shows. What differs from it falls into pieces; a piece is an
object if its silhouette is a shape of a known size, its colour has a name, and nothing else is mixed in. Everything
else is debris. Nothing here knows how the picture was drawn: silhouettes are compared by overlap, textures by the
pattern within the contour, so that blur, noise and other drawing libraries are tolerated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipic.world.regions import Box, framed, grown, outside, pieces, strongest_near
from unipic.world.scene import BACKGROUNDS, CHROMA_SHARE, COLORS, DIAMETERS, SHAPES, TO_VIEW, TONES
from unipic.world.templates import BLURS, letters, overlap, patterns, silhouettes, stretched

Array = NDArray[np.float32]

GROUND_TOLERANCE = 26.0  # RGB distance of the ground from its name, before tone
BORDER_SHARE = 0.8  # of the outermost pixels that must be ground
FLOOR = 24.0  # least seen difference from the ground, in light tone
HALO = 0.42  # of the strongest difference within four pixels, below which a pixel is ground
LEAST_AREA = 14  # pixels; smaller pieces are specks
LEAST_DEBRIS = 20  # pixels that spoil a picture
LEAST_OVERLAP = {14: 0.74, 20: 0.78, 28: 0.78}  # intersection over union of silhouettes, by diameter
WHOLE_OVERLAP = {14: 0.92, 20: 0.96, 28: 1.0}  # from which on nothing is missing: two hands' drawings differ by a rim
LEAST_LETTER_OVERLAP, WHOLE_LETTER_OVERLAP = 0.62, 0.8  # fonts differ
GAIN = (1.0, 1.4)  # of a pattern over its blurred template: blur also weakens the pixels that strength is taken from
LETTER_MARGIN = 0.04  # by which a letter must fit better than a shape that also fits
COLOR_TOLERANCE = 42.0  # RGB distance from a name, tone taken out
COLOR_CLARITY = 0.6  # the nearest name is at most this share as far as the second
# How much of luma and chroma an object's strongest pixels may have lost: of luma nothing within a solid object; more in
# a small or thin-lined one, since JPEG keeps half of the chroma; most where the pattern itself is found blurred.
SOLID_FADING = (1.0, 1.25)
SMALL_FADING = (1.1, 1.45)
THIN_FADING = ((1.2, 2.1), (1.4, 2.2), (1.6, 2.2))  # by the blur of the template that fits best
MOST_MIXING = 0.30  # mean distance of a piece's pixels from the line ground–colour, of that line's length
FRAME = max(DIAMETERS.values()) + 8  # zeros around a piece while templates are laid over it


@dataclass(frozen=True)
class Seen:
    """An object that was found. x, y: its centre; box: left, top, right, bottom; in pixels.

    quality: how well it fits its shape, 0 to 1.
    """

    shape: str
    color: str
    texture: str
    size: str
    x: float
    y: float
    box: Box
    quality: float


@dataclass(frozen=True)
class Debris:
    """A piece of the picture that is neither ground nor a well-formed object, and why."""

    box: Box
    area: int
    reason: str


@dataclass(frozen=True)
class View:
    """All that was found. background, tone: None where the ground has no name; then nothing else is looked for."""

    background: str | None
    tone: str | None
    objects: tuple[Seen, ...]
    debris: tuple[Debris, ...]

    @property
    def clean(self) -> bool:
        """Whether there is a named ground, and no debris but specks: what is half drawn, merged or shines through."""
        return self.background is not None and not any(d.area >= LEAST_DEBRIS for d in self.debris)


def look(picture: Image.Image) -> View:
    """Ground, objects and debris of an RGB picture."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    named = _ground(pixels)
    if named is None:
        return View(None, None, (), ())
    background, tone, ground = named
    difference = pixels - ground
    # Luma counts most: JPEG keeps half of the chroma's resolution.
    distance = np.sqrt(np.square(difference @ TO_VIEW).sum(-1))
    # Within reach of a strong colour its halo, which blur and JPEG make, is ground too.
    around = outside(distance <= np.maximum(FLOOR * TONES[tone], HALO * strongest_near(distance)))
    found = [_identify(piece, box, difference, around, ground, TONES[tone]) for piece, box in pieces(~around)]
    objects = tuple(f for f in found if isinstance(f, Seen))
    return View(background, tone, objects, tuple(f for f in found if isinstance(f, Debris)))


def _ground(pixels: Array) -> tuple[str, str, Array] | None:
    """Name, tone and exact colour of the ground."""
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, :2].reshape(-1, 3)])
    border = np.concatenate([border, pixels[:, -2:].reshape(-1, 3)])
    color = np.median(border, axis=0)
    best = min(
        ((b, t) for b in BACKGROUNDS for t in TONES),
        key=lambda bt: float(np.square(np.array(BACKGROUNDS[bt[0]]) * TONES[bt[1]] - color).sum()),
    )
    wanted = np.array(BACKGROUNDS[best[0]]) * TONES[best[1]]
    near = np.sqrt(np.square(border - color).sum(-1)) <= max(20.0, 34.0 * TONES[best[1]])
    if np.linalg.norm(wanted - color) > GROUND_TOLERANCE or near.mean() < BORDER_SHARE:
        return None
    return (*best, color)


def _identify(
    piece: NDArray[np.bool_], box: Box, difference: Array, around: NDArray[np.bool_], ground: Array, tone: float
) -> Seen | Debris:
    left, top, right, bottom = box
    height, width = around.shape
    area = int(piece.sum())
    if area < LEAST_AREA:
        return Debris(box, area, "a speck")
    if left == 0 or top == 0 or right == width or bottom == height:
        return Debris(box, area, "cut by the edge")
    window = (slice(max(top - 2, 0), bottom + 2), slice(max(left - 2, 0), right + 2))
    local = difference[window]
    own = np.zeros(local.shape[:2], bool)
    own[top - window[0].start : bottom - window[0].start, left - window[1].start : right - window[1].start] = piece
    reach = grown(own)
    local = np.where(reach[..., None], local, 0)

    viewed = local @ TO_VIEW
    strength = np.sqrt(np.square(viewed).sum(-1))
    most, strong = np.quantile(strength[own], (0.98, 0.85))
    core = strength >= max(strong, 0.7 * most)  # a thin contour is less than the strongest 15 %
    color = np.median(local[core], axis=0)
    toward = color @ TO_VIEW
    if not toward.any():
        return Debris(box, area, "several colours in one")
    alpha = (viewed @ toward) / float(toward @ toward)
    off_line = np.sqrt(np.square(viewed - alpha[..., None] * toward).sum(-1))
    if off_line[own].mean() > MOST_MIXING * np.linalg.norm(toward):
        return Debris(box, area, "several colours in one")
    alpha = alpha.clip(0, 1)
    edge = grown(~own) & own
    filled = np.where(own & ~edge, 1.0, np.where(reach, alpha, 0.0)).astype(np.float32)

    match = _match(alpha.astype(np.float32), filled, own)
    if match is None:
        return Debris(box, area, "no known shape")
    shape, diameter, texture, blur, fits, (cy, cx) = match
    fading = THIN_FADING[blur]
    if texture == "filled" and not blur:
        thick = shape in SHAPES and shape != "ring" and diameter > DIAMETERS["small"]
        fading = SOLID_FADING if thick else SMALL_FADING
    name = _color_name(color, ground, tone, fading)
    if name is None:
        return Debris(box, area, "no named colour")
    x, y = window[1].start + cx, window[0].start + cy
    size = next(s for s, d in DIAMETERS.items() if d == diameter)
    whole = WHOLE_OVERLAP[diameter] if shape in SHAPES else WHOLE_LETTER_OVERLAP
    return Seen(shape, name, texture, size, x, y, box, min(1.0, fits / whole))


def _match(
    alpha: Array, filled: Array, own: NDArray[np.bool_]
) -> tuple[str, int, str, int, float, tuple[float, float]] | None:
    """Shape, diameter, texture, blur, overlap and centre (row, column in the window) of a piece; None if it is none."""
    rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    middle = ((rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2)
    best: tuple[str, int, str, int, float, tuple[float, float]] | None = None
    pattern = 0.0
    silhouette = _silhouette(filled, middle, [d for d in DIAMETERS.values() if d - 4 <= longer <= d + 5])
    if silhouette is not None:
        shape, diameter, overlapping, center = silhouette
        own_shape, texture, blur, pattern = _pattern(alpha, shape, diameter, center)
        best = (own_shape, diameter, texture, blur, overlapping, center)
    letter = _letter(alpha, rows, columns)
    if letter and (best is None or letter[1] > pattern + LETTER_MARGIN):
        diameter = min(DIAMETERS.values(), key=lambda d: abs(d - longer))
        best = (letter[0], diameter, "filled", 0, letter[1], middle)
    return best


def _silhouette(
    filled: Array, middle: tuple[float, float], diameters: Sequence[int]
) -> tuple[str, int, float, tuple[float, float]] | None:
    """Shape, diameter, overlap and centre of the silhouette that fits best, to half a pixel; None if none does."""
    best: tuple[str, int, float, tuple[float, float]] | None = None
    wide = framed(filled, FRAME)
    for diameter, y, x in product(diameters, (-0.5, 0.0, 0.5), (-0.5, 0.0, 0.5)):
        cy, cx, side = float(middle[0] + y), float(middle[1] + x), diameter + 8
        shapes, templates = silhouettes(diameter, side, cy % 1 > 0, cx % 1 > 0)
        overlaps = overlap(_cut(wide, int(cy), int(cx), side), templates)
        fits = float(overlaps.max())
        if fits >= LEAST_OVERLAP[diameter] and (best is None or fits > best[2]):
            best = (shapes[int(overlaps.argmax())], diameter, fits, (cy, cx))
    return best


def _pattern(alpha: Array, shape: str, diameter: int, center: tuple[float, float]) -> tuple[str, str, int, float]:
    """Of what fits within a silhouette best: shape (a circle may be a ring), texture, blur and overlap."""
    cy, cx = center
    names, templates = patterns(shape, diameter, diameter + 8, cy % 1 > 0, cx % 1 > 0)
    local = _cut(framed(alpha, FRAME), int(cy), int(cx), diameter + 8)
    products, squares = (local * templates).sum((-2, -1)), np.square(templates).sum((-2, -1))
    gains = (products / squares).clip(*GAIN)
    sharp = len(names) // len(BLURS)
    gains[:sharp] = 1
    nearest = int((gains * gains * squares - 2 * gains * products).argmin())
    fits = float(overlap(local, gains[nearest] * templates[nearest]))
    return (*names[nearest], nearest // sharp, fits)


def _cut(image: Array, cy: int, cx: int, side: int) -> Array:
    """A square window around a point of an image that `framed` made wider by FRAME."""
    top, left = FRAME + cy - side // 2, FRAME + cx - side // 2
    return image[top : top + side, left : left + side]


def _letter(alpha: Array, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[str, float] | None:
    crop = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longer = max(crop.shape)
    if not any(abs(longer - d) <= 3 for d in DIAMETERS.values()):
        return None
    names, templates, aspects = letters()
    overlaps = overlap(stretched(crop), templates)
    ratio = crop.shape[1] / crop.shape[0] / aspects
    overlaps = np.where((ratio > 0.7) & (ratio < 1.4), overlaps, 0)
    best = int(overlaps.argmax())
    least = max(LEAST_LETTER_OVERLAP, float(crop.mean()))  # the latter is how well a plain block fits
    return (names[best], float(overlaps[best])) if overlaps[best] >= least else None


def _color_name(color: Array, ground: Array, tone: float, fading: tuple[float, float]) -> str | None:
    """The name of a colour, given as its difference from the ground; None between two names, or far from all.

    fading: by how much thin lines may have lost luma and chroma.
    """
    chroma = (color - color @ TO_VIEW) / (1 - CHROMA_SHARE)
    luma = color - chroma
    steps = [np.linspace(1.0, most, 8 if most > 1 else 1) for most in fading]
    tried = (ground + steps[0][:, None, None] * luma + steps[1][None, :, None] * chroma).reshape(-1, 3) / tone
    names = list(COLORS)
    palette = np.array([COLORS[name] for name in names], np.float32)
    distances = np.sqrt(np.square(tried[:, None] - palette).sum(-1)).min(0)
    first, second = np.sort(distances)[:2]
    if first > COLOR_TOLERANCE or first > COLOR_CLARITY * second:
        return None
    return names[int(distances.argmin())]
