"""Reading the world's texts: what an instruction asks of a scene, what a prompt or a description says of a picture.

The inverse of `edits`, `instructions` and `language`: their wordings become patterns, and what fills the slots decides.
With `scene_of`, a judge needs pictures and words alone. Any other text is not understood: None, never a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from unipic.world import instructions, language
from unipic.world.changes import Change, joined, reshaped, toward
from unipic.world.clauses import PLACES, Clause, Count, Description, Exists, Ground, Related
from unipic.world.edits import Edit, applied
from unipic.world.instructions import CLEAR, SUPERLATIVES, THIRDS, WAYS, Box, region_of
from unipic.world.language import FORMAL, NUMBERS, Group, Prompt
from unipic.world.look import look
from unipic.world.patterns import CLASS, CLASSES, COLOR, THING, THINGS, described, filled, one_of, plain
from unipic.world.scene import (
    BACKGROUNDS,
    COLORS,
    DIAMETERS,
    GAP,
    LETTERS,
    MARGIN,
    RELATIONS,
    TEXTURES,
    TONES,
    Object,
    Scene,
)


def scene_of(picture: Image.Image) -> Scene:
    """What `look` finds, to the pixel, as an ordinary scene. A ground without a name has "", and no objects on it."""
    view = look(picture)
    found = (Object(o.shape, o.color, o.size, o.texture, round(o.x), round(o.y)) for o in view.objects)
    return Scene(*picture.size, view.background or "", view.tone or "", tuple(found))


# --- instructions -----------------------------------------------------------------------------------------------------

_ALL = (filled(wording, {"thing": THING, "things": THINGS}) for wording in instructions.WORDINGS["all"])
_THE = "|".join((f"the (?:{one_of(SUPERLATIVES)} )?{THING}", *_ALL))
_SLOTS = {
    "the": f"(?P<the>{_THE})",
    "background": one_of(BACKGROUNDS, "background"),
    "color": one_of(COLORS, "color"),
    "texture": one_of(TEXTURES, "texture"),
    "style": one_of(TEXTURES, "texture"),
    "letter": one_of(LETTERS, "letter"),
    "shape": f"(?P<shape>{CLASS})",
    "new": f"(?P<new>{THING})",
    "way": one_of(WAYS, "way"),
    "at": one_of(THIRDS, "at"),
    "place": one_of((at.partition(" ")[2] for at in THIRDS), "at"),
    "first": "(?P<first>.+)",
    "second": "(?P<second>.+)",
}
_NEW = {  # which slot {a} is, by wording; "new" in others
    "background_change": "background",
    "material_alter": "texture",
    "style_change": "texture",
    "subject-replace": "shape",
}
_PATTERNS = {
    name: [re.compile(filled(w, _SLOTS | {"a": "an? " + _SLOTS[_NEW.get(name, "new")]})) for w in wordings]
    for name, wordings in instructions.WORDINGS.items()
    if name != "all"
}
_TYPES = {  # of wordings that are a case of a type
    **dict.fromkeys(("move to", "move by"), "motion_change"),
    **dict.fromkeys(("add", "add at"), "subject-add"),
    **dict.fromkeys(("to dark", "to light"), "tone_transfer"),
}


def instruction(text: str, source: Scene) -> Edit | None:
    """The edit that a text asks of a scene; None where it is not understood, or a reference does not fit one object.

    Where the place of an object is left open, the target has it at the first that fits (else in the region's middle).
    """
    said = plain(text)
    found = _single(said, source) or _composed(said, source)
    if found is None:
        return None
    type, change = found
    return applied(type, source, _placed(source, replace(change, instruction=text)))


def _single(said: str, scene: Scene) -> tuple[str, Change] | None:
    """Type and change."""
    for wording, patterns in _PATTERNS.items():
        for pattern in patterns if wording != "compose" else ():
            if (found := pattern.fullmatch(said)) and (change := _change(scene, wording, found.groupdict())):
                return _TYPES.get(wording, wording), change
    return None


def _composed(said: str, scene: Scene) -> tuple[str, Change] | None:
    """Of two changes that do not concern the same; references of both are to the scene as it is."""
    for pattern in _PATTERNS["compose"]:
        if parts := pattern.fullmatch(said):
            first, second = _single(parts["first"], scene), _single(parts["second"], scene)
            if first and second and _apart(first[1], second[1]):
                return "compose", joined(said, first[1], second[1])
    return None


def _apart(a: Change, b: Change) -> bool:
    return not (a.objects.keys() & b.objects.keys() or (a.background and b.background) or (a.tone and b.tone))


def _change(scene: Scene, wording: str, told: Mapping[str, str]) -> Change | None:
    """What is asked in a wording by the words in its slots; None where they fit the scene in no way, or in several."""
    chosen = dict(enumerate(scene.objects))
    if "the" in told:
        chosen = _referred(scene, told["the"])
        if not chosen:
            return None
    objects: dict[int, Object | None]
    match wording:
        case "background_change":
            return Change("", background=told["background"])
        case "to dark" | "to light":
            return Change("", tone=wording.removeprefix("to "))
        case "move to" | "move by":
            return _move(scene, chosen, told)
        case "add" | "add at":
            return _add(scene, told)
        case "color_alter":
            objects = {i: replace(o, color=told["color"]) for i, o in chosen.items()}
        case "material_alter" | "style_change":
            objects = {i: replace(o, texture=told["texture"]) for i, o in chosen.items()}
        case "subject-replace":
            shape = (described(told["shape"]).name or "").removeprefix("letter ")
            objects = {i: reshaped(o, shape) for i, o in chosen.items()}
        case "text_change":
            objects = {i: reshaped(o, told["letter"].upper()) for i, o in chosen.items()}
        case "subject-remove":
            objects = dict.fromkeys(chosen)
        case "extract":
            objects = dict.fromkeys(i for i in range(len(scene.objects)) if i not in chosen)
    return Change("", {i: o for i, o in objects.items() if o != scene.objects[i]})


def _referred(scene: Scene, the: str) -> dict[int, Object]:
    """By index, all that are meant: one, or every one; none where one is meant and not exactly one fits."""
    alike = described(the).found(scene)
    one = the.startswith("the ")
    if one and alike and (farthest := SUPERLATIVES.get(the.split()[1])):
        reach = {o: farthest[0] * o.x + farthest[1] * o.y for o in alike}
        # Half of what `refer` keeps clear: places that were seen may be a pixel or two off.
        alike = [o for o in alike if reach[o] > max(reach.values()) - CLEAR / 2]
    return {} if one and len(alike) > 1 else {i: o for i, o in enumerate(scene.objects) if o in alike}


def _region(scene: Scene, told: Mapping[str, str]) -> Box:
    """Of a place, with or without its preposition."""
    return region_of(scene, next(at for at in THIRDS if at.endswith(told["at"])))


def _move(scene: Scene, chosen: Mapping[int, Object], told: Mapping[str, str]) -> Change | None:
    if len(chosen) > 1:
        return None
    ((i, o),) = chosen.items()
    return Change("", {i: o}, {i: toward(scene, o, told["way"]) if "way" in told else _region(scene, told)})


def _add(scene: Scene, told: Mapping[str, str]) -> Change | None:
    new, index = described(told["new"]), len(scene.objects)
    if new.name is None or new.color is None:
        return None
    shape = new.name.removeprefix("letter ")
    added = Object(shape, new.color, new.size or "medium", new.texture or "filled", 0, 0)
    region = _region(scene, told) if "at" in told else (0, 0, scene.width, scene.height)
    return Change("", {index: added}, {index: region})


def _placed(scene: Scene, change: Change) -> Change:
    """With a place for each object whose own is left open, away from where any other is or was."""
    after, taken = dict(change.objects), list(scene.objects)
    for i, region in change.regions.items():
        if (o := after[i]) is not None:
            spot = _first_place(scene, o, region, [other for other in taken if other != o])
            after[i] = spot
            taken.append(spot)
    return replace(change, objects=after)


def _first_place(scene: Scene, o: Object, region: Box, others: Sequence[Object]) -> Object:
    """Row by row, as `scene.fits` has it; the region's middle where there is no room."""
    left, top, right, bottom = region
    y, x = np.mgrid[top : bottom + 1, left : right + 1]
    half = DIAMETERS[o.size] // 2
    edge = half + MARGIN
    free = (x >= edge) & (y >= edge) & (x <= scene.width - edge) & (y <= scene.height - edge)
    free &= (x != o.x) | (y != o.y)
    for l2, t2, r2, b2 in (other.box for other in others):
        near = GAP + half
        free &= (x - r2 >= near) | (l2 - x >= near) | (y - b2 >= near) | (t2 - y >= near)
    found = np.flatnonzero(free)
    if not found.size:
        return replace(o, x=(left + right) // 2, y=(top + bottom) // 2)
    return replace(o, x=int(x.flat[found[0]]), y=int(y.flat[found[0]]))


# --- prompts ----------------------------------------------------------------------------------------------------------

_RELATION = one_of([*FORMAL.values(), *RELATIONS], "relation")
_GROUPS = {  # what is asked for, by tag
    "single_object": f"an? {CLASS}",
    "two_object": f"an? {CLASS}",
    "counting": f"{one_of(NUMBERS[2:])} {CLASSES}",
    "colors": f"an? {COLOR} {CLASS}",
    "position": f"an? {CLASS}",
    "color_attr": f"an? {COLOR} {CLASS}",
}


def _prompt_slots(tag: str) -> dict[str, str]:
    slots = {"thing": f"(?P<a>an? {CLASS})", "color": _SLOTS["color"], "relation": _RELATION}
    return slots | {name: f"(?P<{name}>{_GROUPS[tag]})" for name in "ab"}


_PROMPTS = {
    tag: [re.compile(filled(wording, _prompt_slots(tag))) for wording in wordings]
    for tag, wordings in language.WORDINGS.items()
}


def prompt(text: str) -> dict[str, Any] | None:
    """A prompt as a line of GenEval's metadata; None where it is not understood, or asks twice of one class."""
    said = plain(text)
    for tag, patterns in _PROMPTS.items():
        for pattern in patterns:
            if found := pattern.fullmatch(said):
                return _metadata(text, tag, found.groupdict())
    return None


def _metadata(text: str, tag: str, told: Mapping[str, str]) -> dict[str, Any] | None:
    first = _group(told["a"])
    first = replace(first, color=told.get("color", first.color))
    include: tuple[Group, ...] = (first,)
    if "b" in told:
        position = (_relation(told["relation"]), 0) if "relation" in told else None
        include = (first, replace(_group(told["b"]), position=position))
    if len({group.name for group in include}) < len(include):
        return None
    exclude = (replace(first, count=first.count + 1),) if tag == "counting" else ()
    return Prompt(text, tag, include, exclude).metadata()


def _group(words: str) -> Group:
    """Of "two circles", "a red star"."""
    what = described(words)
    return Group(what.name or "", _number(words), what.color)


def _number(words: str) -> int:
    first = words.split()[0]
    return NUMBERS.index(first) if first in NUMBERS else 1


def _relation(said: str) -> str:
    return said.removeprefix("to the ")


# --- descriptions -----------------------------------------------------------------------------------------------------

_KNOWN = {
    "tone": one_of(TONES, "tone"),
    "background": _SLOTS["background"],
    "a": f"an? (?P<thing>{THING})",
    "thing": f"(?P<thing>{THING})",
    "place": one_of(PLACES, "place"),
    "first": f"(?P<first>{THING})",
    "second": f"(?P<second>{THING})",
    "relation": _RELATION,
}
_RELATED = "the {first} is {relation} the {second}"
_SENTENCES = [re.compile(filled(w, _KNOWN)) for w in (*language.GROUNDS, *language.THINGS, _RELATED)]
_MENTIONED = f"(?:an? {THING}|{one_of(NUMBERS[2:])} {THINGS})"
_CAPTION = re.compile(
    rf"(?P<things>{_MENTIONED}(?:(?:, | and ){_MENTIONED})*) on an? {_SLOTS['background']} background"
)


def dense(text: str) -> tuple[Clause, ...] | None:
    """What a dense description states, or a caption, which counts its things; None where part is not understood."""
    said = plain(text)
    if found := _CAPTION.fullmatch(said):
        things = re.split(", | and ", found["things"])
        return (Ground(background=found["background"]), *(Count(described(t), _number(t)) for t in things))
    clauses: list[Clause] = []
    for sentence in said.split(". "):
        patterns = (pattern.fullmatch(plain(sentence)) for pattern in _SENTENCES)
        told = next((found.groupdict() for found in patterns if found), None)
        if told is None:
            return None
        clauses += _stated(told)
    return (*clauses, *_counts(clauses))


def _stated(told: Mapping[str, str]) -> list[Clause]:
    """By one sentence."""
    if "tone" in told:
        return [Ground(background=told["background"]), Ground(tone=told["tone"])]
    if "relation" in told:
        return [Related(described(told["first"]), _relation(told["relation"]), described(told["second"]))]
    return [Exists(replace(described(told["thing"]), place=told["place"]))]


def _counts(clauses: Iterable[Clause]) -> list[Clause]:
    """Of each class that is there more than once."""
    names = Counter(clause.what.name for clause in clauses if isinstance(clause, Exists))
    return [Count(Description(name), count) for name, count in names.items() if count > 1]
