"""Reinforcement learns what its reward asks for; and when that is not what was meant, the alarm sounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runs import ONE, stage_from
from tests.test_grpo import alone
from unipic.rewards.reward import Sample
from unipic.train.grpo import GrpoStage
from unipic.train.loop import advance, train
from unipic.train.optim import Weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut"),
]
UPDATES, BATCH = 100, 16
RAW: dict[str, Any] = {
    "stage": "grpo",
    "model": "tiny-kontext",
    "steps": UPDATES,
    "batch": BATCH,
    "group": 8,
    "updates": 1,
    "lora": {"rank": 32, "alpha": 64},
    "sampler": {"steps": 4, "trained": 3, "guidance_scale": 3.5},
    "optimizer": {"lr": 5e-3, "betas": [0.9, 0.999], "weight_decay": 0.0, "schedule": "constant"},
    "beta": 0,
    "ema": None,
    "rewards": {"bright": {"kind": "brightness"}},
    "show": {"count": 0},
    "device": "cpu",
}


class Bandit:
    """One prompt's best picture is all black, the other's all white: 1 for it, less by the mean difference to it."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.best = dict(zip(prompts, (0.0, 255.0), strict=True))

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        off = [np.abs(np.asarray(s.picture, float) - self.best[s.text]).mean() / 255 for s in samples]
        return [float(1 - each) for each in off]


@pytest.mark.xfail(reason="it settles at 0.80: the embedded model learns the white picture, and hardly the black one")
@pytest.mark.parametrize("seed", range(5))
def test_a_bandit_of_two_prompts_is_solved(seed: int) -> None:
    """≥ 95 % of the best reward within 100 updates."""
    data = {"sources": [{"kind": "world", "limit": 2}], "tasks": ["generate"], "phases": [{"resolution": 64}]}
    stage = stage_from(RAW | {"seed": seed, "data": data, "drop_text": 0})
    assert isinstance(stage, GrpoStage)
    stage.place(ONE)
    stage.rewards = alone(Bandit(sorted({e.text for e in stage.batch(0, range(BATCH))[0].prompts})))
    weights = Weights(stage.trained, stage.config.optimizer, None)
    rewards = []
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
