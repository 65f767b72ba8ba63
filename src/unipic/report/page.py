"""A page of a run or an evaluation: one HTML file, with all that it shows inside it.

It has no scripts and loads nothing, and its own policy forbids both; every text in it is escaped.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from PIL import Image

from unipic.errors import BadInput, UnipicError
from unipic.files import write_whole
from unipic.pictures import to_rgb
from unipic.report.curves import Points, chart
from unipic.report.style import CSS
from unipic.report.texts import escape, flat, is_number, number

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
MAX_SIDE = 512  # pixels; a larger picture is scaled down: a page is for looking, and must fit into a mail
ENLARGED = ((64, 3), (192, 2))  # pictures up to so many pixels are shown so many times larger


@dataclass(frozen=True)
class Picture:
    """A picture in a page, its caption, and its verdict if there is one."""

    image: Image.Image
    caption: str = ""
    ok: bool | None = None


class Page:
    """A page that grows by sections, in the order of the calls. `write` may be called again as a run goes on."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._sections: list[str] = []

    def text(self, text: str, heading: str = "") -> Self:
        """Paragraphs, parted by blank lines."""
        paragraphs = [part for part in text.split("\n\n") if part.strip()]
        return self._add(heading, "".join(f'<p dir="auto">{escape(part.strip())}</p>' for part in paragraphs))

    def curves(
        self,
        heading: str,
        series: Mapping[str, Points],
        x_label: str = "step",
        y_label: str = "",
        *,
        log_y: bool = False,
        smooth: bool = False,
    ) -> Self:
        """Curves of (x, y) points by name; NaN or None is a gap. log_y: logarithmic, what is not above zero left out.

        smooth: draw an exponential moving average over each faint curve. Raises BadInput for what is no number.
        """
        name = f"curves-{len(self._sections)}"
        return self._add(heading, chart(name, series, x_label, y_label, log_y=log_y, smooth=smooth))

    def table(self, heading: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Self:
        """Rows of texts and numbers; None is a dash. Raises BadInput for a row that is not as long as `columns`."""
        if odd := next((row for row in rows if len(row) != len(columns)), None):
            raise BadInput(
                f"a row of the table {heading!r} has {len(odd)} cells for {len(columns)} columns",
                f"got {odd!r}",
                "give a cell for each column, None where there is nothing",
            )
        right = [_numeric([row[i] for row in rows]) for i in range(len(columns))]
        head = "".join(_cell("th", c, n, ' scope="col"') for c, n in zip(columns, right, strict=True))
        body = ["".join(_cell("td", number(value), n) for value, n in zip(row, right, strict=True)) for row in rows]
        lines = "".join(f"<tr>{cells}</tr>" for cells in body)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
        return self._add(heading, f'<div class="wide" tabindex="0">{table}</div>')

    def pictures(self, heading: str, rows: Sequence[tuple[str, Sequence[Picture]]]) -> Self:
        """Rows of pictures, each with its label above. Small ones are shown enlarged, pixel by pixel."""
        parts = []
        for label, shown in rows:
            parts.append(f'<h3 dir="auto">{escape(label)}</h3>' if label else "")
            parts.append(f'<div class="pictures">{"".join(_figure(picture, label) for picture in shown)}</div>')
        return self._add(heading, "".join(parts))

    def settings(self, settings: Mapping[str, Any], heading: str = "Settings") -> Self:
        """Nested settings by their dotted names, values in full."""
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(_exact(value))}</td></tr>'
            for name, value in flat(settings)
        )
        return self._add(heading, f'<table class="settings"><tbody>{rows}</tbody></table>')

    def _add(self, heading: str, content: str) -> Self:
        title = f'<h2 dir="auto">{escape(heading)}</h2>' if heading else ""
        self._sections.append(f"<section>{title}{content}</section>\n")
        return self

    def html(self) -> str:
        """The whole page."""
        title = escape(self.title)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{CSS}</style></head>\n<body><main>\n"
            f'<h1 dir="auto">{title}</h1>\n{"".join(self._sections)}</main></body></html>\n'
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page whole or not at all. Raises UnipicError if it cannot be; an older page is then as it was."""
        try:
            write_whole(Path(path), self.html().encode())
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = getattr(error, "strerror", None) or error
            raise UnipicError("the page cannot be written", f"{path}: {why}", "choose another place") from None


def _cell(tag: str, text: str, right: bool, more: str = "") -> str:
    look = ' class="n"' if right else ' dir="auto"'
    return f"<{tag}{more}{look}>{escape(text)}</{tag}>"


def _numeric(values: Sequence[object]) -> bool:
    given = [value for value in values if value is not None]
    return bool(given) and all(is_number(value) for value in given)


def _exact(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _figure(picture: Picture, label: str) -> str:
    png, (width, height) = _png(picture.image)
    times = next((times for side, times in ENLARGED if max(width, height) <= side), 1)
    verdict = {None: "", True: "good", False: "bad"}[picture.ok]
    mark = {None: "", True: '<b title="right">✓</b> ', False: '<b title="wrong">✗</b> '}[picture.ok]
    caption = f'<figcaption dir="auto">{mark}{escape(picture.caption)}</figcaption>' if mark or picture.caption else ""
    return (
        f'<figure class="{verdict}" style="width: {width * times}px">'
        f'<img class="{"pixels" if times > 1 else ""}" width="{width * times}" height="{height * times}"'
        f' alt="{escape(picture.caption or label)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"{caption}</figure>"
    )


def _png(image: Image.Image) -> tuple[bytes, tuple[int, int]]:
    """A small PNG file of a picture, without what else it carries, and its size in pixels."""
    try:
        picture = to_rgb(image)
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        picture.info = {}
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
    except Exception as error:
        raise BadInput("a picture of the page is broken", str(error), "give a PIL picture that can be saved") from None
    return buffer.getvalue(), picture.size
