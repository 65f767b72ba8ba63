"""Edits: an instruction, the scene before and the scene after. An edit is a function of (seed, split, type).

The types are GEdit's, without that of human portraits, and ImgEdit's extract and compose. What an instruction does not
say stays as it was; of an added object it means medium and filled. References are resolved in the source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from unipic.errors import BadInput
from unipic.types import check_whole
from unipic.world import scene as scenes
from unipic.world.changes import MOVE, Change, inside, joined, placed, reshaped, toward
from unipic.world.instructions import THIRDS, WAYS, WORDINGS, Box, refer, region_of, say
from unipic.world.language import pick, plural, some
from unipic.world.scene import (
    BACKGROUNDS,
    COLORS,
    DIAMETERS,
    LETTERS,
    MOST_OBJECTS,
    NOVELTIES,
    SHAPES,
    SPLITS,
    TONES,
    Object,
    Scene,
    check_sample,
    confusable,
    fits,
    held_out,
    novelty_of,
    textures_of,
    visible,
)

TYPES = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
    "extract",
    "compose",
)
PARTS = tuple(t for t in TYPES if t not in ("style_change", "extract", "compose"))  # what compose joins
OF_SEVERAL = ("extract", "subject-remove")  # of a scene's only object neither can be asked
MOST_WORDS, MOST_WORDS_COMPOSED = 14, 22
OUTSIDE = 6  # pixels by which an object to be moved to a region is outside it


@dataclass(frozen=True)
class Edit:
    """target: one right result. free: indices of target.objects whose exact place the instruction leaves open.

    regions: for each free object, the box in which its middle must lie.
    """

    type: str
    instruction: str
    source: Scene
    target: Scene
    free: tuple[int, ...] = ()
    regions: tuple[Box, ...] = ()

    @property
    def novelty(self) -> str:
        """Which held-out combination it makes or meets, in its target or its source: one of NOVELTIES."""
        return novelty_of(_held(self))


def _held(edit: Edit) -> set[str]:
    return held_out(edit.target.objects) | held_out(edit.source.objects)


def sample(
    seed: int,
    split: str,
    type: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    most: int | None = None,
    arranged: Callable[[Scene, np.random.Generator], Scene | None] | None = None,
) -> Edit:
    """The edit of a seed. split: as of scenes; type: one of TYPES, None for one at random.

    size: of its scenes, in pixels. most: objects that a training source holds at most (novelties may need more).
    arranged: makes another source of the one that was drawn, for a curriculum; None where it cannot.
    No training edit holds a held-out combination, before or after; a test edit holds those of one kind at most, and
    its source is of each novelty equally often, if it is not arranged. Raises BadInput for what there is not.
    """
    check_sample(seed, split, size)
    if most is not None:
        check_whole("greatest number of objects", most, 1, MOST_OBJECTS)
    types = [t for t in TYPES if most != 1 or split == "test" or t not in OF_SEVERAL]
    if type not in (None, *types):
        alone = " of a single object" if type in TYPES else ""
        raise BadInput(f"there is no edit {type}{alone}", "type of an edit", f"give one of {', '.join(types)}")
    rng = np.random.default_rng([SPLITS.index(split), seed, len(TYPES)])
    drawn = pick(rng, types)
    type = type or drawn
    for attempt in range(1000):
        novelty = (seed + attempt // 20) % len(NOVELTIES)  # some types do not go with some novelties
        drawn_seed = len(NOVELTIES) * int(rng.integers(2**32)) + novelty
        count = most and int(rng.integers(1, most + 1))
        source = scenes.sample(drawn_seed, split, size=size, count=count)
        if arranged:
            source = arranged(source, rng) or source
        change = _CHANGES[type](source, rng)
        edit = change and applied(type, source, change)
        if edit and _admitted(edit, split):
            return edit
    raise AssertionError(f"no edit for seed {seed}, {split}, {type}")


def another(edit: Edit, split: str, rng: np.random.Generator) -> Edit | None:
    """Of the same source, with another right result; half of the time of the same type. None where none was found."""
    for _ in range(20):
        type = edit.type if edit.type in _CHANGES and rng.random() < 0.5 else pick(rng, TYPES)
        change = _CHANGES[type](edit.source, rng)
        other = change and applied(type, edit.source, change)
        if other and other.target != edit.target and _admitted(other, split):
            return other
    return None


# --- changes ----------------------------------------------------------------------------------------------------------


def applied(type: str, source: Scene, change: Change) -> Edit:
    """The edit that makes a change."""
    after: dict[int, Object | None] = {**dict(enumerate(source.objects)), **change.objects}
    kept = {i: o for i, o in sorted(after.items()) if o is not None}
    target = replace(
        source,
        background=change.background or source.background,
        tone=change.tone or source.tone,
        objects=tuple(kept.values()),
    )
    free = tuple(place for place, i in enumerate(kept) if i in change.regions)
    regions = tuple(change.regions[i] for i in kept if i in change.regions)
    return Edit(type, change.instruction, source, target, free, regions)


def _admitted(edit: Edit, split: str) -> bool:
    target, most = edit.target, MOST_WORDS_COMPOSED if edit.type == "compose" else MOST_WORDS
    return (
        0 < len(target.objects) <= MOST_OBJECTS
        and fits(target.objects, target.width, target.height)
        and all(visible(o.color, target.background) for o in target.objects)
        and all(o.texture in textures_of(o.shape, o.size) for o in target.objects)
        and len(_held(edit)) <= (split == "test")
        and len(edit.instruction.split()) <= most
    )


def _background(scene: Scene, rng: np.random.Generator) -> Change | None:
    fitting = [b for b in BACKGROUNDS if b != scene.background and all(visible(o.color, b) for o in scene.objects)]
    if not fitting:
        return None
    background = pick(rng, fitting)
    return Change(say(rng, "background_change", background=background, a=some(background)), background=background)


def _tone(scene: Scene, rng: np.random.Generator) -> Change:
    (tone,) = set(TONES) - {scene.tone}
    return Change(say(rng, f"to {tone}"), tone=tone)


def _color(scene: Scene, rng: np.random.Generator) -> Change | None:
    the, chosen = _some_or_all(scene, rng)
    color = pick(rng, [c for c in COLORS if visible(c, scene.background)])
    if not the or any(scene.objects[i].color == color for i in chosen):
        return None
    changed = {i: replace(scene.objects[i], color=color) for i in chosen}
    return Change(say(rng, "color_alter", the=the, color=color), changed)


def _material(scene: Scene, rng: np.random.Generator) -> Change | None:
    the, i, o = _one(scene, rng)
    texture = pick(rng, textures_of(o.shape, o.size))
    if not the or texture == o.texture or {texture, o.texture} == {"filled", "outlined"}:
        return None
    said = say(rng, "material_alter", the=the, texture=texture, a=some(texture))
    return Change(said, {i: replace(o, texture=texture)})


def _style(scene: Scene, rng: np.random.Generator) -> Change | None:
    style = pick(rng, ("filled", "outlined"))
    changed = {i: replace(o, texture=style) for i, o in enumerate(scene.objects) if o.texture != style}
    if not changed or any(style not in textures_of(o.shape, o.size) for o in scene.objects):
        return None
    return Change(say(rng, "style_change", style=style, a=some(style)), changed)


def _motion(scene: Scene, rng: np.random.Generator) -> Change | None:
    the, i, o = _one(scene, rng)
    if not the:
        return None
    if rng.random() < 0.5:
        at = pick(rng, list(THIRDS))
        region = region_of(scene, at)
        said = say(rng, "move to", the=the, at=at, place=at.partition(" ")[2])
        within = region
    else:
        way = pick(rng, WAYS)
        said = say(rng, "move by", the=the, way=way)
        region = left, top, right, bottom = toward(scene, o, way)
        within = (left, o.y, right, o.y) if way in ("left", "right") else (o.x, top, o.x, bottom)
    moved = placed(scene, rng, o, within, instead=i)
    if moved is None or inside(o, region, OUTSIDE) or np.hypot(moved.x - o.x, moved.y - o.y) < MOVE:
        return None
    return Change(said, {i: moved}, {i: region})


def _add(scene: Scene, rng: np.random.Generator) -> Change | None:
    shape = pick(rng, LETTERS if rng.random() < 0.15 else SHAPES)
    color, size = pick(rng, [c for c in COLORS if visible(c, scene.background)]), pick(rng, list(DIAMETERS))
    texture = pick(rng, textures_of(shape, size))
    if any((o.shape, o.color) == (shape, color) for o in scene.objects):
        return None
    at = pick(rng, [*THIRDS, *[""] * 6])
    region = region_of(scene, at) if at else (0, 0, scene.width, scene.height)
    new = placed(scene, rng, Object(shape, color, size, texture, 0, 0), region)
    if new is None:
        return None
    words = (size.replace("medium", ""), texture.replace("filled", ""), color, new.name)
    said = say(rng, "add at" if at else "add", a=some(" ".join(filter(None, words))), at=at)
    return Change(said, {len(scene.objects): new}, {len(scene.objects): region})


def _remove(scene: Scene, rng: np.random.Generator) -> Change | None:
    the, chosen = _some_or_all(scene, rng)
    return Change(say(rng, "subject-remove", the=the), dict.fromkeys(chosen)) if the else None


def _replace(scene: Scene, rng: np.random.Generator) -> Change | None:
    the, i, o = _one(scene, rng)
    shape = pick(rng, [s for s in SHAPES if s != o.shape])
    if not the:
        return None
    return Change(say(rng, "subject-replace", the=the, a=some(shape)), {i: reshaped(o, shape)})


def _text(scene: Scene, rng: np.random.Generator) -> Change | None:
    the, i, o = _one(scene, rng)
    letter = pick(rng, [x for x in LETTERS if x != o.shape])
    if not the or o.shape not in LETTERS:
        return None
    return Change(say(rng, "text_change", the=the, letter=letter), {i: replace(o, shape=letter)})


def _extract(scene: Scene, rng: np.random.Generator) -> Change | None:
    the, i, _ = _one(scene, rng)
    others = [j for j in range(len(scene.objects)) if j != i]
    return Change(say(rng, "extract", the=the), dict.fromkeys(others)) if the and others else None


def _compose(scene: Scene, rng: np.random.Generator) -> Change | None:
    """Of disjoint shapes, so that references hold whichever change is made first."""
    a, b = (_CHANGES[PARTS[i]](scene, rng) for i in rng.permutation(len(PARTS))[:2])
    if a is None or b is None or _shapes(scene, a) & _shapes(scene, b):
        return None
    first, second = (c.instruction[0].lower() + c.instruction[1:] for c in (a, b))
    return joined(say(rng, "compose", first=first, second=second), a, b)


# --- parts of changes -------------------------------------------------------------------------------------------------


def _one(scene: Scene, rng: np.random.Generator) -> tuple[str | None, int, Object]:
    """A random object, by its reference (None: it has none) and its index."""
    i = int(rng.integers(len(scene.objects)))
    return refer(scene, i), i, scene.objects[i]


def _some_or_all(scene: Scene, rng: np.random.Generator) -> tuple[str | None, list[int]]:
    """A random object, or all of its shape where there are several, by reference and indices."""
    the, i, one = _one(scene, rng)
    alike = [j for j, o in enumerate(scene.objects) if o.shape == one.shape]
    if len(alike) == 1 or one.shape in LETTERS or rng.random() < 0.5:
        return the, [i]
    if any(confusable(scene.objects[j], o) for j in alike for o in scene.objects):
        return the, [i]  # whether a ring is one of all circles, opinions differ
    return pick(rng, WORDINGS["all"]).format(thing=one.name, things=plural(one.name)), alike


def _shapes(scene: Scene, change: Change) -> set[str]:
    """Of the objects that a change is about, before and after."""
    before = {o.shape for i, o in enumerate(scene.objects) if i in change.objects}
    return before | {o.shape for o in change.objects.values() if o is not None}


_CHANGES: dict[str, Callable[[Scene, np.random.Generator], Change | None]] = {
    "background_change": _background,
    "color_alter": _color,
    "material_alter": _material,
    "motion_change": _motion,
    "style_change": _style,
    "subject-add": _add,
    "subject-remove": _remove,
    "subject-replace": _replace,
    "text_change": _text,
    "tone_transfer": _tone,
    "extract": _extract,
    "compose": _compose,
}
