"""Questions about scenes with one exact answer each, and the score of an answer.

A thing is called by the shortest name that fits it alone ("the red circle" beside a blue one). Relations are asked only
where two pixels more or less do not change them, and denied only where nothing speaks for them; it is not asked whether
an outlined circle is a ring. Boxes are those of an object's pixels, written as Qwen2.5-VL writes them: JSON, in pixels
of the picture, right and bottom edges exclusive.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

import numpy as np

from unipic.world.clauses import Description, possible, reference, sure
from unipic.world.language import FORMAL, NUMBERS, caption, pick, plural, some
from unipic.world.render import mask
from unipic.world.scene import (
    COLORS,
    DIAMETERS,
    LETTERS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    TEXTURES,
    Object,
    Scene,
    also_called,
    textures_of,
)

KINDS = ("recognition", "counting", "color", "texture", "relation", "grounding", "reading", "background", "caption")
WORDINGS = {
    "exists": ("Is there {a} in the picture?", "Does the picture show {a}?", "Can you see {a}?"),
    "shape": ("What shape is {the}?", "What is the shape of {the}?"),
    "counting": ("How many {things} are there?", "How many {things} does the picture show?", "Count the {things}."),
    "color": ("What color is {the}?", "What is the color of {the}?", "Which color does {the} have?"),
    "texture": (
        "Is {the} filled, outlined, striped or dotted?",
        "What texture does {the} have?",
        "How is {the} drawn: filled, outlined, striped or dotted?",
    ),
    "related": ("Is {the} {relation} {other}?", "Can {the} be seen {relation} {other}?"),
    "which": (
        "Is {the} {relation} or {opposite} {other}?",
        "Which is true of {the}: {relation} or {opposite} {other}?",
    ),
    "locate": (
        "Where is {the}? Answer with its box as JSON.",
        "Locate {the} in JSON.",
        "Give the box of {the} as JSON.",
    ),
    "locate_all": ("Locate every {thing} in JSON.", "Where is every {thing}? Answer with boxes as JSON."),
    "letter": ("Which letter is in the picture?", "What letter do you see?", "Read the letter."),
    "letter_color": ("Which letter is {color}?", "Read the {color} letter."),
    "background": ("What color is the background?", "Which background does the picture have?"),
    "tone": ("Is the picture light or dark?", "What tone does the picture have: light or dark?"),
    "caption": ("Describe the picture.", "What is in the picture?", "Give a caption.", "What do you see?"),
}
TEMPLATES = (*(w for wordings in WORDINGS.values() for w in wordings), "yes no object objects bbox_2d label")
ALSO = {  # what else the grounds may be called
    "gray": ("light gray",),
    "beige": (),
    "sky": ("blue", "light blue", "sky blue"),
    "mint": ("green", "light green", "mint green"),
    "rose": ("pink", "light pink"),
    "lavender": ("purple", "light purple"),
}
OFF = 1  # pixels by which the middles of objects that are level may differ
LEAST_COVER = 0.5  # of a pixel that belongs to an object's box
MOST_BOXES = 1000  # in an answer; more are no answer
MOST_COORDINATE = 1e6


@dataclass(frozen=True)
class QA:
    """kind: one of KINDS. accepted: other ways to say the answer."""

    question: str
    answer: str
    kind: str
    accepted: tuple[str, ...] = ()


def questions(scene: Scene, rng: np.random.Generator, kinds: Collection[str] = KINDS) -> list[QA]:
    """One or two of each of these kinds that the scene has something for."""
    makers = dict.fromkeys(_MAKERS[kind] for kind in KINDS if kind in kinds)
    return [qa for maker in makers for qa in maker(scene, rng) if qa.kind in kinds]


def _qa(
    rng: np.random.Generator, kind: str, wording: str, answer: str, accepted: tuple[str, ...] = (), **fields: object
) -> QA:
    return QA(pick(rng, WORDINGS[wording]).format(**fields), answer, kind, accepted)


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _background(scene: Scene, rng: np.random.Generator) -> Iterator[QA]:
    grounds = (scene.background, *ALSO[scene.background])
    accepted = (*grounds[1:], *(f"{ground} background" for ground in grounds))
    yield _qa(rng, "background", "background", scene.background, accepted)
    yield _qa(rng, "background", "tone", scene.tone, (f"{scene.tone} tone",))


def _caption(scene: Scene, rng: np.random.Generator) -> Iterator[QA]:
    yield _qa(rng, "caption", "caption", caption(scene))


def _recognition(scene: Scene, rng: np.random.Generator) -> Iterator[QA]:
    there = {o.name for o in scene.objects}
    present = rng.random() < 0.5
    others = {*SHAPES, f"letter {pick(rng, LETTERS)}"} - there - set(map(also_called, scene.objects))
    name = pick(rng, sorted(there if present else others))
    yield _qa(rng, "recognition", "exists", _yes(present), a=some(name))
    known = [(o, the) for o in scene.objects if (the := reference(o, scene, "name")) and not also_called(o)]
    if known:
        o, the = pick(rng, known)
        yield _qa(rng, "recognition", "shape", o.name, (o.shape,), the=f"the {the}")


def _counting(scene: Scene, rng: np.random.Generator) -> Iterator[QA]:
    counts = Counter(o.name for o in scene.objects)
    name = pick(rng, sorted(counts) if rng.random() < 0.8 else SHAPES)
    asked = {"object": len(scene.objects)} | ({} if name in map(also_called, scene.objects) else {name: counts[name]})
    for thing, count in asked.items():
        answer = NUMBERS[count]
        accepted = (f"{answer} {thing if count == 1 else plural(thing)}",)
        yield _qa(rng, "counting", "counting", answer, accepted, things=plural(thing))


def _attributes(scene: Scene, rng: np.random.Generator) -> Iterator[QA]:
    for attribute in ("color", "texture"):
        known = [
            (o, the)
            for o in scene.objects
            if (the := reference(o, scene, without=attribute))
            and (attribute == "color" or len(textures_of(o.shape, o.size)) > 1)
        ]
        if known:
            o, the = pick(rng, known)
            yield _qa(rng, attribute, attribute, getattr(o, attribute), the=f"the {the}")


def _relations(scene: Scene, rng: np.random.Generator) -> Iterator[QA]:
    """Whether one holds, as often true as not; and which of two opposites."""
    called = {o: f"the {the}" for o in scene.objects if (the := reference(o, scene, without="place"))}
    holds: list[tuple[Object, str, Object]] = []
    fails: list[tuple[Object, str, Object]] = []
    for a, b in permutations(called, 2):
        certain, maybe = sure(a, b), possible(a, b)
        holds += [(a, relation, b) for relation in RELATIONS if relation in certain]
        fails += [(a, relation, b) for relation in RELATIONS if relation not in maybe and not _toward(a, relation, b)]
    if not holds:
        return
    truth = rng.random() < 0.5
    a, relation, b = pick(rng, holds if truth else fails)
    yield _qa(rng, "relation", "related", _yes(truth), the=called[a], relation=relation, other=called[b])
    a, relation, b = pick(rng, holds)
    first = relation if rng.random() < 0.5 else OPPOSITE[relation]
    said = (relation.removesuffix(" of"), FORMAL[relation], FORMAL[relation].removesuffix(" of"))
    names = {"the": called[a], "relation": first, "opposite": OPPOSITE[first], "other": called[b]}
    yield _qa(rng, "relation", "which", relation, said, **names)


def _toward(a: Object, relation: str, b: Object) -> bool:
    """Whether one object's middle is in that direction from the other's at all, farther than pixels are off."""
    x, y = a.x - b.x, a.y - b.y
    return {"left of": -x, "right of": x, "above": -y, "below": y}[relation] > OFF


def _grounding(scene: Scene, rng: np.random.Generator) -> Iterator[QA]:
    known = [(o, the) for o in scene.objects if (the := reference(o, scene))]
    if known:
        o, the = pick(rng, known)
        yield _qa(rng, "grounding", "locate", _boxes([o]), the=f"the {the}")
    name = pick(rng, scene.objects).name
    if name not in map(also_called, scene.objects):
        yield _qa(rng, "grounding", "locate_all", _boxes(o for o in scene.objects if o.name == name), thing=name)


def _reading(scene: Scene, rng: np.random.Generator) -> Iterator[QA]:
    letters = [o for o in scene.objects if o.shape in LETTERS]
    colors = Counter(o.color for o in letters)
    for o in letters:
        if len(letters) == 1:
            yield _qa(rng, "reading", "letter", o.shape, (o.name,))
        elif colors[o.color] == 1:
            yield _qa(rng, "reading", "letter_color", o.shape, (o.name,), color=o.color)


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], Iterator[QA]]] = {
    "recognition": _recognition,
    "counting": _counting,
    "color": _attributes,
    "texture": _attributes,
    "relation": _relations,
    "grounding": _grounding,
    "reading": _reading,
    "background": _background,
    "caption": _caption,
}


def _boxes(objects: Iterable[Object]) -> str:
    ordered = sorted(objects, key=lambda o: (o.y, o.x))
    return json.dumps([{"bbox_2d": list(box(o)), "label": str(Description(o.name, o.color))} for o in ordered])


def box(o: Object) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of its pixels; `Object.box` is the square around the middle that they are drawn in."""
    drawn = mask(o.shape, DIAMETERS[o.size], o.texture) >= LEAST_COVER
    x, y = np.flatnonzero(drawn.any(0)), np.flatnonzero(drawn.any(1))
    left, top, _, _ = o.box
    return left + int(x[0]), top + int(y[0]), left + int(x[-1]) + 1, top + int(y[-1]) + 1


