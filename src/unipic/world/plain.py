"""The plainest picture of what a text asks for: what it leaves open is not left to chance.

A scene of which a prompt is true may hold anything else, anywhere, in any texture and size; so may the picture of an
edit put what it adds or moves anywhere in a region. A model that learns from such targets spends itself on what nobody
asked for. Published models are last tuned on few, chosen pictures (Dai et al., Emu, 2023); here they are drawn. Dense
descriptions and captions, which leave little open, stay with their own scenes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from unipic.world.changes import inside
from unipic.world.edits import Edit
from unipic.world.language import Prompt
from unipic.world.scene import BACKGROUNDS, Object, Scene, fits, held_out, relations, visible

CELL = 32  # pixels: room for one large object
STEP = 8  # pixels between the places of what an edit adds, and of what it moves: one latent
COLOR = {"gray": "red", "beige": "blue", "sky": "red", "mint": "purple", "rose": "blue", "lavender": "green"}
"""Of what has no colour by name, for each ground."""


def plain_scene(prompt: Prompt, size: tuple[int, int], rng: np.random.Generator) -> Scene | None:
    """Nothing but what a prompt names: large, filled, in light tone, side by side from the start of a row of cells.

    Open are the ground and the row; of a single object, the cell. Relations, and combinations that are held out and not
    named, may ask for a column or another order. None where there is no room.
    """
    width, height = size
    things = [group for group in prompt.include for _ in range(group.count)]
    shapes = [group.name.removeprefix("letter ") for group in things]
    for ground in rng.permutation(list(BACKGROUNDS)).tolist():
        colors = [group.color or COLOR[ground] for group in things]
        if not all(visible(color, ground) for color in colors):
            continue
        for places in _places_in_line(len(things), width // CELL, height // CELL, rng):
            looks = zip(shapes, colors, places, strict=True)
            objects = tuple(Object(shape, color, "large", "filled", *at) for shape, color, at in looks)
            if held_out(objects) <= {prompt.novelty} and _arranged(prompt, objects):
                return Scene(width, height, ground, "light", objects)
    return None


def _places_in_line(count: int, columns: int, rows: int, rng: np.random.Generator) -> Iterator[list[tuple[int, int]]]:
    """Runs of that many middles of cells: in reading order, from the start of a row; from the top of a column, down;
    then all of these backwards. One thing alone may stand in any cell.
    """
    middles = [[(x * CELL + CELL // 2, y * CELL + CELL // 2) for x in range(columns)] for y in range(rows)]
    lines = []
    for grid in (middles, [list(column) for column in zip(*middles, strict=True)]):
        cells = [at for line in grid for at in line]
        starts = range(0, len(cells) - count + 1, 1 if count == 1 else len(grid[0]))
        lines += [cells[start : start + count] for start in rng.permutation(starts).tolist()]
    yield from lines
    yield from (line[::-1] for line in lines)


def _arranged(prompt: Prompt, objects: tuple[Object, ...]) -> bool:
    """Whether a relation that is asked for is the only one between its two objects."""
    asked = prompt.include[-1].position
    return asked is None or relations(objects[-1], objects[asked[1]]) == {asked[0]}


def plain_source(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """The same things on the same ground, large, filled, in light tone, each in a cell of its own.

    None where there are not enough cells, or where they would stand in a held-out arrangement.
    """
    columns, rows = scene.width // CELL, scene.height // CELL
    cells = rng.permutation(columns * rows)[: len(scene.objects)].tolist()
    middles = [(cell % columns * CELL + CELL // 2, cell // columns * CELL + CELL // 2) for cell in cells]
    if len(middles) < len(scene.objects):
        return None
    objects = tuple(
        Object(o.shape, o.color, "large", "filled", *at) for o, at in zip(scene.objects, middles, strict=True)
    )
    plain = replace(scene, tone="light", objects=objects)
    return plain if held_out(objects) <= held_out(scene.objects) else None


def plain_edit(edit: Edit) -> Edit:
    """Each thing whose place is open as near as it can be to the middle of where it may lie, on a grid of STEP pixels.

    What is moved is moved by whole steps. An edit stays as it is where no such place fits, or where it would make a
    held-out combination.
    """
    target = edit.target
    for index, region in zip(edit.free, edit.regions, strict=True):
        o = target.objects[index]
        others = target.objects[:index] + target.objects[index + 1 :]
        middle = ((region[0] + region[2]) / 2, (region[1] + region[3]) / 2)
        there = (at for at in _places(o, edit.source, target) if inside(at, region, 0))
        for at in sorted(there, key=lambda at: (np.hypot(at.x - middle[0], at.y - middle[1]), at)):
            objects = (*others[:index], at, *others[index:])
            if fits(objects, target.width, target.height) and held_out(objects) <= held_out(target.objects):
                target = replace(target, objects=objects)
                break
    return replace(edit, target=target)


def _places(o: Object, source: Scene, target: Scene) -> Iterator[Object]:
    """The object at all places of the grid, which goes through where it was if the source has it elsewhere."""
    before = [s for s in source.objects if replace(s, x=o.x, y=o.y) == o and s not in target.objects]
    x, y = (before[0].x, before[0].y) if before else (0, 0)
    for there in product(range(x % STEP, target.width, STEP), range(y % STEP, target.height, STEP)):
        yield replace(o, x=there[0], y=there[1])
