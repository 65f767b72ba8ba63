"""From a transformer to a velocity, and from a velocity to a latent.

`velocity(x, sigma)` is all that a sampler, or a reinforcement loss, sees of a model.
Generation is editing with no reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unipic import flow
from unipic.types import Condition

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x: B×C×H×W, sigma: scalar) → velocity: B×C×H×W"""


class Transformer(Protocol):
    """What `guided` asks of a model; `models.kontext.KontextTransformer` is one."""

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        *,
        references: Sequence[Tensor] = (),
        skip_layers: Sequence[int] = (),
    ) -> Tensor: ...


class SkipLayers(NamedTuple):
    """Skip-layer guidance in the sampler's terms: `steps` are the noise levels it acts at."""

    layers: Sequence[int]
    scale: float
    sigmas: frozenset[float]


def guided(
    transformer: Transformer,
    condition: Condition,
    negative: Condition | None = None,
    references: Sequence[Tensor] = (),
    *,
    scale: float | Tensor = 1.0,
    interval: tuple[float, float] | None = None,
    skip: SkipLayers | None = None,
) -> Velocity:
    """The velocity under classifier-free guidance: v⁻ + scale·(v⁺ − v⁻).

    condition, negative: B each; without a negative there is no guidance. references: latents B×C×h×w, of any size, seen
    by the negative branch too. scale: a number, or B×1×1×1. Outside `interval` (σ, low and high) the condition alone
    speaks. Each call runs [negative; condition] as one forward, the published order.

    The published code forgets the references in the skipped-layers branch, so that an edit is pushed away from a mere
    generation; here they stay.
    """

    def forward(x: Tensor, sigma: Tensor, cond: Condition, copies: int, skip_layers: Sequence[int] = ()) -> Tensor:
        dtype = cond.tokens.dtype
        batch = torch.cat([x.to(dtype)] * copies)
        timestep = (sigma * flow.TRAIN_TIMESTEPS).expand(len(batch))
        doubled = [torch.cat([r] * copies) for r in references]
        return transformer(batch, cond.tokens, cond.pooled, timestep, references=doubled, skip_layers=skip_layers)

    pair = None if negative is None else Condition.cat([negative, condition])

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        if pair is None or (interval is not None and not interval[0] <= float(sigma) <= interval[1]):
            return forward(x, sigma, condition, 1)
        v_negative, v = forward(x, sigma, pair, 2).chunk(2)
        guided_v = v_negative + scale * (v - v_negative)
        if skip is not None and float(sigma) in skip.sigmas:
            guided_v = guided_v + skip.scale * (v - forward(x, sigma, condition, 1, skip.layers))
        return guided_v

    return velocity


class Step(NamedTuple):
    """What a callback is told after each step: the latent x at noise level sigma, and the estimate of its end."""

    number: int
    total: int
    sigma: float
    x: Tensor
    x0: Tensor


def sample(velocity: Velocity, noise: Tensor, sigmas: Tensor, on_step: Callable[[Step], None] | None = None) -> Tensor:
    """Follow the flow from noise (B×C×H×W) to a latent by Euler's method, in float32.

    sigmas: T + 1 levels, falling. The published code rounds x to the model's precision after each step; keeping float32
    costs nothing and loses nothing (in float32 models the two are the same).
    """
    x = noise.float()
    sigmas = sigmas.to(noise.device)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        v = velocity(x, sigma)
        x0 = flow.predicted_x0(x, v, sigma) if on_step else x
        x = flow.euler(x, v, sigma, sigma_next)
        if on_step:
            on_step(Step(i + 1, len(sigmas) - 1, float(sigma_next), x, x0))
    return x
