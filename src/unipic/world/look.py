"""Finding objects in a picture from its pixels alone.

The ground is the palette's colour that most of the border shows. What differs from it falls into pieces; a piece is an
object if its silhouette is a shape of a known size, its colour has a name, nothing else is mixed in, and drawn again
it would look the same. Everything else is debris. Nothing here knows how the picture was drawn: blur, noise, JPEG and
other drawing libraries are tolerated (`fitting`); holes, gashes, marks and second colours are not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipic.world.fitting import fit
from unipic.world.regions import Box, grown, outside, pieces, pooled, strongest_near
from unipic.world.scene import BACKGROUNDS, CHROMA_SHARE, COLORS, DIAMETERS, SHAPES, TO_VIEW, TONES

Array = NDArray[np.float32]

GROUND_TOLERANCE = 26.0  # RGB distance of the ground from its name, before tone
BORDER_SHARE = 0.8  # of the outermost pixels that must be ground
FLOOR = 24.0  # least seen difference from the ground, in light tone
HALO = 0.42  # of the strongest difference within four pixels, below which a pixel is ground
LEAST_AREA = 14  # pixels; smaller pieces are specks
LEAST_DEBRIS = 20  # pixels, all together, that spoil a picture
COLOR_TOLERANCE = 42.0  # RGB distance from a name, tone taken out
COLOR_CLARITY = 0.6  # the nearest name is at most this share as far as the second
# How much of luma and chroma an object's strongest pixels may have lost: of luma nothing within a solid object; more in
# a small or thin-lined one, since JPEG keeps half of the chroma; most where the pattern itself is found blurred.
SOLID_FADING = (1.0, 1.25)
SMALL_FADING = (1.1, 1.45)
THIN_FADING = ((1.2, 2.1), (1.4, 2.2), (1.6, 2.2))  # by the blur of the template that fits best
# How far a piece may be from one colour. Four are seen RGB distances from the line ground–colour: of the worst square
# of 3×3 pixels, of nine and of eight tenths of the pixels, and between the means of two halves; JPEG, which halves the
# resolution of chroma, sets them. The last is what the weakest part of the rim lacks of the full colour.
MOST_MIXING = (31.0, 28.0, 22.0, 8.8, 0.40)
VIEW = TO_VIEW.astype(np.float32)
PALETTE = np.array(list(COLORS.values()), np.float32)
FAULTLESS = 0.9  # of the most that may misfit, up to which nothing is held against an object


@dataclass(frozen=True)
class Seen:
    """An object that was found. x, y: its centre; box: left, top, right, bottom; in pixels.

    quality: 1, or less where it misfits almost too much.
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
    """All that was found. background, tone: None where the ground has no name; then nothing else is looked for.

    ground: H×W, where the picture shows it.
    """

    background: str | None
    tone: str | None
    objects: tuple[Seen, ...]
    debris: tuple[Debris, ...]
    ground: NDArray[np.bool_] = field(compare=False, repr=False)

    @property
    def clean(self) -> bool:
        """Whether there is a named ground, and no debris but specks: what is half drawn, merged or shines through."""
        return self.background is not None and sum(d.area for d in self.debris) < LEAST_DEBRIS


