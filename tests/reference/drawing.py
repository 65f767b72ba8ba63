"""The world's scenes drawn by another hand: plain geometry, an alphabet of round strokes, and two other rasterisers.

Nothing here is shared with `unipic.world.render` but the tables of what a scene may hold. Shapes are as a school book
has them (a star's points lie on a pentagram, a heart is two circles on a tip); stripes and dots start from an object's
middle; dots are round. `resvg` draws exact areas; `skimage.draw` asks only for the middles of pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise

import numpy as np
import resvg_py
from PIL import Image
from scipy.ndimage import distance_transform_edt
from skimage.draw import polygon2mask

from unipic.world.scene import BACKGROUNDS, COLORS, DIAMETERS, LETTERS, TONES, Object, Scene

Points = np.ndarray  # N×2: x, y
LINE, PITCH = 2.0, 4.0  # pixels: width of contours and stripes, distance from one to the next
DOT = 1.2  # pixels, radius
PEN = 0.19  # width of a letter's stroke, of its height

STROKES = {  # of letters one high, y downwards; a stroke in () is rounded
    "A": [[(0, 1), (0.4, 0), (0.8, 1)], [(0.16, 0.64), (0.64, 0.64)]],
    "B": [[(0, 1), (0, 0)], ((0, 0), (0.62, 0), (0.62, 0.46), (0, 0.46)), ((0, 0.46), (0.7, 0.46), (0.7, 1), (0, 1))],
    "C": [((0.75, 0.2), (0.6, 0), (0, -0.05), (0, 1.05), (0.6, 1), (0.75, 0.8))],
    "D": [[(0, 1), (0, 0)], ((0, 0), (0.75, 0), (0.75, 1), (0, 1))],
    "E": [[(0.6, 0), (0, 0), (0, 1), (0.6, 1)], [(0, 0.48), (0.54, 0.48)]],
    "F": [[(0.6, 0), (0, 0), (0, 1)], [(0, 0.48), (0.54, 0.48)]],
    "G": [((0.75, 0.2), (0.6, 0), (0, -0.05), (0, 1.05), (0.75, 1.05), (0.76, 0.55)), [(0.76, 0.55), (0.45, 0.55)]],
    "H": [[(0, 0), (0, 1)], [(0.7, 0), (0.7, 1)], [(0, 0.48), (0.7, 0.48)]],
    "J": [((0.5, 0), (0.5, 0.5), (0.5, 1.08), (0, 1.08), (0, 0.7))],
    "K": [[(0, 0), (0, 1)], [(0.65, 0), (0, 0.58)], [(0.24, 0.38), (0.68, 1)]],
    "L": [[(0, 0), (0, 1), (0.58, 1)]],
    "M": [[(0, 1), (0, 0), (0.42, 0.7), (0.84, 0), (0.84, 1)]],
    "N": [[(0, 1), (0, 0), (0.7, 1), (0.7, 0)]],
    "P": [[(0, 1), (0, 0)], ((0, 0), (0.7, 0), (0.7, 0.55), (0, 0.55))],
    "R": [[(0, 1), (0, 0)], ((0, 0), (0.68, 0), (0.68, 0.53), (0, 0.53)), [(0.35, 0.53), (0.68, 1)]],
    "S": [((0.62, 0.15), (0.5, 0), (0, -0.05), (0, 0.45), (0.66, 0.5), (0.66, 1.05), (0.1, 1), (0, 0.83))],
    "T": [[(0, 0), (0.7, 0)], [(0.35, 0), (0.35, 1)]],
    "U": [((0, 0), (0, 0.5), (0, 1.06), (0.68, 1.06), (0.68, 0.5), (0.68, 0))],
    "V": [[(0, 0), (0.4, 1), (0.8, 0)]],
    "W": [[(0, 0), (0.26, 1), (0.52, 0.15), (0.78, 1), (1.04, 0)]],
    "X": [[(0, 0), (0.7, 1)], [(0.7, 0), (0, 1)]],
    "Y": [[(0, 0), (0.38, 0.5), (0.76, 0)], [(0.38, 0.5), (0.38, 1)]],
    "Z": [[(0, 0), (0.66, 0), (0, 1), (0.66, 1)]],
}


# --- geometry, about an object's middle -------------------------------------------------------------------------------


def arc(x: float, y: float, radius: float, start: float = 0, end: float = 360, count: int = 48) -> Points:
    """Part of a circle, in degrees from the right, clockwise on the screen."""
    angles = np.radians(np.linspace(start, end, count))
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def boxed(points: Points) -> Points:
    """Centred, its longer side one."""
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) / (high - low).max()


@cache
def contours(shape: str) -> tuple[Points, ...]:
    """Closed polygons, of longer side one; a second one is a hole."""
    if shape in ("circle", "ring"):
        return (arc(0, 0, 0.5), arc(0, 0, 0.27)[::-1])[: 1 + (shape == "ring")]
    if shape == "square":
        return (boxed(arc(0, 0, 1, 45, 315, 4)),)
    if shape == "diamond":
        return (arc(0, 0, 0.5, 0, 270, 4),)
    if shape == "triangle":
        return (boxed(arc(0, 0, 1, -90, 150, 3)),)
    if shape == "star":
        tips, notches = arc(0, 0, 1, -90, 198, 5), arc(0, 0, 0.382, -54, 234, 5)
        return (boxed(np.stack([tips, notches], axis=1).reshape(-1, 2)),)
    if shape == "cross":
        bars = [
            (-1, -3),
            (1, -3),
            (1, -1),
            (3, -1),
            (3, 1),
            (1, 1),
            (1, 3),
            (-1, 3),
            (-1, 1),
            (-3, 1),
            (-3, -1),
            (-1, -1),
        ]
        return (np.array(bars) / 6,)
    if shape == "heart":
        bumps = [arc(-1, 0, 1, 150, 360), arc(1, 0, 1, 180, 390)]
        return (boxed(np.concatenate([*bumps, [(0, 2.3)]])),)
    raise KeyError(shape)


def rounded(points: Points) -> Points:
    """Corners cut, three times, the ends kept."""
    for _ in range(3):
        a, b = points[:-1], points[1:]
        cut = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], axis=1).reshape(-1, 2)
        points = np.concatenate([points[:1], cut, points[-1:]])
    return points


@cache
def strokes(letter: str) -> tuple[Points, ...]:
    """Lines of a letter whose longer side, the pen's width included, is one."""
    lines = [rounded(np.array(s)) if isinstance(s, tuple) else np.array(s, float) for s in STROKES[letter]]
    every = np.concatenate(lines)
    low, high = every.min(0), every.max(0)
    return tuple((line - (low + high) / 2) / (high - low).max() * (1 - PEN) for line in lines)


