"""How texts and numbers are said on a page: escaped, and short enough to be read."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, TypeGuard

# Neither HTML nor XML can hold these, save the marks that turn the direction of writing: unlike the letters of
# right-to-left scripts, they can make a line read as another than it is.
_UNFIT = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def escape(text: object) -> str:
    """`text` for an element or a quoted attribute; characters that no page can hold are spelled, as in \\x00."""
    spelled = _UNFIT.sub(lambda c: c[0].encode("unicode_escape", "backslashreplace").decode(), str(text))
    return html.escape(spelled)


def shorten(text: str, length: int) -> str:
    """At most `length` characters, the middle of a longer text left out."""
    return text if len(text) <= length else f"{text[: length // 2]} … {text[-(length // 2 - 3) :]}"


def number(value: object) -> str:
    """A number in four digits, a whole one in full: 0.8333, 12,000, 1e-5. None is a dash, others their text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not is_number(value):
        return str(value)
    if isinstance(value, Integral):
        return f"{int(value):,}"
    value = float(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value:.0f}"
    if 1_000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return plain_exponent(f"{value:.4g}")


def plain_exponent(text: str) -> str:
    """1e-05 as 1e-5."""
    return re.sub(r"e\+?(-?)0*(\d)", r"e\1\2", text)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number, also numpy's; a truth value is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def flat(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted names, as they are given on a command line."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
