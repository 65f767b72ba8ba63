"""How edits are told: their wordings, references that fit one object alone, and the regions that places name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations

import numpy as np

from unipic.world.language import pick, plural
from unipic.world.scene import BACKGROUNDS, COLORS, DIAMETERS, LETTERS, SHAPES, TEXTURES, Object, Scene, confusable

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels

WORDINGS: dict[str, tuple[str, ...]] = {  # by type, or a case of it
    "background_change": (
        "Change the background to {background}",
        "Make the background {background}",
        "Use {a} background",
        "Give the picture {a} background",
        "Put everything on {a} background",
    ),
    "color_alter": (
        "Make {the} {color}",
        "Change the color of {the} to {color}",
        "Paint {the} {color}",
        "Turn {the} {color}",
        "Color {the} {color}",
    ),
    "material_alter": (
        "Make {the} {texture}",
        "Change the texture of {the} to {texture}",
        "Give {the} {a} texture",
        "Draw {the} {texture}",
        "Turn {the} into {a} one",
    ),
    "move to": ("Move {the} to {place}", "Put {the} {at}", "Place {the} {at}", "Bring {the} to {place}"),
    "move by": ("Move {the} {way}", "Shift {the} {way}", "Slide {the} {way}", "Move {the} further {way}"),
    "style_change": (
        "Make everything {style}",
        "Draw all objects {style}",
        "Change the style to {style}",
        "Redraw the picture in {a} style",
        "Make every object {style}",
    ),
    "add": ("Add {a}", "Add {a} to the picture", "Draw {a}", "Put {a} somewhere", "Insert {a}"),
    "add at": ("Add {a} {at}", "Put {a} {at}", "Draw {a} {at}", "Place {a} {at}", "Insert {a} {at}"),
    "subject-remove": ("Remove {the}", "Delete {the}", "Erase {the}", "Take away {the}", "Get rid of {the}"),
    "subject-replace": (
        "Replace {the} with {a}",
        "Turn {the} into {a}",
        "Change {the} into {a}",
        "Swap {the} for {a}",
        "Make {the} {a}",
    ),
    "text_change": (
        "Change {the} to {letter}",
        "Replace {the} with {letter}",
        "Turn {the} into the letter {letter}",
        "Rewrite {the} as {letter}",
        "Make {the} read {letter}",
    ),
    "to dark": ("Make the picture dark", "Make it night", "Turn day into night", "Darken the picture", "Dim the light"),
    "to light": (
        "Make the picture light",
        "Make it day",
        "Turn night into day",
        "Brighten the picture",
        "Turn on the light",
    ),
    "extract": (
        "Keep only {the}",
        "Remove everything except {the}",
        "Extract {the}",
        "Erase everything but {the}",
        "Isolate {the}",
    ),
    "compose": (
        "{first} and {second}",
        "{first}, then {second}",
        "{first}; also {second}",
        "First {first}, then {second}",
    ),
    "all": ("all {things}", "every {thing}"),
}
SUPERLATIVES = {"leftmost": (-1, 0), "rightmost": (1, 0), "topmost": (0, -1), "bottommost": (0, 1)}
WAYS = ("left", "right", "up", "down")
THIRDS: dict[str, tuple[int | None, int | None]] = {  # column and row of the picture's thirds; None: any
    "in the top left corner": (0, 0),
    "in the top right corner": (2, 0),
    "in the bottom left corner": (0, 2),
    "in the bottom right corner": (2, 2),
    "on the left side": (0, None),
    "on the right side": (2, None),
    "at the top": (None, 0),
    "at the bottom": (None, 2),
    "in the center": (1, 1),
}
CLEAR = 8  # pixels between the middles of the leftmost object and the next; more than sizes differ on one side


def say(rng: np.random.Generator, wording: str, **words: str) -> str:
    said = pick(rng, WORDINGS[wording]).format(**words)
    return said[0].upper() + said[1:]


def refer(scene: Scene, index: int) -> str | None:
    """The shortest reference that fits this object alone: "the red circle"; None if there is none.

    An outlined circle and a ring are told apart by more than these names.
    """
    one = scene.objects[index]
    alike = [o for o in scene.objects if (o.shape == one.shape or confusable(o, one)) and o != one]
    for count in range(5):
        for known in combinations(("color", "size", "texture", "place"), count):
            told = {name: getattr(one, name) for name in known if name != "place"}
            others = [o for o in alike if _may_be(o, one, told)]
            place = _superlative(one, others) if "place" in known else ""
            if place or not others:
                words = (place, *(told.get(name) for name in ("size", "texture", "color")), one.name)
                return " ".join(["the", *filter(None, words)])
    return None


def _may_be(other: Object, one: Object, told: Mapping[str, str]) -> bool:
    """Whether what is told of one fits the other; of what looks alike, the texture tells nothing."""
    telling = {name for name in told if not (name == "texture" and confusable(other, one))}
    return all(getattr(other, name) == told[name] for name in telling)


def _superlative(one: Object, others: list[Object]) -> str:
    """In which direction it is farther than all the others; "" if in none."""
    for word, (dx, dy) in SUPERLATIVES.items():
        if all(dx * (one.x - o.x) + dy * (one.y - o.y) >= CLEAR for o in others):
            return word
    return ""


def region_of(scene: Scene, at: str) -> Box:
    """The thirds of the picture that one of THIRDS names."""
    (left, right), (top, bottom) = map(_third, THIRDS[at], (scene.width, scene.height))
    return left, top, right, bottom


def _third(which: int | None, side: int) -> tuple[int, int]:
    """First and last pixel."""
    return (0, side) if which is None else (-(-which * side // 3), -(-(which + 1) * side // 3) - 1)


def vocabulary() -> list[str]:
    """All words that instructions can hold, as they are written there."""
    templates = [w for wordings in WORDINGS.values() for w in wordings]
    said = [*templates, *(w[0].lower() + w[1:] for w in templates), *THIRDS, *WAYS, *SUPERLATIVES]
    said += [*SHAPES, *map(plural, SHAPES), *LETTERS, *COLORS, *DIAMETERS, *TEXTURES, *BACKGROUNDS, "the a an letter"]
    return sorted(set(re.findall(r"\w+", re.sub(r"\{\w+\}", " ", " ".join(said)))))
