"""One interface for rewards: sums, missing scores, and the world's verifier as the first of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from unipic.errors import UnipicError
from unipic.rewards.brightness import BrightnessReward
from unipic.rewards.reward import Sample, WeightedSum
from unipic.rewards.world import WorldReward, judge
from unipic.world import edits, language, verify
from unipic.world.render import render
from unipic.world.scene import sample

GREY = Image.new("RGB", (64, 64), "gray")


@dataclass
class Fixed:
    """Gives these scores, whatever it sees."""

    scores: Sequence[float | None]

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return list(self.scores)


def samples(count: int) -> list[Sample]:
    return [Sample("a star", GREY) for _ in range(count)]


def test_a_sum_is_weighted_and_keeps_its_parts() -> None:
    both = WeightedSum({"a": (0.5, Fixed([1.0, 0.0, 0.25])), "b": (2.0, Fixed([0.1, 0.2, 0.3]))})
    scores = both.score(samples(3))
    assert scores.total == pytest.approx([0.7, 0.4, 0.725])
    assert scores.parts == {"a": [1.0, 0.0, 0.25], "b": [0.1, 0.2, 0.3]}


def test_a_missing_part_makes_the_sum_missing_never_less() -> None:
    both = WeightedSum({"a": (1.0, Fixed([1.0, None, 0.0])), "b": (1.0, Fixed([0.5, 0.5, math.nan]))})
    scores = both.score(samples(3))
    assert scores.total == [1.5, None, None]
    assert scores.parts["b"] == [0.5, 0.5, None]


@pytest.mark.parametrize("given", [[], [1.0], [1.0] * 4])
def test_a_reward_that_gives_another_number_of_scores_is_an_error(given: list[float]) -> None:
    with pytest.raises(UnipicError, match="too many scores or too few"):
        WeightedSum({"a": (1.0, Fixed(given))}).score(samples(3))


def test_the_world_scores_as_its_verifier_judges() -> None:
    rng = np.random.default_rng(0)
    scene = sample(7, "test", size=(64, 64), count=2)
    edit = edits.sample(3, "test", "subject-remove", size=(64, 64))
    prompt, dense = language.prompts(scene, rng), language.dense(scene, rng)
    specs = [prompt, dense, scene, edit]
    good = [render(scene)] * 3 + [render(edit.target)]
    strict, soft = WorldReward(soft=False), WorldReward(soft=True)
    for reward in (strict, soft):
        assert reward.score([Sample("", p, None, s) for s, p in zip(specs, good, strict=True)]) == pytest.approx(
            [1, 1, 1, 1], abs=0.03
        )
    unedited = verify.edit(render(edit.source), render(edit.source), edit)
    assert unedited.sc == 0
    bad = [GREY] * 3 + [render(edit.source)]
    scores = strict.score([Sample("", p, None, s) for s, p in zip(specs, bad, strict=True)])
    assert scores[0] == scores[2] == scores[3] == 0
    assert soft.score([Sample("", GREY, None, "of another source")]) == [None]


def test_a_soft_score_tells_near_from_far() -> None:
    """Two stars where three are asked for are nearer than none; strictly both are wrong."""
    found = 0
    for seed in range(400):
        scene = sample(seed, "train", size=(64, 64), count=3)
        prompt = language.prompt(scene, "counting", np.random.default_rng(seed))
        if prompt is None or prompt.include[0].count != 3:
            continue
        found += 1
        fewer = render(type(scene)(scene.width, scene.height, scene.background, scene.tone, scene.objects[:2]))
        verdict, nothing = judge(prompt, fewer), judge(prompt, GREY)
        assert verdict is not None
        assert nothing is not None
        assert (verdict.right, nothing.right) == (False, False)
        assert 1 > verdict.soft > nothing.soft
    assert found >= 5


def test_brightness_is_the_mean_luma() -> None:
    pictures = [Image.new("RGB", (8, 8), color) for color in ("black", "white", "gray")]
    scores = BrightnessReward().score([Sample("", picture) for picture in pictures])
    assert scores == pytest.approx([0, 1, 128 / 255])


@pytest.mark.parametrize("type", edits.TYPES)
def test_an_edit_s_nearness_tells_near_from_far(type: str) -> None:
    """To one right result, which is 1: a picture that is nearly right is nearer than the source."""
    for seed in range(4):
        edit = edits.sample(seed, "test", type, size=(64, 64))
        right, before = render(edit.target), render(edit.source)
        large = right.resize((192, 192), Image.Resampling.NEAREST)
        pictures = [right, large, Image.blend(before, right, 0.9), before]
        best, scaled, nearly, source = WorldReward(mark="near").score([Sample("", p, before, edit) for p in pictures])
        assert best == scaled == 1
        assert nearly is not None
        assert source is not None
        assert 1 > nearly > source


@pytest.mark.parametrize("type", edits.TYPES)
def test_clean_is_what_an_edit_kept_and_how_well_formed_it_is(type: str) -> None:
    """Whether it was done is another question: a source as it was is clean; one that lost its things is less."""
    edit = edits.sample(3, "test", type, size=(64, 64))
    right, before = render(edit.target), render(edit.source)
    bare = render(replace(edit.source, background="gray" if edit.source.background != "gray" else "mint", objects=()))
    done, undone, lost, grey = WorldReward(mark="clean").score(
        [Sample("", picture, before, edit) for picture in (right, before, bare, GREY)]
    )
    assert done == pytest.approx(1, abs=0.03)
    assert undone == pytest.approx(1, abs=0.03)
    assert grey is not None
    assert lost is not None
    assert lost < 0.9
    assert grey < 0.9


def test_each_thing_lost_makes_an_edit_less_clean() -> None:
    """Where SC is 0 from two losses on, the third still shows."""
    edit = next(
        e
        for e in (edits.sample(i, "test", "subject-add", size=(128, 96)) for i in range(200))
        if len(e.source.objects) == 3
    )
    pictures = [render(replace(edit.target, objects=edit.target.objects[n:])) for n in range(4)]
    samples = [Sample("", picture, render(edit.source), edit) for picture in pictures]
    clean, sc = WorldReward(mark="clean").score(samples), WorldReward(mark="sc").score(samples)
    assert clean == pytest.approx([math.exp(-lost / 4) for lost in range(4)], rel=0.02)
    assert sc[2:] == [0, 0]


def test_of_what_is_no_edit_clean_is_quality() -> None:
    scene = sample(7, "test", size=(64, 64), count=2)
    pictures = [Sample("", picture, None, scene) for picture in (GREY, render(scene))]
    assert WorldReward(mark="clean").score(pictures) == WorldReward(mark="pq").score(pictures)
    assert WorldReward(mark="clean").score([Sample("", GREY, None, "of another source")]) == [None]


def test_of_prompts_the_soft_score_is_how_near_they_are() -> None:
    scene = sample(7, "test", size=(64, 64), count=2)
    near, prompt = WorldReward(mark="near"), language.prompts(scene, np.random.default_rng(0))
    pictures = [Sample("", picture, None, prompt) for picture in (GREY, render(scene))]
    assert near.score(pictures) == WorldReward().score(pictures)
    assert near.score([Sample("", GREY, None, "of another source")]) == [None]


def test_quality_is_of_any_picture_but_semantics_of_edits_alone() -> None:
    scene = sample(7, "test", size=(64, 64), count=2)
    right = render(scene)
    prompt = language.prompts(scene, np.random.default_rng(0))
    edit = edits.sample(0, "test", "color_alter", size=(64, 64))
    spoilt = Image.blend(right, right.rotate(90), 0.5)
    pictures = [Sample("", picture, None, prompt) for picture in (right, spoilt)]
    best, worse = WorldReward(mark="pq").score(pictures)
    assert best == 1
    assert worse is not None
    assert worse < 0.9
    assert WorldReward(mark="sc").score(pictures) == [None, None]
    edited = [Sample("", render(edit.target), render(edit.source), edit)]
    assert WorldReward(mark="pq").score(edited) == WorldReward(mark="sc").score(edited) == [1]
    assert WorldReward(mark="pq").score([Sample("", right, None, "of another source")]) == [None]
