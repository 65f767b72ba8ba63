"""Wordings as patterns, to read texts with: what may fill their slots, and what a thing's words say of it.

Texts are compared in small letters, since instructions also come in capitals.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterable, Mapping

from unipic.world.clauses import Description
from unipic.world.language import plural
from unipic.world.scene import COLORS, DIAMETERS, LETTERS, SHAPES, TEXTURES

MOST = 2000  # characters; a longer text is none of the world's
AROUND = string.whitespace + ".!?\"'`“”‘’«»*_#"  # what may stand around a text
POLITE = re.compile(r"(?:please,? |kindly |(?:can|could|would|will) you (?:please )?)+")
ATTRIBUTES: dict[str, Collection[str]] = {"color": COLORS, "size": DIAMETERS, "texture": TEXTURES}
NAMES = {name.lower(): name for name in (*SHAPES, *(f"letter {letter}" for letter in LETTERS))}


def one_of(words: Iterable[str], name: str = "") -> str:
    """Any of them, as a named group or none."""
    return f"({f'?P<{name}>' if name else '?:'}{'|'.join(re.escape(word.lower()) for word in words)})"


def filled(wording: str, slots: Mapping[str, str]) -> str:
    """The pattern of a wording whose {slots} have these patterns, without its period."""
    parts = re.split(r"\{(\w+)\}", wording.lower().rstrip("."))
    return "".join(slots[part] if i % 2 else re.escape(part) for i, part in enumerate(parts))


def plain(text: str) -> str:
    """As patterns have it: small letters, single blanks, no courtesies, quotes or marks around; "" if too long."""
    text = " ".join(text.lower().split()).strip(AROUND) if len(text) <= MOST else ""
    begun = POLITE.match(text)
    return text[begun.end() if begun else 0 :].removesuffix("please").rstrip(AROUND + ",")


def described(words: str) -> Description:
    """Of "a small striped red circle", "two letters a": whatever article, number or direction stands before."""
    told = {name: next((w for w in words.split() if w in values), None) for name, values in ATTRIBUTES.items()}
    return Description(next(name for n, name in NAMES.items() if words.endswith((n, plural(n)))), **told)


COLOR, CLASS, CLASSES = one_of(COLORS), one_of(NAMES), one_of(map(plural, NAMES))
_ADJECTIVES = f"(?:{one_of(DIAMETERS)} )?(?:{one_of(TEXTURES)} )?(?:{COLOR} )?"
THING, THINGS = _ADJECTIVES + CLASS, _ADJECTIVES + CLASSES
