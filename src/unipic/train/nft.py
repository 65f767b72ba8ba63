"""DiffusionNFT (Zheng et al. 2025): reinforcement on the forward process, without guidance and without likelihoods.

Rollouts follow the flow. Each picture is noised anew, and the velocity is drawn towards it as much as it was better
than its group, and away from it as much as it was worse: both are mixtures of the present velocity and the rollout's.

Unlike the paper's, a group is noised alike, and rollouts are the present model's, not a slow average's. A recipe may
have them guided; what learns is the velocity without guidance all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from unipic import flow
from unipic.train.flow_loss import times
from unipic.train.grpo import Groups, GrpoConfig, GrpoStage, Part
from unipic.train.loop import Update
from unipic.train.lora import without_adapters
from unipic.train.policy import negative_aware_losses
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.rollout import SamplerConfig, forward

NOISED = 2**63  # from this number on are the streams that pictures are noised by; those below are the rollouts'


class FollowerConfig(SamplerConfig):
    """Without guidance, as the paper has it, unless a recipe asks for it."""

    guidance_scale: Annotated[float, Field(ge=1)] = 1.0


class NftConfig(GrpoConfig):
    """As `grpo`; of its sampler there are only steps and guidance, of its loss beta: clip, kl, and of the sampler
    trained, window_starts, noise_level and negative_gradient say nothing.

    levels: noise levels that each picture is learnt from at. mixture: how far the present velocity counts in what is
    drawn to the picture and away from it (the paper's β).
    """

    stage: Literal["nft"]  # type: ignore[assignment]
    levels: Annotated[int, Field(ge=1)] = 9
    mixture: Annotated[float, Field(gt=0, le=1)] = 1.0
    sampler: FollowerConfig = FollowerConfig()
    beta: Annotated[float, Field(ge=0)] = 1e-4

    @model_validator(mode="after")
    def rollouts_follow_the_flow(self) -> NftConfig:
        if self.guard or self.sampler.window or self.sampler.kind != "sde":
            raise ValueError("sampler.kind, sampler.window and guard are of random steps, which nft has none of")
        return self


class NftStage(GrpoStage):
    """Rollouts as `GrpoStage` has them, another loss."""

    config: NftConfig

    def rollout(self, micros: Sequence[Groups], step: int, processes: Processes) -> list[Update]:
        if self.config.updates > 1:
            self.before = {name: p.detach().clone() for name, p in self._adapters()}
        return super().rollout(micros, step, processes)

    def noisy(self, step: int) -> range:
        return range(0)

    def learnt(self) -> Sequence[int]:
        return range(self.config.levels)

    def losses(self, micro: Part, draws: Draws) -> Tensor:
        config, at = self.config, list(micro.at)
        given, x0 = self.rolled.given.at(at), self.rolled.trajectory.end[at]
        # Alike for a group, unlike the paper: its advantages sum to 0, and what is common to errors nearly cancels.
        firsts = [number - number % config.group for number in micro.numbers]
        draws = Draws(config.seed, [NOISED + first * config.levels + micro.step for first in firsts], self.device)
        noise, t = draws.normal(*x0.shape[1:]), times(config.times, draws)
        x = flow.interpolate(x0, noise, t)
        v_then = v_before = None
        with torch.no_grad():
            if not micro.fresh:
                with self._as_it_rolled():
                    v_then = forward(self.transformer, given.condition, given.references, x, t)
            if config.beta:
                with without_adapters(self.transformer):
                    v_before = forward(self.transformer, given.condition, given.references, x, t)
        # The last: adapters that were swapped after it would not be those of its gradient.
        with self.learning():
            v = forward(self.transformer, given.condition, given.references, x, t)
        v_then = v.detach() if v_then is None else v_then
        advantage = self.rolled.advantages[at].nan_to_num()
        losses = negative_aware_losses(
            v, v_then, x, x0, t, advantage, mixture=config.mixture, limit=config.advantage_limit
        )
        weights = torch.tensor(micro.weights, device=self.device)
        if v_before is not None:
            drift = (v - v_before).square().flatten(1).mean(1)
            losses = losses + config.beta * drift
            self.notes.add("kl", drift[weights > 0])
            self.notes.add("velocity_drift", (v.flatten(1).norm(dim=1) / v_before.flatten(1).norm(dim=1))[weights > 0])
        return losses * weights

    def _adapters(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, p) for name, p in self.transformer.named_parameters() if p.requires_grad)

    @contextmanager
    def _as_it_rolled(self) -> Iterator[None]:
        """The adapters as they were in the rollout; copied in place, for sharded ones are read from where they lie."""
        now = {name: p.detach().clone() for name, p in self._adapters()}
        self._set(self.before)
        try:
            yield
        finally:
            self._set(now)

    def _set(self, adapters: Mapping[str, Tensor]) -> None:
        for name, p in self._adapters():
            p.copy_(adapters[name])
        torch.clear_autocast_cache()  # it would go on with casts of what was there before
