"""Scenes: one to four objects on a ground, in one of five sizes. A scene is a function of (seed, split).

Held out for testing are some shape × colour pairs, some (shape, relation, shape) arrangements and some counts of
shapes: no training scene holds any of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from unipic.errors import BadInput
from unipic.types import check_whole

Color = tuple[int, int, int]

SIZES = ((64, 64), (96, 64), (64, 96), (128, 96), (96, 128))  # width, height in pixels
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
LETTERS = tuple("ABCDEFGHJKLMNPRSTUVWXYZ")  # without I, O, Q: a bar and two rings
COLORS: dict[str, Color] = {  # GenEval's ten
    "red": (214, 38, 40),
    "orange": (246, 124, 10),
    "yellow": (255, 226, 20),
    "green": (30, 150, 60),
    "blue": (36, 84, 214),
    "purple": (132, 44, 170),
    "pink": (238, 84, 166),
    "brown": (142, 84, 40),
    "black": (18, 18, 18),
    "white": (252, 252, 252),
}
DIAMETERS = {"small": 14, "medium": 20, "large": 28}  # longer side of an object's box, pixels
TEXTURES = ("filled", "outlined", "striped", "dotted")
BACKGROUNDS: dict[str, Color] = {
    "gray": (178, 178, 178),
    "beige": (232, 214, 168),
    "sky": (140, 196, 240),
    "mint": (150, 210, 180),
    "rose": (240, 178, 178),
    "lavender": (196, 176, 236),
}
TONES = {"light": 1.0, "dark": 0.7}  # factor on the whole picture
RELATIONS = ("left of", "right of", "above", "below")
SPLITS = ("train", "test")
MOST_SEED = 2**128 - 1
NOVELTIES = ("ordinary", "pair", "triple", "count")
MOST_OBJECTS = 4
GAP = 4  # pixels between the boxes of two objects
MARGIN = 2  # pixels between a box and the picture's edge
CHROMA_SHARE = 0.4  # of chroma beside luma in how well a difference is seen: pictures are often stored with half of it
CONTRAST = 86.0  # least difference between an object's colour and its ground, in light tone

HELD_PAIRS = frozenset(
    {
        ("circle", "purple"),
        ("square", "yellow"),
        ("triangle", "blue"),
        ("diamond", "pink"),
        ("star", "green"),
        ("cross", "orange"),
        ("ring", "red"),
        ("heart", "brown"),
    }
)
_HELD = {
    ("circle", "left of", "star"),
    ("square", "above", "heart"),
    ("triangle", "right of", "ring"),
    ("diamond", "below", "cross"),
    ("star", "above", "triangle"),
    ("heart", "left of", "diamond"),
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
HELD_TRIPLES = frozenset(_HELD | {(b, OPPOSITE[relation], a) for a, relation, b in _HELD})
HELD_COUNTS = frozenset({("circle", 3), ("square", 4), ("star", 2), ("triangle", 4), ("heart", 3), ("cross", 2)})


@dataclass(frozen=True, order=True)
class Object:
    """shape: one of SHAPES, or a capital letter. x, y: the middle of its box, in pixels."""

    shape: str
    color: str
    size: str
    texture: str
    x: int
    y: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the square that its diameter spans."""
        half = DIAMETERS[self.size] // 2
        return (self.x - half, self.y - half, self.x + half, self.y + half)

    @property
    def name(self) -> str:
        """As language calls it: "circle", "letter A"."""
        return f"letter {self.shape}" if self.shape in LETTERS else self.shape


@dataclass(frozen=True)
class Scene:
    """width, height: pixels."""

    width: int
    height: int
    background: str
    tone: str
    objects: tuple[Object, ...]

    @property
    def novelty(self) -> str:
        """Which held-out combination it holds: one of NOVELTIES."""
        return novelty_of(held_out(self.objects))


def textures_of(shape: str, size: str) -> tuple[str, ...]:
    """The textures that show on a shape: the others need room within a contour of two pixels."""
    if shape in LETTERS or shape == "ring":
        return ("filled",)
    if shape in ("star", "cross", "heart", "triangle") and size == "small":
        return ("filled",)
    if (shape, size) in (("diamond", "small"), ("star", "medium"), ("cross", "medium")):
        return ("filled", "outlined")
    if size == "small":
        return ("filled", "outlined", "striped")
    return TEXTURES


_LUMA = np.array([[0.299, 0.587, 0.114]] * 3).T
TO_VIEW = _LUMA + CHROMA_SHARE * (np.eye(3) - _LUMA)
"""3×3: a difference of RGB colours, as a row → what is seen of it: luma, and some of the chroma."""


@cache
def visible(color: str, background: str) -> bool:
    """Whether an object of this colour stands out from its ground."""
    difference = np.subtract(COLORS[color], BACKGROUNDS[background]) @ TO_VIEW
    return float(np.linalg.norm(difference)) >= CONTRAST


def relations(a: Object, b: Object) -> set[str]:
    """GenEval's: offset of the centres, each part shrunk by a tenth of the two sizes; its direction beyond ±0.5."""
    offset = np.array([a.x - b.x, a.y - b.y], float)
    shrink = 0.1 * (DIAMETERS[a.size] + DIAMETERS[b.size])
    if not np.abs(offset).any():
        return set()
    x, y = np.sign(offset) * np.maximum(np.abs(offset) - shrink, 0) / np.linalg.norm(offset)
    found = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in found.items() if holds}


