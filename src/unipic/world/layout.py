"""Cards of pictures and words on one page, in rows under headings; all pictures are of one height."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, SPACE, CLOSE = 1280, 20, 10  # pixels
HEIGHT = 192  # pixels of every picture: three times the smallest
LINE, TITLE = 16, 32  # pixels from line to line, and for a heading
LEAST_WIDTH = 150  # of a card; pixels
MOST_SPACE = 60  # pixels between cards of a row that would else not be full
INK, FAINT, GOOD, BAD = "#1b1b1b", "#6a6a6a", "#11722f", "#b3261e"
TEXT, HEADING = ImageFont.load_default(13), ImageFont.load_default(19)

Line = tuple[tuple[str, str], ...]
"""Words, each piece with its ink."""


@dataclass(frozen=True)
class Card:
    """Pictures side by side, and lines below, or beside them. width: pixels; as wide as the pictures if 0."""

    pictures: tuple[Image.Image, ...]
    lines: tuple[Line, ...]
    width: int = 0
    beside: bool = False

    def drawn(self) -> Image.Image:
        shown = [_scaled(p) for p in self.pictures]
        right = sum(p.width + CLOSE for p in shown) - CLOSE
        width = max(self.width, right, LEAST_WIDTH)
        x, y = (right + CLOSE, 0) if self.beside else (0, HEIGHT + 4)
        rows = [row for line in self.lines for row in _wrapped(line, width - x)]
        card = Image.new("RGB", (width, max(HEIGHT, y + LINE * len(rows))), "white")
        left = 0
        for picture in shown:
            card.paste(picture, (left, 0))
            left += picture.width + CLOSE
        draw = ImageDraw.Draw(card)
        for i, row in enumerate(rows):
            at = float(x)
            for word, ink in row:
                draw.text((at, y + i * LINE), word, ink, TEXT)
                at += TEXT.getlength(word + " ")
        return card


def _scaled(picture: Image.Image) -> Image.Image:
    whole = HEIGHT % picture.height == 0
    size = (round(picture.width * HEIGHT / picture.height), HEIGHT)
    return picture.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def _wrapped(line: Line, width: int) -> list[list[tuple[str, str]]]:
    """Rows of words that are no wider, where a word alone is not."""
    rows: list[list[tuple[str, str]]] = [[]]
    for word, ink in ((word, ink) for text, ink in line for word in text.split()):
        if rows[-1] and TEXT.getlength(" ".join([w for w, _ in rows[-1]] + [word])) > width:
            rows.append([])
        rows[-1].append((word, ink))
    return rows


def page(sections: Sequence[tuple[str, Sequence[Card]]]) -> Image.Image:
    """Headings, and below each its cards in order."""
    parts: list[tuple[int, int, Image.Image]] = []
    y = SPACE
    for heading, cards in sections:
        title = Image.new("RGB", (WIDTH - 2 * SPACE, TITLE), "white")
        ImageDraw.Draw(title).text((0, 0), heading, INK, HEADING)
        parts.append((SPACE, y, title))
        y += TITLE
        for row in _rows([card.drawn() for card in cards]):
            space = min(MOST_SPACE, (WIDTH - 2 * SPACE - sum(c.width for c in row)) // max(1, len(row) - 1))
            x = SPACE
            for card in row:
                parts.append((x, y, card))
                x += card.width + space
            y += max(card.height for card in row) + SPACE
    whole = Image.new("RGB", (WIDTH, y), "white")
    for x, top, part in parts:
        whole.paste(part, (x, top))
    return whole


def _rows(cards: Sequence[Image.Image]) -> list[list[Image.Image]]:
    """As many in each as there is room for."""
    rows: list[list[Image.Image]] = [[]]
    for card in cards:
        if sum(c.width + SPACE for c in rows[-1]) + card.width > WIDTH - 2 * SPACE:
            rows.append([])
        rows[-1].append(card)
    return rows