# --- scores -----------------------------------------------------------------------------------------------------------


def score(qa: QA, answer: str) -> float:
    """0 to 1. Boxes: mean overlap; captions: F1 over the things mentioned; others: right or not."""
    if qa.kind == "grounding":
        return _grounding_score(_parsed(qa.answer) or [], _parsed(answer))
    if qa.kind == "caption":
        wanted, found = mentions(qa.answer), mentions(answer)
        return 2 * (wanted & found).total() / (wanted.total() + found.total())
    return float(normalised(answer) in map(normalised, (qa.answer, *qa.accepted)))


def normalised(answer: str) -> str:
    """Lower case, numbers as words, no punctuation, no article at the beginning."""
    words = re.findall(r"[a-z0-9]+", answer.lower())
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    digits = {str(n): word for n, word in enumerate(NUMBERS)}
    return " ".join({"grey": "gray", **digits}.get(word, word) for word in words)


_NOUNS = {word: shape for shape in SHAPES for word in (shape, plural(shape))}
_MANY = {"a": 1, "an": 1, "the": 1} | {w: n for n, word in enumerate(NUMBERS) for w in (word, str(n))}


def mentions(text: str) -> Counter[tuple[str | None, str]]:
    """How many of which (colour, class) a text names; "the circle" is not counted again after "a red circle"."""
    found: Counter[tuple[str | None, str]] = Counter()
    words = re.findall(r"\w+", text)
    color, count, definite = None, 1, False
    for word, following in pairwise([*words, ""]):
        lower = word.lower()
        letter = f"letter {following}" if lower in ("letter", "letters") and following in LETTERS else None
        if name := letter or _NOUNS.get(lower):
            known = any(n == name and color in (None, c) for c, n in found)
            if not (definite and known):
                found[color, name] += count
            color, count, definite = None, 1, False
        elif lower in COLORS:
            color = lower
        elif lower in _MANY:
            color, count, definite = None, _MANY[lower], lower == "the"
        elif lower not in (*DIAMETERS, *TEXTURES):
            color = None
    return +found


