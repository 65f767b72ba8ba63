"""Where in a client's words the instruction or the prompt stands: behind a label, within a tag, quoted, or on a line.

What follows the last label comes first; labels, tags, quotations and lines are tried until one is understood. Lines
that speak of examples are left out.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

NAMES = "instructions?|prompts?|requests?|edits?|captions?|descriptions?|tasks?"
LABEL = re.compile(rf"\b({NAMES})[\"'*_`]{{0,3}} {{0,3}}(?:(?:is|are|was)\b ?)?[:=]", re.IGNORECASE)
TAG = re.compile(r"<(\w{1,40})>([^<>]{1,1000})</\1>")
QUOTATION = re.compile(r"\"([^\"\n]+)\"|“([^“”\n]+)”|(?<!\w)'([^'\n]+)'(?!\w)|\*\*([^*\n]+)\*\*|`([^`\n]+)`")
EXAMPLE = re.compile(r"\bexamples?\b|\be\.g\.|\bfor instance\b", re.IGNORECASE)
LONGEST = 1000  # characters of an instruction or a prompt
MOST_LABELLED, MOST_OTHERS = 32, 128


def understood(said: Sequence[Sequence[str]], read: Callable[[str], T]) -> T | None:
    """What `read` makes of the first part that it understands. said: texts, those of one speaker after the other's."""
    parts = (part for texts in said for part in _parts(texts))
    return next((found for part in parts if (found := read(part)) is not None), None)


def labels(texts: Sequence[str]) -> set[str]:
    """The names behind which something stands: "prompt", "instruction"."""
    return {label[1].lower().removesuffix("s") for text in texts for label in LABEL.finditer(text)}


def _parts(texts: Sequence[str]) -> Iterator[str]:
    """The likeliest first."""
    last = deque(((text, label) for text in texts for label in LABEL.finditer(text)), MOST_LABELLED)
    for text, label in reversed(last):  # examples come before the case
        rest = text[label.end() : label.end() + LONGEST + 1].lstrip()
        yield from dict.fromkeys((rest.split("\n\n")[0], rest.split("\n")[0], rest.split("<")[0]))
    tags = deque((tag[2] for text in texts for tag in TAG.finditer(text)), MOST_LABELLED)
    yield from reversed(tags)
    whole = [text for text in texts if len(text) <= LONGEST]
    lines = [line for text in texts for line in text.splitlines() if not EXAMPLE.search(line)]
    quoted = ["".join(m.groups("")) for line in lines for m in QUOTATION.finditer(line)]
    others = {part for part in (*whole, *quoted, *lines) if len(part) <= LONGEST}
    yield from sorted(others, key=lambda part: (-len(part), part))[:MOST_OTHERS]
