"""The loss of rectified flow: the velocity at a random point of each sample's path (paper §3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import Tensor

from unipic import flow
from unipic.config import Strict
from unipic.train.randomness import Draws


class TimesConfig(Strict):
    """t: logit-normal, as in SD3; shift > 1 moves it towards noise."""

    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0
    shift: Annotated[float, Field(gt=0)] = 1.0


def times(config: TimesConfig, draws: Draws) -> Tensor:
    """A noise level for each sample."""
    return flow.shifted(flow.logit_normal(draws.normal(), config.mean, config.std), config.shift)


def flow_losses(velocity: Callable[[Tensor, Tensor], Tensor], x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of each sample's velocity against ε − x0, in float32.

    velocity: (x: B×C×H×W, t: B) → B×C×H×W. x0, noise: B×C×H×W. t: B. Returns B.
    """
    v = velocity(flow.interpolate(x0, noise, t), t)
    return (v.float() - (noise - x0)).square().flatten(1).mean(1)