def _parsed(answer: str) -> list[tuple[list[float], str]] | None:
    """Boxes and labels of a grounding answer; None if it is not JSON of that form."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", answer, re.DOTALL)
    try:
        entries = json.loads(fenced[1] if fenced else answer)
        if not isinstance(entries, list) or len(entries) > MOST_BOXES:
            return None
        return [(_box_of(entry["bbox_2d"]), normalised(_text(entry["label"]))) for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _box_of(value: Any) -> list[float]:
    left, top, right, bottom = value
    for v in (left, top, right, bottom):
        if type(v) not in (int, float) or not abs(v) <= MOST_COORDINATE:
            raise ValueError("not a coordinate")
    return [float(v) for v in (left, top, right, bottom)]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a label")
    return value


def _grounding_score(wanted: list[tuple[list[float], str]], found: list[tuple[list[float], str]] | None) -> float:
    """The best one-to-one matching's sum of overlaps, divided by the greater number of boxes."""
    if not found:
        return float(not wanted and found is not None)
    best = [0.0] * (1 << len(wanted))  # by the set of wanted boxes that may be matched so far
    for candidate in found:
        gains = [_overlap(candidate, target) for target in wanted]
        best = [
            max([total, *(best[group ^ 1 << i] + gain for i, gain in enumerate(gains) if group >> i & 1)])
            for group, total in enumerate(best)
        ]
    return best[-1] / max(len(wanted), len(found))


def _overlap(found: tuple[list[float], str], wanted: tuple[list[float], str]) -> float:
    """Intersection over union; 0 if the label says something else ("circle" will do for "red circle")."""
    (l1, t1, r1, b1), said = found
    (l2, t2, r2, b2), label = wanted
    if not said or not set(said.split()) <= set(label.split()):
        return 0.0
    width, height = min(r1, r2) - max(l1, l2), min(b1, b2) - max(t1, t2)
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((r1 - l1) * (b1 - t1) + (r2 - l2) * (b2 - t2) - width * height)
