"""Wordings as patterns, to read texts with: what may fill their slots, and what a thing's words say of it."""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterable, Mapping

from unipic.world.clauses import Description
from unipic.world.language import plural
from unipic.world.scene import COLORS, DIAMETERS, LETTERS, SHAPES, TEXTURES

MOST = 2000  # characters; a longer text is none of the world's
AROUND = string.whitespace + ".\"'`“”‘’«»"  # what may stand around a text
ATTRIBUTES: dict[str, Collection[str]] = {"color": COLORS, "size": DIAMETERS, "texture": TEXTURES}
NAMES = (*SHAPES, *(f"letter {letter}" for letter in LETTERS))


def one_of(words: Iterable[str], name: str = "") -> str:
    """Any of them, as a named group or none."""
    return f"({f'?P<{name}>' if name else '?:'}{'|'.join(map(re.escape, words))})"


def filled(wording: str, slots: Mapping[str, str]) -> str:
    """The pattern of a wording whose {slots} have these patterns, its first letter small, without its period."""
    wording = wording[0].lower() + wording[1:].rstrip(".")
    parts = re.split(r"\{(\w+)\}", wording)
    return "".join(slots[part] if i % 2 else re.escape(part) for i, part in enumerate(parts))


def plain(text: str) -> str:
    """As patterns have it: no quotes or periods around, single blanks, its first letter small; "" if too long."""
    text = " ".join(text.split()).strip(AROUND) if len(text) <= MOST else ""
    return text[:1].lower() + text[1:]


def described(words: str) -> Description:
    """Of "a small striped red circle", "two letters A": whatever article, number or direction stands before."""
    told = {name: next((w for w in words.split() if w in values), None) for name, values in ATTRIBUTES.items()}
    return Description(next(n for n in NAMES if words.endswith((n, plural(n)))), **told)


COLOR, CLASS, CLASSES = one_of(COLORS), one_of(NAMES), one_of(map(plural, NAMES))
_ADJECTIVES = f"(?:{one_of(DIAMETERS)} )?(?:{one_of(TEXTURES)} )?(?:{COLOR} )?"
THING, THINGS = _ADJECTIVES + CLASS, _ADJECTIVES + CLASSES
