"""What an instruction asks of a scene, and what such changes are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from unipic.world.instructions import Box
from unipic.world.scene import DIAMETERS, MARGIN, Object, Scene, fits, textures_of

MOVE = 12  # least pixels of a move
ASTRAY = 8  # pixels across its direction by which a moved object may be off


@dataclass(frozen=True)
class Change:
    """What an instruction asks of a scene; None where it leaves the ground as it is.

    objects: by index in the source, what becomes of them (None: removed); an added one is at the next index. regions:
    by the same indices, where the middle must lie of those whose place is left open.
    """

    instruction: str
    objects: Mapping[int, Object | None] = field(default_factory=dict)
    regions: Mapping[int, Box] = field(default_factory=dict)
    background: str | None = None
    tone: str | None = None


def reshaped(o: Object, shape: str) -> Object:
    """The object as another shape or letter, in its texture where that shows."""
    return replace(o, shape=shape, texture=o.texture if o.texture in textures_of(shape, o.size) else "filled")


def toward(scene: Scene, o: Object, way: str) -> Box:
    """Where an object may end that is moved one of WAYS."""
    return {
        "left": (0, o.y - ASTRAY, o.x - MOVE, o.y + ASTRAY),
        "right": (o.x + MOVE, o.y - ASTRAY, scene.width, o.y + ASTRAY),
        "up": (o.x - ASTRAY, 0, o.x + ASTRAY, o.y - MOVE),
        "down": (o.x - ASTRAY, o.y + MOVE, o.x + ASTRAY, scene.height),
    }[way]


def joined(instruction: str, a: Change, b: Change) -> Change:
    """Two changes as one, of disjoint objects, and at most one of them of background and of tone."""
    background, tone = a.background or b.background, a.tone or b.tone
    return Change(instruction, {**a.objects, **b.objects}, {**a.regions, **b.regions}, background, tone)


def inside(o: Object, region: Box, slack: int) -> bool:
    """Whether the middle of an object is in a region, or no more than `slack` pixels outside."""
    left, top, right, bottom = region
    return left - slack <= o.x <= right + slack and top - slack <= o.y <= bottom + slack


def placed(scene: Scene, rng: np.random.Generator, o: Object, region: Box, instead: int = -1) -> Object | None:
    """The object at a random place in the region that fits the scene (without that index); None if none was found."""
    others = tuple(other for i, other in enumerate(scene.objects) if i != instead)
    edge = DIAMETERS[o.size] // 2 + MARGIN
    left, top = max(region[0], edge), max(region[1], edge)
    right, bottom = min(region[2], scene.width - edge), min(region[3], scene.height - edge)
    if left > right or top > bottom:
        return None
    for _ in range(20):
        there = replace(o, x=int(rng.integers(left, right + 1)), y=int(rng.integers(top, bottom + 1)))
        if fits((*others, there), scene.width, scene.height):
            return there
    return None
