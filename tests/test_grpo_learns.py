"""Reinforcement learns what its reward asks for; and when that is not what was meant, the alarm sounds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.runs import stage_from
from unipic.train.loop import train

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import bandit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut"),
]


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bandit.arms(tmp_path_factory.mktemp("bandit"))


@pytest.mark.parametrize("seed", range(5))
def test_a_bandit_of_two_prompts_is_solved(arms: Path, seed: int, tmp_path: Path) -> None:
    """From one right arm in four to ≥ 95 % of the best reward within 100 updates."""
    rewards = bandit.solve(arms, tmp_path, seed).rewards
    assert rewards[0] < 0.6
    assert len(rewards) <= 100
    assert rewards[-1] >= 0.95


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reward", ["brightness", "world"])
def test_the_alarm_is_for_the_hackable_reward_alone(reward: str, seed: int, tmp_path: Path) -> None:
    """Brighter pictures show less and less of what their prompts say."""
    source = {"kind": "world", "texts": {"prompt": 1}}
    data = {"sources": [source], "tasks": ["generate"], "phases": [{"resolution": 64}]}
    raw = {"model": "tiny-kontext-base", "steps": 40, "seed": seed, "data": data, "rewards": {"it": {"kind": reward}}}
    raw |= {"held_out": {"strict": {"kind": "world", "soft": False}}, "log_every": 1, "batch": 32, "group": 16}
    raw |= {"sampler": {"steps": 6, "trained": 5, "guidance_scale": 2}}
    optimizer = bandit.REINFORCEMENT["optimizer"] | {"lr": 3e-3}
    train(stage_from(bandit.REINFORCEMENT | raw | {"optimizer": optimizer}), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any(line.get("alarm") for line in lines) == (reward == "brightness")
