"""The embedded models are trained: what each part has learnt shows on a few scenes that training left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import unipic
from unipic import UniPic
from unipic.evals import world
from unipic.models.find import find_model
from unipic.models.vae import VAE, load_vae
from unipic.rewards.edit_reward import EditReward
from unipic.rewards.reward import Sample
from unipic.rewards.world import judge
from unipic.world import scene as scenes
from unipic.world.edits import sample
from unipic.world.render import render

MOST_BYTES = 40_000_000
COUNT = 24


def test_they_are_within_forty_megabytes() -> None:
    assets = Path(unipic.__file__).parent / "assets"
    assert sum(p.stat().st_size for p in assets.rglob("*") if p.is_file()) < MOST_BYTES


def test_both_draw_the_same_latents() -> None:
    hashes = [[f.hashes.sha256(p) for p in f.weights("vae")] for f in map(find_model, ("tiny", "tiny-kontext"))]
    assert hashes[0] == hashes[1] != []


@torch.no_grad()
def test_the_autoencoder_copies_scenes() -> None:
    vae = VAE(load_vae(find_model("tiny"), torch.float32))
    drawn = [scenes.sample(i, "test", size=(64, 64)) for i in range(COUNT)]
    pixels = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in drawn])).permute(0, 3, 1, 2)
    copies = [vae.decode(latent) for latent in torch.split(vae.latents(pixels), 1)]
    right = [judge(scene, copy) for scene, copy in zip(drawn, copies, strict=True)]
    assert sum(verdict is not None and verdict.right for verdict in right) >= 0.75 * COUNT


def test_it_understands_scenes() -> None:
    """Questions of nine kinds, of which guessing answers less than a fifth."""
    system = UniPic.from_pretrained("tiny")
    items = [item for item in world.items(0, COUNT) if item.part == "understanding"]
    right = [world.judge(item, system.describe(item.picture, item.text)).right for item in items if item.picture]
    assert len(right) == COUNT
    assert sum(right) >= 0.4 * COUNT


@pytest.mark.parametrize("model", ["tiny", "tiny-kontext"])
def test_an_edit_keeps_what_it_is_given(model: str) -> None:
    """Another background: more is right of the result than of a picture made without its source."""
    system, marks = UniPic.from_pretrained(model), []
    for i in range(4):
        edit = sample(i, "test", "background_change", size=(64, 64))
        source = render(edit.source)
        results = [
            system.edit(source, edit.instruction, image_size=64)[0],
            system.generate(edit.instruction, width=64, height=64)[0],
        ]
        verdicts = [judge(edit, result) for result in results]
        marks.append([v.marks["sc"] for v in verdicts if v is not None])
    edited, made = np.mean(marks, axis=0)
    assert edited > made + 1


@pytest.mark.parametrize("model", ["tiny", "tiny-kontext"])
def test_it_draws_what_a_simple_prompt_says(model: str) -> None:
    """One thing, with its colour or without; some of them are combinations that training never showed."""
    system = UniPic.from_pretrained(model)
    simple = [i for i in world.items(0, COUNT * 3, ("geneval",)) if i.group in ("single_object", "colors")]
    right = [world.judge(i, system.generate(i.text, seed=n)[0]).right for n, i in enumerate(simple[:COUNT])]
    assert sum(right) >= 0.5 * COUNT


def test_its_reward_tells_a_right_edit_from_one_that_was_left_undone() -> None:
    reward, right = EditReward("tiny-edit-reward", device="cpu"), 0
    for i in range(COUNT):
        edit = sample(i, "test", size=(64, 64))
        source, target = render(edit.source), render(edit.target)
        undone, done = reward.score([Sample(edit.instruction, result, source) for result in (source, target)])
        assert undone is not None
        assert done is not None
        right += done > undone
    assert right >= 0.8 * COUNT
