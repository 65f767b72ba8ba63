"""The plainest pictures: right by the verifier, without what nobody asked for, and none of the test split's secrets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unipic.data.world import WorldSource
from unipic.world import edits, language, verify
from unipic.world import scene as scenes
from unipic.world.edits import Edit
from unipic.world.language import TAGS, Prompt
from unipic.world.plain import CELL, STEP, plain_edit, plain_scene, plain_source
from unipic.world.render import render
from unipic.world.scene import SIZES, held_out


def prompt(tag: str, seed: int, split: str = "train") -> Prompt:
    rng = np.random.default_rng(seed)
    found = (language.prompt(scenes.sample(s, split), tag, rng) for s in range(1000 * seed, 1000 * seed + 1000))
    return next(p for p in found if p is not None)


@pytest.mark.parametrize("tag", TAGS)
def test_plain_scenes_show_what_a_prompt_names_and_no_more(tag: str) -> None:
    for seed in range(20):
        said, size = prompt(tag, seed), SIZES[seed % len(SIZES)]
        scene = plain_scene(said, size, np.random.default_rng(seed))
        assert scene is not None
        assert (scene.width, scene.height) == size
        assert sorted(o.name for o in scene.objects) == sorted(g.name for g in said.include for _ in range(g.count))
        assert {(o.size, o.texture) for o in scene.objects} == {("large", "filled")}
        assert scene.tone == "light"
        assert not held_out(scene.objects)
        verdict = verify.prompt(render(scene), said.metadata())
        assert verdict.correct, verdict.reasons
        assert verdict.soft == 1


def test_plain_scenes_hold_the_new_combination_that_a_prompt_names() -> None:
    novel = [p for tag in ("colors", "counting", "position") for p in (prompt(tag, s, "test") for s in range(12))]
    for said in (p for p in novel if p.novelty != "ordinary"):
        scene = plain_scene(said, (128, 96), np.random.default_rng(0))
        assert scene is not None
        assert held_out(scene.objects) == {said.novelty}


def test_no_plain_scene_for_what_does_not_fit() -> None:
    crowd = replace(prompt("counting", 0), include=(language.Group("circle", 5),))
    assert plain_scene(crowd, (64, 64), np.random.default_rng(0)) is None
    unseen = replace(prompt("colors", 0), include=(language.Group("circle", color="purple"),))
    assert unseen.novelty == "pair"
    there = plain_scene(unseen, (64, 64), np.random.default_rng(0))
    assert there is not None
    assert there.objects[0].color == "purple"


def test_plain_sources_are_the_same_things_in_cells_of_their_own() -> None:
    made = 0
    for seed in range(60):
        scene = scenes.sample(seed, "train")
        plain = plain_source(scene, np.random.default_rng(seed))
        if plain is None:
            continue
        made += 1
        assert [(o.shape, o.color) for o in plain.objects] == [(o.shape, o.color) for o in scene.objects]
        assert {(o.size, o.texture) for o in plain.objects} == {("large", "filled")}
        assert len({(o.x // CELL, o.y // CELL) for o in plain.objects}) == len(plain.objects)
        assert scenes.fits(plain.objects, plain.width, plain.height)
        assert (plain.width, plain.height, plain.background, plain.tone) == (
            *(scene.width, scene.height, scene.background),
            "light",
        )
        assert not held_out(plain.objects)
    assert made > 50


def test_a_source_has_its_share_of_plain_sources() -> None:
    source = WorldSource(0, types={"color_alter": 1}, plain_sources=0.5)
    draw = source.draw("edit", 0, 200, 128)
    found = [e.spec for e in (source.load(draw, i) for i in range(200)) if isinstance(e.spec, Edit)]
    assert all(verify.edit(render(e.source), render(e.target), e).sc > 9.5 for e in found[:40])
    plain = sum({(o.size, o.texture) for o in e.source.objects} == {("large", "filled")} for e in found)
    assert 80 < plain < 130  # some are by chance


def distance(edit: Edit) -> float:
    """From the free objects to the middles of their regions, in all."""
    middles = [((r[0] + r[2]) / 2, (r[1] + r[3]) / 2) for r in edit.regions]
    places = [(edit.target.objects[i].x, edit.target.objects[i].y) for i in edit.free]
    return float(sum(np.hypot(x - a, y - b) for (x, y), (a, b) in zip(places, middles, strict=True)))


@pytest.mark.parametrize("type", ["subject-add", "motion_change", "compose"])
def test_plain_edits_are_the_same_edits_nearer_to_the_middle(type: str) -> None:
    nearer = 0
    for seed in range(40):
        edit = edits.sample(seed, "train", type)
        plain = plain_edit(edit)
        assert (plain.instruction, plain.source, plain.free) == (edit.instruction, edit.source, edit.free)
        assert not held_out(plain.target.objects)
        verdict = verify.edit(render(edit.source), render(plain.target), plain)
        assert verdict.right, verdict.reasons
        nearer += distance(plain) < distance(edit)
        if type == "motion_change" and plain.target != edit.target:
            (i,) = edit.free
            o = plain.target.objects[i]
            assert any((o.x - s.x) % STEP == 0 == (o.y - s.y) % STEP for s in edit.source.objects)
    assert nearer > 5


def test_other_edits_stay_as_they_are() -> None:
    for seed, type in enumerate(("color_alter", "subject-replace", "tone_transfer", "extract")):
        edit = edits.sample(seed, "train", type)
        assert plain_edit(edit) == edit


def test_the_source_draws_as_many_plain_pictures_as_it_is_asked_for() -> None:
    def plain(share: float) -> float:
        source = WorldSource(5, plain=share, texts={"prompt": 1})
        draw = source.draw("generate", 0, 200, 64)
        asked = [source.load(draw, i) for i in range(200)]
        other = WorldSource(5, texts={"prompt": 1})
        usual = [other.load(draw, i) for i in range(200)]
        assert [e.text for e in asked] == [e.text for e in usual]
        return float(np.mean([a.picture.tobytes() != b.picture.tobytes() for a, b in zip(asked, usual, strict=True)]))

    assert plain(0.0) == 0
    assert plain(1.0) > 0.95
    assert 0.4 < plain(0.5) < 0.6