def rows(diameter: int, phase: float) -> np.ndarray:
    """Middles of the stripes."""
    count = int(diameter / PITCH / 2) + 1
    return PITCH * np.arange(-count, count + 1) + phase


# --- as a vector graphic ----------------------------------------------------------------------------------------------


def svg(scene: Scene, *, phase: float = 0.0, offset: float = 0.0, crisp: bool = False) -> Image.Image:
    """Drawn by resvg. phase, offset: pixels by which patterns and objects are off. crisp: without anti-aliasing."""
    tone = TONES[scene.tone]
    things = "".join(_element(o, i, _css(COLORS[o.color], tone), phase, offset) for i, o in enumerate(scene.objects))
    size = f'width="{scene.width}" height="{scene.height}"'
    ground = f'<rect {size} fill="{_css(BACKGROUNDS[scene.background], tone)}"/>'
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{ground}{things}</svg>'
    png = resvg_py.svg_to_bytes(
        svg_string=drawing,
        skip_system_fonts=True,
        shape_rendering="crisp_edges" if crisp else "geometric_precision",
    )
    return Image.open(io.BytesIO(png)).convert("RGB")


def _css(color: tuple[int, int, int], tone: float) -> str:
    return "rgb({:.0f},{:.0f},{:.0f})".format(*(tone * v for v in color))


def _path(lines: tuple[Points, ...], scale: float, close: str = "") -> str:
    return "".join("M" + "L".join(f"{x:.3f},{y:.3f}" for x, y in line * scale) + close for line in lines)


