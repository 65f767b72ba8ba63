"""Edits change what they say and nothing else; references fit one object; words are few and known."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unipic.errors import BadInput
from unipic.world import scene as scenes
from unipic.world.edits import TYPES, Edit, another, sample
from unipic.world.instructions import CLEAR, WORDINGS, refer, vocabulary
from unipic.world.render import render
from unipic.world.scene import (
    BACKGROUNDS,
    COLORS,
    DIAMETERS,
    LETTERS,
    SHAPES,
    TEXTURES,
    Object,
    Scene,
    fits,
    held_out,
    textures_of,
    visible,
)

EDITS = {(split, seed): sample(seed, split) for split in ("train", "test") for seed in range(400)}
BY_TYPE = {type: [e for e in EDITS.values() if e.type == type] for type in TYPES}
KINDS = {  # of change, by type
    "background_change": {"background"},
    "color_alter": {"color"},
    "material_alter": {"texture"},
    "motion_change": {"moved"},
    "style_change": {"texture"},
    "subject-add": {"added"},
    "subject-remove": {"removed"},
    "subject-replace": {"shape"},
    "text_change": {"letter"},
    "tone_transfer": {"tone"},
    "extract": {"removed"},
}
FARTHEST = {
    "leftmost": lambda o: -o.x,
    "rightmost": lambda o: o.x,
    "topmost": lambda o: -o.y,
    "bottommost": lambda o: o.y,
}


def one_of(words: Iterable[str]) -> str:
    return f"(?:({'|'.join(words)}) )?"


THING = one_of(DIAMETERS) + one_of(TEXTURES) + one_of(COLORS) + rf"({'|'.join(SHAPES)}|letter [A-Z])\b"
REFERENCE = re.compile(rf"\bthe {one_of(FARTHEST)}{THING}")
ALL = re.compile(rf"\b(?:all ({'|'.join(SHAPES)})e?s\b|every ({'|'.join(SHAPES)})\b)")
NEW = re.compile(rf"\b(a|an) {THING}")


def resolve(scene: Scene, words: tuple[str, ...], slack: int = 4) -> list[Object]:
    """The objects that a reference may mean. slack: pixels within which one is as far as the farthest."""
    farthest, size, texture, color, name = words
    found = [
        o
        for o in scene.objects
        if name in (o.shape, f"letter {o.shape}")
        and size in ("", o.size)
        and texture in ("", o.texture)
        and color in ("", o.color)
    ]
    if farthest:
        far = max(map(FARTHEST[farthest], found))
        found = [o for o in found if FARTHEST[farthest](o) > far - slack]  # nearly as far
    return found


def matches(pattern: re.Pattern[str], text: str) -> list[tuple[str, ...]]:
    return [m.groups("") for m in pattern.finditer(text)]


def referred(edit: Edit) -> set[Object]:
    """The objects of the source that the instruction speaks of."""
    told = edit.instruction[0].lower() + edit.instruction[1:]
    found: set[Object] = set()
    for words in matches(REFERENCE, re.sub(r"into the letter [A-Z]\b", "", told)):
        meant = resolve(edit.source, words)
        assert len(meant) == 1, edit.instruction
        found |= set(meant)
    for words in matches(ALL, told):
        alike = {o for o in edit.source.objects if o.shape == "".join(words)}
        assert len(alike) > 1, edit.instruction
        found |= alike
    return found


def changes(edit: Edit) -> list[tuple[str, Object | None, Object | None]]:
    """Kind, before, after of every difference."""
    source, target = edit.source, edit.target
    assert (source.width, source.height) == (target.width, target.height)
    found: list[tuple[str, Object | None, Object | None]] = []
    found += [(name, None, None) for name in ("background", "tone") if getattr(source, name) != getattr(target, name)]
    old = [o for o in source.objects if o not in target.objects]
    new = [o for o in target.objects if o not in source.objects]
    for a in old:
        same_place = [b for b in new if (a.x, a.y) == (b.x, b.y)]
        moved = [b for b in new if replace(a, x=b.x, y=b.y) == b]
        b = next(iter([*same_place, *moved]), None)
        if b is None:
            found.append(("removed", a, None))
            continue
        new.remove(b)
        differ = {name for name in ("shape", "color", "size", "texture") if getattr(a, name) != getattr(b, name)}
        if "shape" in differ:
            kept = a.texture if a.texture in textures_of(b.shape, b.size) else "filled"
            assert b.texture == kept
            kind = "letter" if {a.shape, b.shape} <= set(LETTERS) else "shape"
            assert differ <= {"shape", "texture"}
        else:
            (kind,) = differ or {"moved"}
        found.append((kind, a, b))
    return found + [("added", None, b) for b in new]


@pytest.mark.parametrize("type", TYPES)
def test_each_type_changes_what_it_says_and_nothing_else(type: str) -> None:
    assert len(BY_TYPE[type]) > len(EDITS) / len(TYPES) / 2
    for edit in BY_TYPE[type]:
        found = changes(edit)
        kinds = {kind for kind, _, _ in found}
        assert len(kinds) == 2 if type == "compose" else kinds == KINDS[type], edit
        touched = {a for _, a, _ in found if a}
        if type == "extract":
            assert referred(edit) == set(edit.target.objects)
            assert len(edit.target.objects) == 1
        elif type == "style_change":
            assert len({o.texture for o in edit.target.objects} & {"filled", "outlined"}) == 1
            assert len({o.texture for o in edit.target.objects}) == 1
            assert not referred(edit)
        else:
            assert referred(edit) == touched, edit.instruction
        words = re.findall(r"\w+", edit.instruction)
        for kind, a, b in found:
            if kind in ("background", "tone"):
                assert kind == "tone" or edit.target.background in words
            elif kind in ("color", "texture", "shape", "letter") and a and b:
                wanted = b.shape if kind in ("shape", "letter") else getattr(b, kind)
                assert wanted in words, edit.instruction
            if type == "material_alter" and a and b:
                assert {a.texture, b.texture} != {"filled", "outlined"}


def test_untouched_objects_keep_their_order() -> None:
    for edit in EDITS.values():
        kept = [o for o in edit.source.objects if o in edit.target.objects]
        assert [o for o in edit.target.objects if o in edit.source.objects] == kept
        added = [b for kind, _, b in changes(edit) if kind == "added"]
        assert added == list(edit.target.objects[len(edit.target.objects) - len(added) :])


def test_an_added_object_is_what_was_said() -> None:
    for edit in EDITS.values():
        for b in [b for kind, _, b in changes(edit) if kind == "added" and b]:
            told = [m for m in matches(NEW, edit.instruction) if m[3]]
            assert len(told) == 1
            _, size, texture, color, name = told[0]
            size, texture = size or "medium", texture or "filled"
            assert (size, texture, color, name) == (b.size, b.texture, b.color, b.name)


def test_articles() -> None:
    for edit in EDITS.values():
        for article, following in re.findall(r"\b(an?) (\w)", edit.instruction):
            assert (article == "an") == (following in "aeiou"), edit.instruction


def test_free_places_are_within_what_was_said() -> None:
    for edit in EDITS.values():
        width, height = edit.source.width, edit.source.height
        placed = [b for kind, _, b in changes(edit) if kind in ("moved", "added")]
        assert sorted(edit.target.objects[i] for i in edit.free) == sorted(b for b in placed if b)
        assert len(edit.free) == len(edit.regions)
        for i, (left, top, right, bottom) in zip(edit.free, edit.regions, strict=True):
            o = edit.target.objects[i]
            assert left <= o.x <= right
            assert top <= o.y <= bottom
        for kind, a, b in changes(edit):
            if kind == "moved" and a and b:
                assert np.hypot(a.x - b.x, a.y - b.y) >= 12
                left, top, right, bottom = edit.regions[edit.free.index(edit.target.objects.index(b))]
                assert not (left - 5 <= a.x <= right + 5 and top - 5 <= a.y <= bottom + 5)
                if way := re.search(r"(?<!the )(?<!top )(?<!bottom )\b(left|right|up|down)\b", edit.instruction):
                    straight = {
                        "left": b.x <= a.x - 12 and a.y == b.y,
                        "right": b.x >= a.x + 12 and a.y == b.y,
                        "up": b.y <= a.y - 12 and a.x == b.x,
                        "down": b.y >= a.y + 12 and a.x == b.x,
                    }
                    assert straight[way[1]]
        said = re.findall(r"\b(?:(?:the|a) )((?:top|bottom|left|right|center)(?: left| right)?)\b", edit.instruction)
        if len(edit.free) == 1 and len(said) == 1:
            o = edit.target.objects[edit.free[0]]
            x, y = 3 * o.x / width, 3 * o.y / height
            near = {"left": x <= 1, "right": x >= 2, "top": y <= 1, "bottom": y >= 2}
            near["center"] = 1 <= x <= 2 and 1 <= y <= 2
            assert all(near[word] for word in said[0].split()), edit


@given(st.integers(0, 10**9), st.sampled_from(["train", "test"]), st.sampled_from([None, *TYPES]))
@settings(max_examples=300, deadline=None)
def test_any_edit_is_sound(seed: int, split: str, type: str | None) -> None:
    edit = sample(seed, split, type)
    assert edit == sample(seed, split, type) == sample(seed, split, edit.type)
    assert edit.type == (type or edit.type)
    assert edit.source != edit.target
    for scene in (edit.source, edit.target):
        assert 1 <= len(scene.objects) <= 4
        assert fits(scene.objects, scene.width, scene.height)
        for o in scene.objects:
            assert visible(o.color, scene.background)
            assert o.texture in textures_of(o.shape, o.size)
        if split == "train":
            assert not held_out(scene.objects)
    assert held_out(edit.source.objects) == {edit.source.novelty} - {"ordinary"}
    assert len(edit.instruction.split()) <= (22 if edit.type == "compose" else 14)
    assert set(re.findall(r"\w+", edit.instruction)) <= set(vocabulary())
    assert np.any(np.asarray(render(edit.source)) != np.asarray(render(edit.target)))


@given(st.integers(0, 10**9), st.sampled_from(["train", "test"]))
@settings(max_examples=200, deadline=None)
def test_references_fit_one_object_and_say_no_more_than_needed(seed: int, split: str) -> None:
    scene = scenes.sample(seed, split)
    for i, o in enumerate(scene.objects):
        text = refer(scene, i)
        taken = as_taken(scene, o)
        alike = [other for other in taken.objects if other.shape == o.shape]
        if text is None:
            assert len(alike) > 2  # between others
            continue
        (words,) = matches(REFERENCE, text)
        assert resolve(scene, words) == resolve(taken, words) == [o]
        for at, word in enumerate(words[:-1]):
            fewer = (*words[:at], "", *words[at + 1 :])
            assert not word or resolve(taken, fewer, CLEAR) != [o]


def as_taken(scene: Scene, o: Object) -> Scene:
    """With outlined circles as rings, or rings as outlined circles, whichever the object is."""
    thin, thick = ("circle", "outlined"), ("ring", "filled")
    own = (o.shape, o.texture)
    other = {thin: thick, thick: thin}.get(own)
    shape, texture = own
    objects = [replace(p, shape=shape, texture=texture) if (p.shape, p.texture) == other else p for p in scene.objects]
    return replace(scene, objects=tuple(objects))


def test_an_outlined_circle_and_a_ring_are_told_apart() -> None:
    ring = Object("ring", "red", "large", "filled", 20, 30)
    circle = Object("circle", "blue", "large", "outlined", 60, 30)
    scene = Scene(96, 64, "gray", "light", (ring, circle))
    assert [refer(scene, i) for i in range(2)] == ["the red ring", "the blue circle"]
    same = replace(scene, objects=(ring, replace(circle, color="red")))
    assert [refer(same, i) for i in range(2)] == ["the leftmost ring", "the rightmost circle"]
    filled = replace(scene, objects=(ring, replace(circle, texture="filled")))
    assert [refer(filled, i) for i in range(2)] == ["the ring", "the circle"]
    for edit in EDITS.values():
        told = {name for words in matches(ALL, edit.instruction) for name in words if name}
        looks = {(o.shape, o.texture) for o in edit.source.objects}
        assert not (told & {"ring", "circle"} and {("ring", "filled"), ("circle", "outlined")} <= looks), edit


def test_two_alike_are_told_apart_by_place() -> None:
    left = Object("star", "red", "small", "filled", 12, 30)
    scene = Scene(96, 64, "gray", "light", (left, replace(left, x=60), replace(left, shape="A", y=50)))
    assert [refer(scene, i) for i in range(3)] == ["the leftmost star", "the rightmost star", "the letter A"]
    three = replace(scene, objects=(left, replace(left, x=30), replace(left, x=60)))
    assert refer(three, 1) is None


def test_an_edit_is_called_by_the_combination_that_it_makes_or_meets() -> None:
    circle, square = (Object(s, "red", "medium", "filled", x, 30) for s, x in (("circle", 20), ("square", 60)))
    plain = Scene(96, 64, "gray", "light", (circle, square))
    purple = replace(plain, objects=(replace(circle, color="purple"), square))
    assert (plain.novelty, purple.novelty) == ("ordinary", "pair")
    assert [Edit("", "", *pair).novelty for pair in ((plain, plain), (plain, purple), (purple, plain))] == [
        "ordinary",
        "pair",
        "pair",
    ]
    for (split, _), edit in EDITS.items():
        held = held_out(edit.source.objects) | held_out(edit.target.objects)
        assert held == {edit.novelty} - {"ordinary"}
        assert split == "test" or not held
    made = [e for e in EDITS.values() if held_out(e.target.objects) - held_out(e.source.objects)]
    assert made  # that a source is ordinary says nothing about its edit
    assert all(e.source.novelty == "ordinary" and e.target.novelty == e.novelty for e in made)


@pytest.mark.parametrize("split", ["train", "test"])
def test_another_edit_of_a_source_has_another_result_and_keeps_to_the_split(split: str) -> None:
    """It is of the first one's type half of the time, and of all the others."""
    pairs = [(e, another(e, split, np.random.default_rng(seed))) for (of, seed), e in EDITS.items() if of == split]
    found = [(edit, other) for edit, other in pairs if other is not None]
    assert len(found) > 0.95 * len(pairs)
    for edit, other in found:
        assert other.source == edit.source
        assert other.target != edit.target
        assert fits(other.target.objects, other.target.width, other.target.height)
        assert split == "test" or not held_out(other.target.objects) | held_out(other.source.objects)
    assert 0.4 < np.mean([edit.type == other.type for edit, other in found]) < 0.7
    assert {other.type for _, other in found} == set(TYPES)


