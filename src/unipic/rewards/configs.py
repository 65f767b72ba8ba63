"""Rewards as recipes name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from unipic.config import Strict
from unipic.rewards.brightness import BrightnessReward
from unipic.rewards.reward import Reward, WeightedSum
from unipic.rewards.world import WorldReward


class WorldRewardConfig(Strict):
    """The embedded world's verifier. soft: of prompts how near a picture is to right, rather than 1 or 0."""

    kind: Literal["world"]
    weight: float = 1.0
    soft: bool = True

    def open(self) -> Reward:
        return WorldReward(self.soft)


class BrightnessRewardConfig(Strict):
    """See `BrightnessReward`."""

    kind: Literal["brightness"]
    weight: float = 1.0

    def open(self) -> Reward:
        return BrightnessReward()


RewardConfig = Annotated[WorldRewardConfig | BrightnessRewardConfig, Field(discriminator="kind")]
Rewards = dict[str, RewardConfig]
"""By a name of the user's"""


def opened(rewards: Mapping[str, WorldRewardConfig | BrightnessRewardConfig]) -> WeightedSum:
    return WeightedSum({name: (reward.weight, reward.open()) for name, reward in rewards.items()})
