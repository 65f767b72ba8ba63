"""Objects that are half drawn, mixed, or drawn over: none of them passes as what it was."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.test_world_look import found
from unipic.world.look import look
from unipic.world.render import mask, render
from unipic.world.scene import BACKGROUNDS, COLORS, DIAMETERS, LETTERS, SPLITS, TONES, Object, Scene, sample, visible

LEAST_CHANGE, LEAST_SHARE = 20, 0.15  # pixels, and of the object's, that a corruption must change to be one


def painted(scene: Scene, picture: Image.Image, o: Object, where: np.ndarray, color: np.ndarray) -> Image.Image:
    """where: how much of each pixel of the object's box gets the colour."""
    pixels = np.asarray(picture, float).copy()
    left, top, right, bottom = o.box
    patch = pixels[top:bottom, left:right]
    patch += where[..., None] * (np.asarray(color, float) * TONES[scene.tone] - patch)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def half(side: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return [x < side / 2, x >= side / 2, y < side / 2, y >= side / 2][rng.integers(4)]


def quarter(side: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:side, :side] < side / 2
    return (y ^ bool(rng.integers(2))) & (x ^ bool(rng.integers(2)))


def gradient(side: int, rng: np.random.Generator) -> np.ndarray:
    way = np.broadcast_to((np.arange(side) + 0.5) / side, (side, side))
    return [way, way.T, way[:, ::-1], way[::-1].T][rng.integers(4)]


def blocks(side: int, rng: np.random.Generator) -> np.ndarray:
    return np.kron(rng.random((side // 2, side // 2)) < 0.3, np.ones((2, 2)))


def middle(side: int, rng: np.random.Generator) -> np.ndarray:
    apart = np.abs(np.arange(side) + 0.5 - side / 2) < side / 4
    return np.outer(apart, apart)


def within(small: np.ndarray, side: int) -> np.ndarray:
    before = (side - len(small)) // 2
    return np.pad(small, (before, side - len(small) - before))


def disc(side: int, rng: np.random.Generator) -> np.ndarray:
    return within(mask("circle", side // 2), side)


def star(side: int, rng: np.random.Generator) -> np.ndarray:
    return within(mask("star", side // 2), side)


def line(side: int, rng: np.random.Generator) -> np.ndarray:
    """Three pixels wide, through the middle."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    angle = rng.uniform(0, np.pi)
    return np.abs(x * np.sin(angle) + y * np.cos(angle)) <= 1.5


def letter(side: int, rng: np.random.Generator) -> np.ndarray:
    return within(mask(str(rng.choice(LETTERS)), 14), side)


WHERE = {f.__name__: f for f in (half, quarter, gradient, blocks, middle, disc, star, line, letter)}
INNER = ("middle", "disc", "star", "letter")
Kind = tuple[str, str]
KINDS: list[Kind] = [(place, what) for place in WHERE for what in ("erased", "another colour")]
KINDS += [(place, "another texture") for place in ("half", "quarter")]


def corrupted(kind: Kind, scene: Scene, rng: np.random.Generator) -> tuple[Image.Image, Object] | None:
    """A picture of the scene with one object spoilt, and that object; None where it would be too little to count."""
    place, what = kind
    o = scene.objects[rng.integers(len(scene.objects))]
    whole, side = mask(o.shape, DIAMETERS[o.size], o.texture), DIAMETERS[o.size]
    where, right = WHERE[place](side, rng), render(scene)
    if what == "erased":
        if o.texture == "outlined" and place in INNER:  # there is next to nothing to erase
            return None
        picture = painted(scene, right, o, np.asarray(where, float), BACKGROUNDS[scene.background])
    elif what == "another texture":
        other = mask(o.shape, side, "filled" if o.texture != "filled" else "striped")
        picture = painted(scene, right, o, where * (o.shape not in LETTERS), BACKGROUNDS[scene.background])
        picture = painted(scene, picture, o, where * other, COLORS[o.color])
    else:
        others = [c for c in COLORS if c != o.color and visible(c, scene.background)]
        inside = mask(o.shape, side) > 0.5 if place in INNER[1:] else whole
        picture = painted(scene, right, o, where * inside, COLORS[others[rng.integers(len(others))]])
    left, top, right_, bottom = o.box
    difference = np.abs(np.asarray(picture, float) - np.asarray(right))[top:bottom, left:right_].max(-1)
    return (picture, o) if (difference > 60).sum() >= max(LEAST_CHANGE, LEAST_SHARE * whole.sum()) else None


def passing(kind: Kind, count: int) -> float:
    """Share of so many corruptions that are taken for the scene that they were made from."""
    rng = np.random.default_rng(KINDS.index(kind))
    tried = passed = seed = 0
    while tried < count:
        scene = sample(seed, SPLITS[seed % 2])
        seed += 1
        if (made := corrupted(kind, scene, rng)) is None:
            continue
        view = look(made[0])
        passed += view.clean and found(view, scene) == len(scene.objects) == len(view.objects)
        tried += 1
    return passed / tried


@pytest.mark.parametrize("kind", KINDS, ids=" in ".join)
def test_corruptions_do_not_pass(kind: Kind) -> None:
    assert passing(kind, 60) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=" in ".join)
def test_1000_corruptions_of_each_kind_do_not_pass(kind: Kind) -> None:
    assert passing(kind, 1000) <= 0.02


# --- one by one -------------------------------------------------------------------------------------------------------


def ground() -> tuple[int, int, int]:
    return BACKGROUNDS["gray"]


def one(shape: str, color: str, texture: str = "filled", size: str = "large") -> Object:
    return Object(shape, color, size, texture, 48, 32)


def picture(*objects: Object) -> Image.Image:
    return render(Scene(96, 64, "gray", "light", objects))


def on_top(o: Object, *others: Object) -> Image.Image:
    """An object with others drawn over it."""
    drawn, scene = picture(o), Scene(96, 64, "gray", "light", ())
    for other in others:
        where = mask(other.shape, DIAMETERS[other.size], other.texture)
        drawn = painted(scene, drawn, other, where, COLORS[other.color])
    return drawn


@pytest.mark.parametrize(
    "drawn",
    [
        on_top(one("square", "black", "outlined"), one("circle", "blue", size="small")),
        on_top(one("square", "black", "outlined"), one("star", "black", size="small")),
        on_top(one("ring", "black"), one("circle", "blue", size="small")),
        on_top(one("square", "red"), one("star", "green", size="small")),
        on_top(one("square", "red"), one("star", "orange", size="small")),
        on_top(one("circle", "purple"), one("A", "blue", size="small")),
    ],
)
def test_one_object_on_another_is_neither(drawn: Image.Image) -> None:
    assert not look(drawn).clean


def test_a_square_without_its_upper_inside_is_nothing() -> None:
    drawn = picture(one("square", "red"))
    ImageDraw.Draw(drawn).rectangle((38, 22, 57, 30), fill=ground())
    view = look(drawn)
    assert not view.clean
    assert not view.objects


@pytest.mark.parametrize("side", [1, 2, 4])
def test_dirt_adds_up(side: int) -> None:
    """One speck is tolerated, many are not."""
    drawn = picture(one("circle", "red"))
    draw = ImageDraw.Draw(drawn)
    draw.rectangle((4, 4, 4 + side - 1, 4 + side - 1), fill=COLORS["black"])
    assert look(drawn).clean
    for x in range(2, 90, 7):
        for y in (2, 9, 50, 57):
            draw.rectangle((x, y, x + side - 1, y + side - 1), fill=COLORS["black"])
    assert not look(drawn).clean
