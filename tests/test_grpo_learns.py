"""Reinforcement learns what its reward asks for; and when that is not what was meant, the alarm sounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL.Image import Image

from tests.runs import ONE, stage_from
from tests.test_grpo import alone
from unipic.data.source import Example
from unipic.rewards.reward import Sample
from unipic.train.grpo import GrpoStage
from unipic.train.loop import advance, train
from unipic.train.optim import Weights
from unipic.world.plain import plain_scene
from unipic.world.render import render
from unipic.world.scene import Scene

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut"),
]
UPDATES, BATCH = 100, 32
NEAR = 32  # grey levels within which a pixel is as in the best picture
RAW: dict[str, Any] = {
    "stage": "grpo",
    "model": "tiny-kontext",
    "steps": UPDATES,
    "batch": BATCH,
    "group": 16,
    "updates": 1,
    "lora": {"rank": 32, "alpha": 64},
    "sampler": {"steps": 6, "trained": 5, "guidance_scale": 2},
    "optimizer": {"lr": 3e-3, "betas": [0.9, 0.999], "weight_decay": 0.0, "schedule": "constant"},
    "beta": 0,
    "ema": None,
    "rewards": {"bright": {"kind": "brightness"}},
    "show": {"count": 0},
    "device": "cpu",
}


class Bandit:
    """Of each prompt one of all right pictures is the best: the share of pixels that are as there."""

    def __init__(self, prompts: Sequence[Example], seed: int) -> None:
        self.best = {e.text: _pixels(render(_plain(e, np.random.default_rng(seed)))) for e in prompts}

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        off = [np.abs(_pixels(s.picture) - self.best[s.text]).max(axis=2) for s in samples]
        return [float((each <= NEAR).mean()) for each in off]


def _plain(example: Example, rng: np.random.Generator) -> Scene:
    scene = plain_scene(example.spec, example.picture.size, rng)
    assert scene is not None
    return scene


def _pixels(picture: Image) -> npt.NDArray[np.int64]:
    return np.asarray(picture, np.int64)


@pytest.mark.xfail(reason="from 0.19 it settles at 0.91 (seed 0): one of the two objects stays in another cell")
@pytest.mark.parametrize("seed", range(5))
def test_a_bandit_of_two_prompts_is_solved(seed: int) -> None:
    """≥ 95 % of the best reward within 100 updates."""
    source = {"kind": "world", "texts": {"prompt": 1}, "max_objects": 1, "limit": 2}
    data = {"sources": [source], "tasks": ["generate"], "phases": [{"resolution": 64}]}
    stage = stage_from(RAW | {"seed": seed, "data": data, "drop_text": 0})
    assert isinstance(stage, GrpoStage)
    stage.place(ONE)
    stage.rewards = alone(Bandit(stage.batch(0, range(BATCH))[0].prompts, seed))
    weights = Weights(stage.trained, stage.config.optimizer, None)
    rewards: list[float] = []
    while len(rewards) < UPDATES and max(rewards, default=0.0) < 0.95:
        step = len(rewards)
        rewards.append(advance(stage, weights, stage.batch(step, range(BATCH)), step, ONE)["reward"])
    assert rewards[0] < 0.7
    assert rewards[-1] >= 0.95


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reward", ["brightness", "world"])
def test_the_alarm_is_for_the_hackable_reward_alone(reward: str, seed: int, tmp_path: Path) -> None:
    """Brighter pictures show less and less of what their prompts say."""
    data = {
        "sources": [{"kind": "world", "texts": {"prompt": 1}}],
        "tasks": ["generate"],
        "phases": [{"resolution": 64}],
    }
    raw = {"steps": 40, "batch": 32, "seed": seed, "data": data, "rewards": {"it": {"kind": reward}}}
    raw |= {"held_out": {"world": {"kind": "world"}}, "log_every": 1}
    train(stage_from(RAW | raw), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any(line.get("alarm") for line in lines) == (reward == "brightness")