def look(picture: Image.Image) -> View:
    """Ground, objects and debris of an RGB picture."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    named = _ground(pixels)
    if named is None:
        return View(None, None, (), (), np.zeros(pixels.shape[:2], bool))
    background, tone, ground = named
    difference = pixels - ground
    # Luma counts most: JPEG keeps half of the chroma's resolution.
    distance = np.sqrt(np.square(difference @ VIEW).sum(-1))
    # Within reach of a strong colour its halo, which blur and JPEG make, is ground too.
    around = outside(distance <= np.maximum(FLOOR * TONES[tone], HALO * strongest_near(distance, (1, 2, 1))))
    found = [_identify(piece, box, difference, around, ground, TONES[tone]) for piece, box in pieces(~around)]
    objects = tuple(f for f in found if isinstance(f, Seen))
    return View(background, tone, objects, tuple(f for f in found if isinstance(f, Debris)), around)


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

    viewed = local @ VIEW
    strength = np.sqrt(np.square(viewed).sum(-1))
    ordered = np.sort(strength[own])
    most, strong = (ordered[int(share * (area - 1))] for share in (0.98, 0.85))
    core = strength >= max(strong, 0.7 * most)  # a thin contour is less than the strongest 15 %
    color = np.median(local[core], axis=0)
    toward = color @ VIEW
    if not toward.any():
        return Debris(box, area, "several colours in one")
    alpha = (viewed @ toward) / float(toward @ toward)
    mixing = _mixing(viewed - alpha[..., None] * toward, alpha, own)
    if mixing > 1:
        return Debris(box, area, "several colours in one")
    filled = np.where(own & ~grown(~own), np.float32(1), alpha.clip(0, 1))
    found = fit(alpha, filled, own)
    if found is None:
        return Debris(box, area, "no known shape")
    misfit = max(mixing, found.misfit)
    if misfit > 1:
        return Debris(box, area, f"a spoilt {found.shape}")
    fading = THIN_FADING[found.blur]
    if found.texture == "filled" and not found.blur:
        thick = found.shape in SHAPES and found.shape != "ring" and found.diameter > DIAMETERS["small"]
        fading = SOLID_FADING if thick else SMALL_FADING
    name = _color_name(color, ground, tone, fading)
    if name is None:
        return Debris(box, area, "no named colour")
    y, x = (window[axis].start + found.center[axis] for axis in (0, 1))
    size = next(s for s, d in DIAMETERS.items() if d == found.diameter)
    quality = min(1.0, 1 - 2 * (misfit - FAULTLESS))
    return Seen(found.shape, name, found.texture, size, x, y, box, quality)


def _mixing(off: Array, alpha: Array, own: NDArray[np.bool_]) -> float:
    """How far a piece is from being of one colour, of the most that may be. off: what is not on the line to it."""
    return max(value / most for value, most in zip(_mixed(off, alpha, own), MOST_MIXING, strict=True))


def _mixed(off: Array, alpha: Array, own: NDArray[np.bool_]) -> tuple[float, ...]:
    """What MOST_MIXING limits."""
    patch = np.sqrt(np.square(pooled(off.transpose(2, 0, 1), 3)).sum(0).max())
    inked = own & (alpha > 0.5)
    colors = off[inked]
    lengths = np.sort(np.sqrt(np.square(colors).sum(-1)))
    apart = 0.0
    for places in np.nonzero(inked):
        first = places < places.mean()
        if first.any():
            apart = max(apart, float(np.linalg.norm(colors[first].mean(0) - colors[~first].mean(0))))
    rim = np.sort(strongest_near(alpha, (1, 1))[own & grown(~own)])
    most, many = (float(lengths[len(lengths) * n // 10]) for n in (9, 8))
    return float(patch), most, many, apart, 1 - float(rim[len(rim) // 50])


def _color_name(color: Array, ground: Array, tone: float, fading: tuple[float, float]) -> str | None:
    """The name of a colour, given as its difference from the ground; None between two names, or far from all.

    fading: by how much thin lines may have lost luma and chroma.
    """
    chroma = (color - color @ VIEW) / (1 - CHROMA_SHARE)
    steps = _steps(fading)
    tried = (ground + steps[:, :1] * (color - chroma) + steps[:, 1:] * chroma) / tone
    distances = np.sqrt(np.square(tried[:, None] - PALETTE).sum(-1)).min(0)
    first, second = np.sort(distances)[:2]
    if first > COLOR_TOLERANCE or first > COLOR_CLARITY * second:
        return None
    return list(COLORS)[int(distances.argmin())]


@cache
def _steps(fading: tuple[float, float]) -> Array:
    """N×2: factors of luma and chroma."""
    return np.array(list(product(*(np.linspace(1.0, most, 8) for most in fading))), np.float32)
