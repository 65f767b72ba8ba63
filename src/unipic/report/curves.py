"""Curves as inline SVG, drawn by ourselves, so that a page needs no library, no script and no request.

A curve of more points than pixels is thinned to the first, least, greatest and last of each pixel column: what is
drawn then looks the same, and no spike is lost. Values that are missing or not finite leave a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from numbers import Real
from typing import Any

from unipic.errors import BadInput
from unipic.report.axes import LARGEST, Axis, axis_of
from unipic.report.style import COLORS, DASHES
from unipic.report.texts import escape, flat, is_number, number, shorten

WIDTH, HEIGHT = 720, 300  # pixels of a chart
TOP, BOTTOM, RIGHT = 28, 44, 24  # margins; the left one follows the labels
LETTER = 7.0  # pixels, of a label's letter
MARKED = 30  # up to so many points are each marked, and not averaged
AVERAGED = 1 / 60  # of a curve's points: the reach of its moving average

Points = Sequence[tuple[float, float | None]]
Spot = tuple[float, float, int]
"""A place in pixels, and the number of gaps before it."""


@dataclass(frozen=True)
class Series:
    """One curve. spots: its drawable points, by x. missing, negative: how many others there are, by why."""

    name: str
    look: str  # classes that give colour and dashes
    values: list[tuple[float, float]]
    spots: list[tuple[float, float, int]]  # x, y, and the number of gaps before
    missing: int
    negative: int

    @property
    def averaged(self) -> bool:
        return len(self.spots) > MARKED


def from_log(lines: Iterable[Mapping[str, Any]], x: str = "step") -> dict[str, list[tuple[float, float | None]]]:
    """Curves by metric from a run's log, whose records are like {"step": 10, "loss": 0.5, "reward": {"quality": 8}}.

    Nested metrics get dotted names. None is a gap. What is never a number is no metric; lines without a step are none.
    """
    curves: dict[str, list[tuple[float, float | None]]] = {}
    for line in lines:
        if is_number(line.get(x)):
            for name, value in flat({key: v for key, v in line.items() if key != x}):
                if value is None or is_number(value):
                    curves.setdefault(name, []).append((line[x], value))
    return {name: points for name, points in curves.items() if any(y is not None for _, y in points)}


def chart(
    name: str, series: Mapping[str, Points], x_label: str, y_label: str, *, log_y: bool = False, smooth: bool = False
) -> str:
    """A figure: the drawing, and a table of last values that is also its legend.

    name: unique in the page. smooth: draw a moving average over the faint curve. Raises BadInput for what is no number.
    """
    curves = [_series(i, key, points, log_y) for i, (key, points) in enumerate(series.items())]
    drawn = [c for c in curves if c.spots]
    drawing = _drawing(name, drawn, x_label, y_label, log_y, smooth) if drawn else ""
    notes = [] if drawn else ["There are no points yet."]
    if smooth and any(c.averaged for c in drawn):
        notes.append("Bold: exponential moving averages, over about a sixtieth of the points. Faint: as logged.")
    for c in curves:
        if c.missing:
            notes.append(f"{c.name}: {c.missing:,} missing or not finite.")
        if c.negative:
            notes.append(f"{c.name}: {c.negative:,} not above zero, left out of the logarithmic axis.")
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f'<figure class="chart">{drawing}{_legend(curves, x_label)}{said}</figure>'


def _series(index: int, name: str, points: Points, log_y: bool) -> Series:
    values = [(_float(name, x), _float(name, y)) for x, y in points]
    placed = sorted((p for p in values if abs(p[0]) <= LARGEST), key=lambda p: p[0])
    spots, gaps, missing, negative = [], 0, len(values) - len(placed), 0
    for x, y in placed:
        if not abs(y) <= LARGEST:  # also NaN
            missing, gaps = missing + 1, gaps + 1
        elif log_y and y <= 0:
            negative, gaps = negative + 1, gaps + 1
        else:
            spots.append((x, y, gaps))
    # Colours and dashes turn at different rates, so that the first 24 curves all look different.
    look = f"c{index % len(COLORS)} d{(index + index // 12) % len(DASHES)}"
    return Series(str(name), look, values, spots, missing, negative)


def _float(name: str, value: object) -> float:
    """NaN is what is missing."""
    if value is None:
        return math.nan
    if not isinstance(value, Real):
        raise BadInput(f"a point of the curve {name!r} is no number", f"got {value!r}", "give numbers, or None")
    try:
        return float(value)
    except OverflowError:  # a whole number of 300 digits
        return math.inf


def _drawing(name: str, drawn: list[Series], x_label: str, y_label: str, log_y: bool, smooth: bool) -> str:
    """The SVG element."""
    tall = axis_of([y for c in drawn for _, y, _ in c.spots], HEIGHT - BOTTOM, TOP, log=log_y, pad=True)
    levels = tall.ticks(5)
    left = 16 + LETTER * max((len(label) for _, label in levels), default=0)
    wide = axis_of([x for c in drawn for x, _, _ in c.spots], left, WIDTH - RIGHT)
    faint, bold = [], []
    for c in drawn:
        spots = [(wide.place(x), tall.place(y), gaps) for x, y, gaps in c.spots]
        average = smooth and c.averaged
        faint.append(_curve("raw" if average else "line", c.look, spots, marked=not c.averaged))
        if average:
            bold.append(_curve("line", c.look, _averaged(spots), marked=False))
    title = f"{y_label or 'curves'} by {x_label}"
    story = " ".join(_story(c) for c in drawn)
    return (
        f'<div class="wide" tabindex="0"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(story)}</desc>'
        + _grid(wide, levels)
        + _text("name", left, 14, shorten(y_label, 80))
        + _text("name m", (left + WIDTH - RIGHT) / 2, HEIGHT - 6, shorten(x_label, 80))
        + "".join(faint + bold)
        + "</svg></div>"
    )


def _grid(wide: Axis, levels: list[tuple[float, str]]) -> str:
    """Lines at the marks, the labels of these, and the ground line."""
    left, right, ground = wide.start, wide.end, HEIGHT - BOTTOM
    marks = wide.ticks(6)
    for count in (4, 3, 2):  # long labels: fewer of them
        if sum(len(label) + 3 for _, label in marks) * LETTER <= right - left:
            break
        marks = wide.ticks(count)
    parts = [f'<path class="grid" d="M{left:.1f} {y:.1f}H{right}"/>' for y, _ in levels]
    parts += [f'<path class="grid" d="M{x:.1f} {TOP}V{ground}"/>' for x, _ in marks]
    parts += [_text("e", left - 8, y + 4, label) for y, label in levels]
    parts += [_text("m", x, ground + 17, label) for x, label in marks]
    return "".join(parts) + f'<path class="ground" d="M{left:.1f} {ground}H{right}"/>'


def _text(look: str, x: float, y: float, text: str) -> str:
    return f'<text class="{look}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _averaged(spots: list[Spot]) -> list[Spot]:
    """The exponential moving average, free of the bias of its start.

    Of pixels, not values: on a logarithmic axis the average is geometric, and one spike does not lift all that follows.
    """
    keep = 1 - 2 / (len(spots) * AVERAGED + 2)
    average = weight = 0.0
    result = []
    for x, y, gaps in spots:
        average, weight = keep * average + (1 - keep) * y, keep * weight + (1 - keep)
        result.append((x, average / weight, gaps))
    return result


def thin(spots: list[Spot]) -> list[Spot]:
    """Of each pixel column the first, least, greatest and last spot, in their order; `spots` go from left to right."""
    kept = []
    for _, group in groupby(spots, key=lambda spot: int(spot[0])):
        column = list(group)
        heights = [y for _, y, _ in column]
        chosen = {0, len(column) - 1, heights.index(min(heights)), heights.index(max(heights))}
        kept += [column[i] for i in sorted(chosen)]
    return kept


def _curve(kind: str, look: str, spots: list[Spot], *, marked: bool) -> str:
    """The strokes between gaps. A spot that stands alone is a dot, and so is every spot if `marked`."""
    kept = thin(spots)
    strokes = [[kept[0]]]
    for a, b in pairwise(kept):
        if a[2] == b[2] or int(a[0]) == int(b[0]):  # a gap within a pixel is none
            strokes[-1].append(b)
        else:
            strokes.append([b])
    lines = "".join("M" + " ".join(f"{x:.1f} {y:.1f}" for x, y, _ in s) for s in strokes if len(s) > 1)
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for s in strokes if marked or len(s) == 1 for x, y, _ in s)
    drawn = f'<path class="{kind} {look}" d="{lines}"/>' if lines else ""
    return drawn + (f'<path class="{kind}-dots {look}" d="{dots}"/>' if dots else "")


def _story(c: Series) -> str:
    heights = [y for _, y, _ in c.spots]
    return (
        f"{c.name}: {len(heights):,} points from {number(min(heights))} to {number(max(heights))}, "
        f"the last {number(heights[-1])}."
    )


def _legend(curves: list[Series], x_label: str) -> str:
    """Each curve's swatch, name, last value and range. A run that has turned to NaN says so here."""
    rows = []
    for c in curves:
        heights = [y for _, y, _ in c.spots]
        x, y = c.values[-1] if c.values else (None, None)
        ends = (min(heights), max(heights)) if heights else (None, None)
        cells = "".join(f'<td class="n">{escape(number(v))}</td>' for v in (_whole(x), y, *ends, len(c.spots)))
        stroke = f'<path class="line {c.look}" d="M1 5H33"/>'
        swatch = f'<svg class="swatch" viewBox="0 0 34 10" aria-hidden="true">{stroke}</svg>'
        rows.append(f'<tr><th scope="row">{swatch} <bdi>{escape(c.name)}</bdi></th>{cells}</tr>')
    names = (f"last {x_label}", "last", "least", "greatest", "points")
    heads = "".join(f'<th scope="col" class="n">{escape(shorten(name, 40))}</th>' for name in names)
    head = f'<thead><tr><th scope="col">curve</th>{heads}</tr></thead>'
    return f'<div class="wide" tabindex="0"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _whole(value: float | None) -> float | int | None:
    return int(value) if value is not None and value.is_integer() else value
