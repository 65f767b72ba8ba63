"""Learning curves as one picture: a row of small panels for each part of a run. For results.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from unipic.report.axes import axis_of
from unipic.report.curves import Points
from unipic.report.style import COLORS

FINE = 3  # times larger it is drawn, for smooth lines
WIDTH, HEIGHT, HEADING = 310, 220, 28  # pixels of a panel, and of a row's heading
TOP, BOTTOM, LEFT, RIGHT = 44, 26, 52, 12  # margins of a panel; the names of its curves stand in the upper one
INK, FAINT, RULE = "#1b1b1b", "#666666", "#d9d9d9"
DOT = 2.2  # pixels


@dataclass(frozen=True)
class Panel:
    """Curves by name on common axes."""

    title: str
    curves: Mapping[str, Points]


def sheet(rows: Sequence[tuple[str, Sequence[Panel]]]) -> Image.Image:
    """Rows of panels, each under its heading."""
    columns = max(len(panels) for _, panels in rows)
    page = Image.new("RGB", (columns * WIDTH * FINE, len(rows) * (HEADING + HEIGHT) * FINE), "white")
    draw = ImageDraw.Draw(page)
    for i, (heading, panels) in enumerate(rows):
        top = i * (HEADING + HEIGHT)
        _write(draw, (8, top + 6), heading, INK, 15)
        for j, panel in enumerate(panels):
            _draw(draw, panel, j * WIDTH, top + HEADING)
    return page.resize((page.width // FINE, page.height // FINE), Image.Resampling.LANCZOS)


def _draw(draw: ImageDraw.ImageDraw, panel: Panel, x0: int, y0: int) -> None:
    _write(draw, (x0 + 8, y0), panel.title, INK, 12)
    spots = {name: [(x, y) for x, y in points if y is not None] for name, points in panel.curves.items()}
    drawn = {name: own for name, own in spots.items() if own}
    if not drawn:
        _write(draw, (x0 + LEFT, y0 + HEIGHT // 2), "nothing was logged", FAINT, 11)
        return
    wide = axis_of([x for own in drawn.values() for x, _ in own], x0 + LEFT, x0 + WIDTH - RIGHT)
    tall = axis_of([y for own in drawn.values() for _, y in own], y0 + HEIGHT - BOTTOM, y0 + TOP, pad=True)
    for y, label in tall.ticks(4):
        _line(draw, [(wide.start, y), (wide.end, y)], RULE, 0.7)
        _write(draw, (wide.start - 5, y), label, FAINT, 10, "rm")
    for x, label in wide.ticks(4):
        _write(draw, (x, tall.start + 5), label, FAINT, 10, "mt")
    _line(draw, [(wide.start, tall.start), (wide.end, tall.start)], FAINT, 1)
    left = float(x0 + 8)
    for (name, own), (color, _) in zip(drawn.items(), COLORS, strict=False):
        placed = [(wide.place(x), tall.place(y)) for x, y in own]
        _line(draw, placed, color, 1.6)
        for x, y in placed:
            draw.ellipse([FINE * c for c in (x - DOT, y - DOT, x + DOT, y + DOT)], fill=color)
        left = _write(draw, (left, y0 + 18), name, color, 11) + 12


def _line(draw: ImageDraw.ImageDraw, spots: Sequence[tuple[float, float]], color: str, width: float) -> None:
    if len(spots) > 1:
        draw.line([(FINE * x, FINE * y) for x, y in spots], color, round(FINE * width), joint="curve")


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, color: str, size: int, anchor: str = "lt"
) -> float:
    """Returns where the text ends, in pixels."""
    font = ImageFont.load_default(FINE * size)
    draw.text((FINE * at[0], FINE * at[1]), text, color, font, anchor)
    return at[0] + font.getlength(text) / FINE