def _element(o: Object, number: int, color: str, phase: float, offset: float) -> str:
    side, place = DIAMETERS[o.size], f'transform="translate({o.x + offset},{o.y + offset})"'
    pen = f'fill="none" stroke="{color}"'
    if o.shape in LETTERS:
        pen += f' stroke-linecap="round" stroke-linejoin="round" stroke-width="{PEN * side}"'
        return f'<path {place} {pen} d="{_path(strokes(o.shape), side)}"/>'
    outline = _path(contours(o.shape), side, "Z")
    if o.texture == "filled":
        return f'<path {place} fill="{color}" fill-rule="evenodd" d="{outline}"/>'
    marks = f'<path {pen} stroke-width="{2 * LINE}" d="{outline}"/>'  # the outer half of it is clipped
    ys = rows(side, phase)
    if o.texture == "striped":
        marks += "".join(f'<rect x="{-side}" y="{y - LINE / 2}" width="{2 * side}" height="{LINE}"/>' for y in ys)
    if o.texture == "dotted":
        marks += "".join(f'<circle cx="{x}" cy="{y}" r="{DOT}"/>' for x in ys for y in ys)
    return (
        f'<clipPath id="c{number}"><path d="{outline}"/></clipPath>'
        f'<g {place} fill="{color}"><g clip-path="url(#c{number})">{marks}</g></g>'
    )


# --- as middles of pixels ---------------------------------------------------------------------------------------------


def points(scene: Scene, *, fine: int = 1, phase: float = 0.0, linear: bool = False) -> Image.Image:
    """Drawn by skimage.draw on `fine` times as many pixels, then averaged. linear: colours are mixed as light is."""
    ground = np.array(BACKGROUNDS[scene.background]) * TONES[scene.tone]
    canvas = np.broadcast_to(_light(ground, linear), (scene.height, scene.width, 3)).copy()
    for o in scene.objects:
        left, top, right, bottom = o.box
        covered = _covered(o, fine, phase)[..., None]
        color = _light(np.array(COLORS[o.color]) * TONES[scene.tone], linear)
        canvas[top:bottom, left:right] += covered * (color - canvas[top:bottom, left:right])
    shown = 255 * canvas ** (1 / 2.2) if linear else canvas
    return Image.fromarray(shown.round().astype(np.uint8))


def _light(color: np.ndarray, linear: bool) -> np.ndarray:
    return (color / 255) ** 2.2 if linear else color.astype(float)


def _covered(o: Object, fine: int, phase: float) -> np.ndarray:
    """How much of each pixel of its box an object covers."""
    side = DIAMETERS[o.size]
    if o.shape in LETTERS:
        whole = np.any([_inked(p, side, fine) for line in strokes(o.shape) for p in _pen(line)], axis=0)
    else:
        first, *holes = [_inked(c, side, fine) for c in contours(o.shape)]
        whole = first & ~np.any(holes, axis=0) if holes else first
    if o.texture != "filled":
        middle = (np.arange(side * fine) + 0.5) / fine - side / 2
        apart = np.abs(middle[:, None] - rows(side, phase)).min(1)  # from the nearest stripe's middle
        pattern = np.zeros((len(apart), len(apart)), bool)
        if o.texture == "striped":
            pattern |= apart[:, None] < LINE / 2
        if o.texture == "dotted":
            pattern |= np.hypot(apart[:, None], apart[None, :]) < DOT
        rim = distance_transform_edt(np.pad(whole, 1))[1:-1, 1:-1] <= LINE * fine
        whole &= rim | pattern
    return whole.reshape(side, fine, side, fine).mean((1, 3))


def _inked(contour: Points, side: int, fine: int) -> np.ndarray:
    corners = (contour[:, ::-1] + 0.5) * side * fine - 0.5  # row, column; a pixel's middle is a whole number
    return polygon2mask((side * fine, side * fine), corners)


def _pen(line: Points) -> list[Points]:
    """A stroke as polygons: a disc at each point, a bar between two."""
    parts = [arc(x, y, PEN / 2, count=24) for x, y in line]
    for a, b in pairwise(line):
        along = (b - a) / np.hypot(*(b - a))
        aside = along[::-1] * (-1, 1) * PEN / 2
        parts.append(np.array([a + aside, b + aside, b - aside, a - aside]))
    return parts


HANDS: dict[str, Callable[[Scene], Image.Image]] = {
    "exact areas": svg,
    "half a pixel off": partial(svg, offset=0.5),
    "patterns off": partial(svg, phase=1.5),
    "not anti-aliased": partial(svg, crisp=True),
    "points": points,
    "3×3 points": partial(points, fine=3),
    "mixed as light": partial(points, fine=4, linear=True),
}
