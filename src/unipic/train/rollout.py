"""Trajectories: pictures sampled with noise in every step, and what a policy's update needs to know of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from unipic import flow
from unipic.config import Strict
from unipic.models.kontext import KontextTransformer
from unipic.train.randomness import Draws
from unipic.types import Condition


class SamplerConfig(Strict):
    """steps: T. noise_level: a. kind: the stochastic equation of Flow-GRPO, or CPS (see `flow.cps_step`).

    negative_gradient: whether guidance's negative branch has one; in the reference implementation it has none.
    trained: how many steps, the first, are learnt from; the last is nearly deterministic, its log-probability explodes.
    """

    kind: Literal["sde", "cps"] = "sde"
    steps: Annotated[int, Field(ge=2)] = 10
    trained: Annotated[int, Field(ge=1)] = 9
    noise_level: Annotated[float, Field(gt=0)] = 0.7
    guidance_scale: Annotated[float, Field(ge=1)] = 4.5
    negative_gradient: bool = False


@dataclass(frozen=True)
class Given:
    """What the transformer is told of B samples. negative: of their guidance; None without any. references: B×C×h×w."""

    condition: Condition
    negative: Condition | None
    references: Sequence[Tensor]

    def at(self, which: slice | list[int]) -> Given:
        """Of some of them."""
        negative = None if self.negative is None else _of(self.negative, which)
        return Given(_of(self.condition, which), negative, [r[which] for r in self.references])


def _of(condition: Condition, which: slice | list[int]) -> Condition:
    return Condition(condition.tokens[which], condition.pooled[which])


@dataclass(frozen=True)
class Trajectory:
    """B samples' ways. points: of every level up to where training ends, T'+1 of B×C×H×W. negatives: v⁻ at the first
    T' of them, as it was then. log_probs: T' of B. end: B×C×H×W.
    """

    points: list[Tensor]
    negatives: list[Tensor | None]
    log_probs: list[Tensor]
    end: Tensor


def joined(parts: Sequence[Trajectory]) -> Trajectory:
    """Several as one."""

    def cat(columns: Iterable[Sequence[Tensor]]) -> list[Tensor]:
        return [torch.cat(list(column)) for column in zip(*columns, strict=True)]

    guided = parts[0].negatives[0] is not None
    negatives: list[Tensor | None] = [None] * len(parts[0].negatives)
    if guided:
        negatives = [*cat([v for v in part.negatives if v is not None] for part in parts)]
    ends = torch.cat([part.end for part in parts])
    return Trajectory(cat(p.points for p in parts), negatives, cat(p.log_probs for p in parts), ends)


class Sampler:
    """The steps of one schedule. sigmas: T + 1 levels."""

    def __init__(self, config: SamplerConfig, shift: float, device: torch.device) -> None:
        self.config = config
        self.sigmas = flow.sigmas(config.steps, shift).to(device)

    def step(self, i: int, x: Tensor, v: Tensor, next_x: Tensor | None = None, z: Tensor | None = None) -> flow.Drawn:
        """From level i to the next: to next_x, or to where the noise z leads. x, v, next_x, z: B×C×H×W."""
        here, there, a = self.sigmas[i], self.sigmas[i + 1], self.config.noise_level
        if self.config.kind == "cps":
            return flow.cps_step(x, v, sigma=here, sigma_next=there, noise_level=a, next_x=next_x, z=z)
        highest = self.sigmas[1]
        return flow.sde_step(x, v, sigma=here, sigma_next=there, sigma_max=highest, noise_level=a, next_x=next_x, z=z)

    def deviation(self, i: int, std: Tensor) -> Tensor:
        """s of the step at level i: its deviation without the step's length, as the reference's KL has it."""
        return std if self.config.kind == "cps" else std / (self.sigmas[i] - self.sigmas[i + 1]).sqrt()

    def velocity(
        self, transformer: KontextTransformer, given: Given, i: int, x: Tensor, negative: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Guided, and the negative branch's own, which has no gradient. negative: that one, where it is known."""
        if given.negative is None:
            return forward(transformer, given.condition, given.references, x, self.sigmas[i]), None
        if negative is None or self.config.negative_gradient:
            with nullcontext() if self.config.negative_gradient else torch.no_grad():
                negative = forward(transformer, given.negative, given.references, x, self.sigmas[i])
        v = forward(transformer, given.condition, given.references, x, self.sigmas[i])
        return negative + self.config.guidance_scale * (v - negative), negative

    @torch.no_grad()
    def roll(self, transformer: KontextTransformer, given: Given, draws: Draws, shape: Sequence[int]) -> Trajectory:
        """B samples from noise to latents. shape: C×H×W. Noise is each sample's own, whoever shares its forward."""
        x = draws.normal(*shape)
        points, negatives, log_probs = [x], list[Tensor | None](), list[Tensor]()
        for i in range(self.config.steps):
            v, negative = self.velocity(transformer, given, i, x)
            drawn = self.step(i, x, v, z=draws.normal(*shape))
            x = drawn.next
            if i < self.config.trained:
                points.append(x)
                negatives.append(negative)
                log_probs.append(drawn.log_prob)
        return Trajectory(points, negatives, log_probs, x)


def forward(
    transformer: KontextTransformer, condition: Condition, references: Sequence[Tensor], x: Tensor, sigma: Tensor
) -> Tensor:
    """Velocity of B points at one level."""
    dtype = condition.tokens.dtype
    timestep = (sigma * flow.TRAIN_TIMESTEPS).expand(len(x))
    v: Tensor = transformer(x.to(dtype), condition.tokens, condition.pooled, timestep, references=references)
    return v.float()