def held_out(objects: tuple[Object, ...]) -> set[str]:
    """Which kinds of held-out combinations these objects hold: "pair", "triple", "count"."""
    found = set()
    if any((o.shape, o.color) in HELD_PAIRS for o in objects):
        found.add("pair")
    if any((a.shape, r, b.shape) in HELD_TRIPLES for a, b in permutations(objects, 2) for r in relations(a, b)):
        found.add("triple")
    if HELD_COUNTS & set(Counter(o.shape for o in objects).items()):
        found.add("count")
    return found


def novelty_of(held: Collection[str]) -> str:
    """The name of what holds such combinations; samples hold one kind at most."""
    return next((novelty for novelty in NOVELTIES if novelty in held), "ordinary")


def also_called(o: Object) -> str:
    """Another shape that some would call it: an outlined circle is a thin ring, and a ring is round. "" if none."""
    return "circle" if o.shape == "ring" else "ring" * ((o.shape, o.texture) == ("circle", "outlined"))


def confusable(a: Object, b: Object) -> bool:
    """Whether each may be called what the other is."""
    return (a.shape, b.shape) == (also_called(b), also_called(a))


def fits(objects: tuple[Object, ...], width: int, height: int) -> bool:
    """Whether all boxes are within the picture and apart from each other."""
    boxes = [o.box for o in objects]
    for i, (left, top, right, bottom) in enumerate(boxes):
        if left < MARGIN or top < MARGIN or right > width - MARGIN or bottom > height - MARGIN:
            return False
        for l2, t2, r2, b2 in boxes[:i]:
            if left - r2 < GAP and l2 - right < GAP and top - b2 < GAP and t2 - bottom < GAP:
                return False
    return True


def sample(seed: int, split: str, *, size: tuple[int, int] | None = None, count: int | None = None) -> Scene:
    """The scene of a seed. split: "train" or "test"; a test scene is in equal parts ordinary or of one novelty.

    size: one of SIZES. count: of its objects; what a test scene's novelty needs is there all the same.
    Raises BadInput for what there is not.
    """
    check_sample(seed, split, size)
    if count is not None:
        check_whole("number of objects", count, 1, MOST_OBJECTS)
    rng = np.random.default_rng([SPLITS.index(split), seed])
    novelty = NOVELTIES[seed % len(NOVELTIES)] if split == "test" else "ordinary"
    for _ in range(10_000):
        scene = _draw(rng, novelty, size, count)
        if scene is not None and held_out(scene.objects) == ({novelty} - {"ordinary"}):
            return scene
    raise AssertionError(f"no scene for seed {seed}, {split}, {size}, {count}")


def check_sample(seed: int, split: str, size: tuple[int, int] | None) -> None:
    """Of scenes and edits. Raises BadInput."""
    if split not in SPLITS:
        raise BadInput(f"there is no split {split}", "split of the world", f"give one of {', '.join(SPLITS)}")
    check_whole("seed", seed, 0, MOST_SEED)
    if size is not None and tuple(size) not in SIZES:
        sizes = ", ".join(f"{width}x{height}" for width, height in SIZES)
        raise BadInput("the world has no scenes of this size", f"size {size}", f"give one of {sizes}")


def _draw(rng: np.random.Generator, novelty: str, size: tuple[int, int] | None, count: int | None) -> Scene | None:
    """One attempt; None where the objects do not fit."""
    width, height = size or SIZES[rng.integers(len(SIZES))]
    background, tone = str(rng.choice(list(BACKGROUNDS))), str(rng.choice(list(TONES)))
    shapes, colors = _kinds(rng, novelty, count or int(rng.integers(1, 5)), background)
    objects: tuple[Object, ...] = ()
    for shape, color in zip(shapes, colors, strict=True):
        diameter = str(rng.choice(list(DIAMETERS)))
        texture = str(rng.choice(textures_of(shape, diameter)))
        for place in places(rng, diameter, width, height):
            grown = (*objects, Object(shape, color, diameter, texture, *place))
            if fits(grown, width, height):
                objects = grown
                break
        else:
            return None
    return Scene(width, height, background, tone, objects)


def places(rng: np.random.Generator, size: str, width: int, height: int, tries: int = 20) -> Iterator[tuple[int, int]]:
    """Random centres for an object of this size."""
    edge = DIAMETERS[size] // 2 + MARGIN
    for _ in range(tries):
        yield int(rng.integers(edge, width - edge + 1)), int(rng.integers(edge, height - edge + 1))


def _kinds(rng: np.random.Generator, novelty: str, count: int, background: str) -> tuple[list[str], list[str]]:
    """Shapes and visible colours of the objects, with what the novelty asks for."""
    palette = [c for c in COLORS if visible(c, background)]
    if novelty == "count":
        held = sorted(HELD_COUNTS)[rng.integers(len(HELD_COUNTS))]
        shapes = [held[0]] * held[1]
    elif rng.random() < 0.3:  # several alike, to be counted
        shapes = [str(rng.choice(SHAPES))] * count
    else:
        shapes = [str(rng.choice(LETTERS)) if rng.random() < 0.15 else str(rng.choice(SHAPES)) for _ in range(count)]
    colors = [str(rng.choice(palette)) for _ in shapes]
    if novelty == "pair":
        held_pairs = [pair for pair in sorted(HELD_PAIRS) if pair[1] in palette]
        shapes[0], colors[0] = held_pairs[rng.integers(len(held_pairs))]
    if novelty == "triple":
        first, _, second = sorted(HELD_TRIPLES)[rng.integers(len(HELD_TRIPLES))]
        shapes = [first, second, *shapes[2:]]
        colors = [*colors, str(rng.choice(palette))][: len(shapes)]
    return shapes, colors
