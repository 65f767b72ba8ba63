"""Trajectories: pictures sampled with noise in every step, and what a policy's update needs to know of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from unipic import flow
from unipic.config import Strict
from unipic.models.kontext import KontextTransformer
from unipic.train.randomness import Draws
from unipic.types import Condition


class SamplerConfig(Strict):
    """steps: T. noise_level: a, in the steps that are random. kind: the stochastic equation of Flow-GRPO, or CPS (see
    `flow.cps_step`).

    negative_gradient: whether guidance's negative branch has one; in the reference implementation it has none.
    window: so many steps alone are random, and learnt from; a group shares the way to them, which is sampled once. They
    begin before level window_starts, trained at most; by default in the first half.
    trained: how many steps, the first, are learnt from; the last is nearly deterministic, its log-probability explodes.
    """

    kind: Literal["sde", "cps"] = "sde"
    steps: Annotated[int, Field(ge=2)] = 10
    trained: Annotated[int, Field(ge=1)] = 9
    noise_level: Annotated[float, Field(gt=0)] = 0.7
    guidance_scale: Annotated[float, Field(ge=1)] = 4.5
    window: Annotated[int, Field(ge=1)] | None = None
    window_starts: Annotated[int, Field(ge=1)] | None = None
    negative_gradient: bool = False

    @model_validator(mode="after")
    def noise_is_a_share(self) -> SamplerConfig:
        if self.kind == "cps" and self.noise_level > 1:
            raise ValueError("with cps noise_level is from 0 to 1, where all of the noise is renewed")
        if self.window_starts is not None and self.window_starts > self.trained:
            what = f"windows may begin before level {self.window_starts}, and the first {self.trained} are learnt from"
            raise ValueError(f"{what}: lower window_starts")
        return self


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
class Walked:
    """A step that is learnt from. x, next_x: where it began and led, B×C×H×W. mean, log_prob: of where it led, as the
    policy was then. negative: its v⁻, likewise.
    """

    x: Tensor
    next_x: Tensor
    mean: Tensor
    log_prob: Tensor
    negative: Tensor | None


@dataclass(frozen=True)
class Trajectory:
    """B samples' ways. steps: by their levels, those that are learnt from. end: B×C×H×W."""

    steps: dict[int, Walked]
    end: Tensor


def joined(parts: Sequence[Trajectory]) -> Trajectory:
    """Several as one."""

    def cat(tensors: Iterable[Tensor | None]) -> Any:
        known = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(known) if known else None

    names = ("x", "next_x", "mean", "log_prob", "negative")
    steps = {
        i: Walked(*(cat(getattr(part.steps[i], name) for part in parts) for name in names)) for i in parts[0].steps
    }
    return Trajectory(steps, cat(part.end for part in parts))


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
        """What the reference's KL measures in: s of the step at level i, its deviation without the step's length.

        Of CPS the KL is (mean − reference)², in the units of its log-probability.
        """
        if self.config.kind == "cps":
            return torch.full_like(std, math.sqrt(0.5))
        return std / (self.sigmas[i] - self.sigmas[i + 1]).sqrt()

    def sharpness(self, std: Tensor) -> Tensor:
        """By what a log-probability weighs the square of a distance."""
        return torch.ones_like(std) if self.config.kind == "cps" else 1 / (2 * std**2)

    def velocity(
        self, transformer: KontextTransformer, given: Given, i: int, x: Tensor, negative: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Guided, and the negative branch's own, which has no gradient. negative: that one, where it is known.

        Without any gradient both branches share a forward.
        """
        if given.negative is None:
            return forward(transformer, given.condition, given.references, x, self.sigmas[i]), None
        if negative is None and not torch.is_grad_enabled():
            both = Condition.cat([given.negative, given.condition])
            references = [torch.cat([r, r]) for r in given.references]
            pair = forward(transformer, both, references, torch.cat([x, x]), self.sigmas[i])
            negative, v = pair.chunk(2)
            return negative + self.config.guidance_scale * (v - negative), negative
        if negative is None or self.config.negative_gradient:
            with nullcontext() if self.config.negative_gradient else torch.no_grad():
                negative = forward(transformer, given.negative, given.references, x, self.sigmas[i])
            torch.clear_autocast_cache()  # torch of 2025 would go on with the casts, which have no gradient
        v = forward(transformer, given.condition, given.references, x, self.sigmas[i])
        return negative + self.config.guidance_scale * (v - negative), negative

    def noisy(self, seed: int, step: int) -> range:
        """The levels whose steps are random: all, or a window that begins anywhere in the first half (MixGRPO,
        Flow-GRPO-Fast), where the seed and the rollout's step say.
        """
        config = self.config
        if config.window is None:
            return range(config.steps)
        starts = config.window_starts or min(config.steps // 2, config.trained)
        start = int(np.random.default_rng([seed, step, config.steps]).integers(starts))
        return range(start, min(start + config.window, config.steps))

    @torch.no_grad()
    def follow(self, transformer: KontextTransformer, given: Given, x: Tensor, levels: range) -> Tensor:
        """The flow's own way, without noise. x: B×C×H×W at the first of the levels."""
        for i in levels:
            x = flow.euler(x, self.velocity(transformer, given, i, x)[0], self.sigmas[i], self.sigmas[i + 1])
        return x

    @torch.no_grad()
    def roll(self, transformer: KontextTransformer, given: Given, x: Tensor, draws: Draws, noisy: range) -> Trajectory:
        """B samples from the first noisy level to latents, by each sample's own noise, whoever shares its forward.

        x: B×C×H×W. After the noisy levels the flow is followed.
        """
        steps = {}
        for i in noisy:
            v, negative = self.velocity(transformer, given, i, x)
            drawn = self.step(i, x, v, z=draws.normal(*x.shape[1:]))
            if i < self.config.trained:
                steps[i] = Walked(x, drawn.next, drawn.mean, drawn.log_prob, negative)
            x = drawn.next
        return Trajectory(steps, self.follow(transformer, given, x, range(noisy.stop, self.config.steps)))


def forward(
    transformer: KontextTransformer, condition: Condition, references: Sequence[Tensor], x: Tensor, sigma: Tensor
) -> Tensor:
    """Velocity of B points at one level, or each at its own."""
    dtype = condition.tokens.dtype
    timestep = (sigma * flow.TRAIN_TIMESTEPS).expand(len(x))
    v: Tensor = transformer(x.to(dtype), condition.tokens, condition.pooled, timestep, references=references)
    return v.float()
