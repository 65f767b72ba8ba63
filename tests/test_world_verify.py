"""Verdicts on prompts: right pictures pass, pictures of other scenes are judged as GenEval's rules say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from unipic.world import language, verify
from unipic.world.render import render
from unipic.world.scene import Object, Scene, sample

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RED = Object("circle", "red", "medium", "filled", 20, 20)
BLUE = Object("square", "blue", "medium", "filled", 50, 20)


def picture(*objects: Object) -> Image.Image:
    return render(Scene(96, 64, "gray", "light", objects))


def include(name: str, count: int = 1, **more: object) -> dict[str, object]:
    return {"class": name, "count": count, **more}


def test_every_prompt_is_true_of_its_own_picture() -> None:
    """All six tags, both splits; and of another scene's picture only by chance."""
    own = other = total = 0
    seen = set()
    for seed in range(400):
        scene = sample(seed, ("train", "test")[seed % 2])
        rng = np.random.default_rng(seed)
        for tag in TAGS:
            prompt = language.prompt(scene, tag, rng)
            if prompt is None:
                continue
            verdict = verify.prompt(render(scene), prompt.metadata())
            own += verdict.correct and verdict.soft == 1.0
            other += verify.prompt(render(sample(seed + 5000, "train")), prompt.metadata()).correct
            total += 1
            seen.add(tag)
    assert seen == set(TAGS)
    assert own == total
    assert other < 0.15 * total


@pytest.mark.parametrize(
    ("spec", "correct", "soft"),
    [
        ({"include": [include("circle", color="red")]}, True, 1.0),
        ({"include": [include("circle", color="blue")]}, False, 0.5),
        ({"include": [include("circle", 2)]}, False, 0.5),
        ({"include": [include("star")]}, False, 0.0),
        ({"include": [include("circle"), include("square", position=["right of", 0])]}, True, 1.0),
        ({"include": [include("circle"), include("square", position=["left of", 0])]}, False, 2 / 3),
        ({"include": [include("circle")], "exclude": [include("square")]}, False, 1.0),
        ({"include": [include("circle")], "exclude": [include("circle", 2)]}, True, 1.0),
    ],
)
def test_clauses(spec: dict[str, object], correct: bool, soft: float) -> None:
    verdict = verify.prompt(picture(RED, BLUE), spec)
    assert verdict.correct is correct, verdict.reasons
    assert verdict.soft == pytest.approx(soft)
    assert bool(verdict.reasons) is not correct


def test_debris_is_never_passed_as_right() -> None:
    spec = {"include": [include("circle")]}
    good = picture(RED, BLUE)
    assert verify.prompt(good, spec).correct
    half = good.copy()
    half.paste(good.getpixel((0, 0)), (50, 0, 70, 40))  # the square is cut
    verdict = verify.prompt(half, spec)
    assert not verdict.correct
    assert "no known shape" in verdict.reasons[0]


def test_objects_are_listed_with_their_places() -> None:
    found = verify.objects(picture(RED, replace(BLUE, texture="striped")))
    assert {(o.shape, o.color, o.texture, o.x, o.y) for o in found} == {
        ("circle", "red", "filled", 20.0, 20.0),
        ("square", "blue", "striped", 50.0, 20.0),
    }
