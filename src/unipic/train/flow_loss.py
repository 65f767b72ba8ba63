"""The loss of rectified flow: the velocity at a random point of each sample's path (paper §3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from unipic import flow
from unipic.config import Strict
from unipic.train.randomness import Draws

CHANGED = 0.1  # mean square over channels, of latents of unit variance, from which a place is another


class TimesConfig(Strict):
    """t: logit-normal, as in SD3; shift > 1 moves it towards noise."""

    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0
    shift: Annotated[float, Field(gt=0)] = 1.0


def times(config: TimesConfig, draws: Draws) -> Tensor:
    """A noise level for each sample."""
    return flow.shifted(flow.logit_normal(draws.normal(), config.mean, config.std), config.shift)


def flow_losses(
    velocity: Callable[[Tensor, Tensor], Tensor], x0: Tensor, t: Tensor, noise: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean squared error of each sample's velocity against ε − x0, in float32.

    velocity: (x: B×C×H×W, t: B) → B×C×H×W. x0, noise: B×C×H×W. t: B. weights: of places, B×1×H×W. Returns B.
    """
    v = velocity(flow.interpolate(x0, noise, t), t)
    errors = (v.float() - (noise - x0)).square()
    return (errors if weights is None else errors * weights).flatten(1).mean(1)


def change_weights(x0: Tensor, source: Tensor) -> Tensor:
    """1 where an edit's latents are those of its source, 1 + log₂(all / changed) where they differ; B×1×H×W.

    Most of an edit is a copy: what is asked for, in a few places, would be the least of the loss (Lin et al.,
    UniWorld-V1, 2025). x0, source: B×C×H×W, of about unit variance.
    """
    changed = (x0 - source).square().mean(dim=1, keepdim=True) > CHANGED
    share = changed.float().mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(changed, 1 - share.clamp(min=1 / changed[0].numel()).log2(), 1.0)