def test_novelties_are_about_equally_frequent_and_wordings_several() -> None:
    novelties = Counter(edit.novelty for (split, _), edit in EDITS.items() if split == "test")
    assert set(novelties) == set(scenes.NOVELTIES)
    assert min(novelties.values()) > 80
    assert all(len(set(wordings)) >= 4 for name, wordings in WORDINGS.items() if name != "all")
    assert len({edit.instruction for edit in EDITS.values()}) > 0.7 * len(EDITS)


def test_vocabulary_is_small_and_ordered() -> None:
    words = vocabulary()
    assert words == sorted(set(words))
    assert len(words) < 200
    assert {*COLORS, *BACKGROUNDS, *SHAPES, *LETTERS} <= set(words)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((0, "validation"), {}),
        ((-1, "test"), {}),
        ((2**128, "test"), {}),
        ((0, "train", "recolor"), {}),
        ((0, "train"), {"size": (65, 64)}),
        ((0, "train"), {"most": 5}),
        ((0, "train", "extract"), {"most": 1}),
    ],
    ids=str,
)
def test_bad_input_is_told_at_once(arguments: tuple[int, str], options: dict[str, Any]) -> None:
    start = time.perf_counter()
    with pytest.raises(BadInput) as caught:
        sample(*arguments, **options)
    if len(arguments) == 2:
        count = {"count" if name == "most" else name: value for name, value in options.items()}
        with pytest.raises(BadInput):
            scenes.sample(*arguments, **count)
    assert time.perf_counter() - start < 0.1
    assert len(str(caught.value).splitlines()) == 3


def test_edits_of_a_single_object() -> None:
    found = [sample(seed, "train", most=1) for seed in range(100)]
    assert all(len(edit.source.objects) == 1 for edit in found)
    assert {edit.type for edit in found} == set(TYPES) - {"extract", "subject-remove"}
