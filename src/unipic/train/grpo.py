"""Flow-GRPO: the DiT's adapters learn from the rewards of its own pictures (paper §3.2; Liu et al. 2025).

A step is a rollout and the updates on it: groups of pictures of the same prompt are sampled with noise, scored, and
compared within their group; what was better than its group becomes likelier, near to what the model was before. For
Kontext and MetaQuery, for generation and editing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unipic import flow
from unipic.data.source import Example, Task
from unipic.errors import BadInput, TryLater
from unipic.models.find import find_model
from unipic.models.kontext import KontextTransformer
from unipic.models.placement import Placement
from unipic.models.spec import ModelSpec
from unipic.models.text import T5_LENGTH
from unipic.rewards.configs import MAY_BE_AWAY, RewardConfig, Rewards, of_another, of_task, opened
from unipic.rewards.configs import check as check_rewards
from unipic.rewards.reward import Sample, Scores
from unipic.train.batches import Batches, pictures_of
from unipic.train.dit import DitConfig
from unipic.train.joint import JointConfig, JointStage, TuneConfig
from unipic.train.kontext import KontextConfig, KontextStage
from unipic.train.log import Shown
from unipic.train.loop import Micro, Update
from unipic.train.lora import LoraConfig, folded, merged, without_adapters
from unipic.train.metaquery import Reference
from unipic.train.notes import Notes, totals
from unipic.train.optim import EmaConfig, OptimizerConfig, Tensors
from unipic.train.policy import Deviation, advantages, clipped_losses, normalised
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.rollout import Given, Sampler, SamplerConfig, Trajectory, joined
from unipic.types import Condition


class AdamConfig(OptimizerConfig):
    """As the paper's §4.1 has it for reinforcement; a recipe that names some of it keeps the rest."""

    lr: Annotated[float, Field(gt=0, le=100)] = 3e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"


class RareEmaConfig(EmaConfig):
    """As the reference implementation has it."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    every: Annotated[int, Field(ge=1)] = 8


class GrpoConfig(DitConfig):
    """model: a Kontext or MetaQuery folder. batch: pictures of a rollout, in groups of `group`; they are learnt from in
    `updates` updates (paper: 256, 16; the reference implementation's two).

    rollout_batch: pictures sampled in one forward. merge: adapters into the weights while sampling, in one process;
    None: in float32, where the ratio of a fresh rollout stays within 1e-5 of 1. There also while learning, unless
    layers are computed twice. In bf16 it would not, and `grpo` refuses to merge.
    advantage: the deviation that rewards are measured in (see `policy.advantages`), within ±advantage_limit. clip: of
    the ratio; log-probabilities are averaged over dimensions, so it is close to 1. guard: see `policy.normalised`.
    beta: weight of the KL to the model without adapters. kl: the reference implementation's form, to which the paper's
    0.04 belongs, or the exact one. rewards: by name; those that are of a task at all are summed by their weights.
    held_out: others, which are only watched.
    """

    stage: Literal["grpo"]
    model: str = "tiny"
    mllm: str | None = None
    reference: Reference = "both"
    max_sequence_length: Annotated[int, Field(ge=1, le=T5_LENGTH)] = T5_LENGTH
    lora: LoraConfig = LoraConfig()
    batch: Annotated[int, Field(ge=4)] = 256
    group: Annotated[int, Field(ge=4)] = 16
    updates: Annotated[int, Field(ge=1)] = 2
    rollout_batch: Annotated[int, Field(ge=1)] | None = None
    merge: bool | None = None
    sampler: SamplerConfig = SamplerConfig()
    advantage: Deviation = "group"
    advantage_limit: Annotated[float, Field(gt=0)] = 5.0
    clip: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    guard: bool = False
    beta: Annotated[float, Field(ge=0)] = 0.04
    kl: Literal["reference", "exact"] = "reference"
    optimizer: AdamConfig = AdamConfig()
    ema: RareEmaConfig | None = RareEmaConfig()
    rewards: Annotated[Rewards, Field(min_length=1)]
    held_out: Rewards = Field(default_factory=dict)

    @model_validator(mode="after")
    def groups_are_whole(self) -> GrpoConfig:
        if self.batch % self.group:
            raise ValueError(f"a batch of {self.batch} is not a number of groups of {self.group}")
        if self.batch % self.updates:
            raise ValueError(f"a batch of {self.batch} is not shared equally by {self.updates} updates")
        if self.cells or self.weigh_changes:
            raise ValueError("cells and weigh_changes are of learning from pictures that are given, not from rewards")
        if self.noises > 1:
            raise ValueError("noises are of learning from pictures that are given, not from rewards")
        if self.sampler.trained > self.sampler.steps and self.stage == "grpo":
            raise ValueError(f"{self.sampler.trained} steps cannot be learnt from where there are {self.sampler.steps}")
        if self.sampler.kind == "cps" and self.sampler.trained == self.sampler.steps and self.stage == "grpo":
            raise ValueError("with cps the last step has no noise, and nothing can be learnt from it")
        return self


@dataclass(frozen=True)
class Groups(Micro):
    """A share of a rollout: samples, each of which prompt. prompts: their examples, of one task and size."""

    prompts: tuple[Example, ...]
    of: tuple[int, ...]


@dataclass(frozen=True)
class Part(Micro):
    """Samples at one level of their trajectories. at: which of the rollout's samples. weights: 0 for those that only
    keep company. fresh: whether nothing was learnt since the rollout.
    """

    step: int
    at: tuple[int, ...]
    weights: tuple[float, ...]
    fresh: bool


@dataclass
class Rolled:
    """What a rollout leaves for its updates."""

    given: Given
    trajectory: Trajectory
    advantages: Tensor


Pending = tuple[Future[Scores], Future[Scores]]
"""By the rewards, and by those that are held out"""


class GrpoStage:
    """A DiT with adapters, and what speaks to it, as another stage has them; here are the rollouts and the loss."""

    def __init__(self, config: GrpoConfig) -> None:
        self.config = config
        self.base = checked(config)
        self.groups = Batches(config.data, config.seed, config.batch // config.group, None)
        self.rewards, self.held_out = opened(config.rewards), opened(config.held_out)
        groups = (config.rewards, config.held_out)
        self.unasked = {task: [of_another(group, task) for group in groups] for task in config.data.tasks}
        self.notes = Notes(config.rewards, config.held_out)

    def place(self, processes: Processes) -> None:
        self.base.place(processes)
        self.device = processes.device
        exact = processes.dtype == torch.float32
        self.merges = processes.count == 1 and (exact if self.config.merge is None else self.config.merge)
        self.folds = self.merges and exact and not self.config.gradient_checkpointing
        self.autocast = processes.autocast  # rollouts compute as updates do, or a fresh ratio is not 1
        self.sampler = Sampler(self.config.sampler, ModelSpec(self.base.dit_folder).shift, self.device)

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        return self.base.trained

    @property
    def transformer(self) -> KontextTransformer:
        return self.base.transformer

    def batch(self, step: int, share: range) -> list[Groups]:
        """The prompts of a share, each once."""
        size = self.config.group
        prompts = range(share.start // size, -(-share.stop // size))
        examples = self.groups.examples(step, prompts)
        of = tuple(place // size - prompts.start for place in share)
        numbers = tuple(step * self.config.batch + place for place in share)
        return [Groups(numbers, tuple(examples[i].id for i in of), tuple(examples), of)]

    # --- rollout ------------------------------------------------------------------------------------------------------

    def rollout(self, micros: Sequence[Groups], step: int, processes: Processes) -> list[Update]:
        (groups,) = micros
        self.notes.clear()
        self.task = groups.prompts[0].task
        given = self._given(groups)
        with merged(self.transformer) if self.merges else nullcontext():
            trajectory, pending = self._sampled(groups, given, self.noisy(step))
        with processes.together():
            scored = [(future.result(), held.result()) for future, held in pending]
        rewards = [math.nan if r is None else r for scores, _ in scored for r in scores.total]
        everyone = torch.tensor(processes.gathered(rewards)).view(-1, self.config.group)
        if everyone.isnan().all():
            self._refuse(scored, step)
        compared = advantages(everyone, self.config.advantage, self.config.advantage_limit)
        self.notes.rollout(scored, everyone, compared, _by_prompt(groups.of, trajectory.end))
        share = processes.share(self.config.batch)
        own = compared.flatten()[share]
        self.rolled = Rolled(given, trajectory, own.to(self.device))
        return [self.update(groups, own, share.start, number, processes) for number in range(self.config.updates)]

    def _refuse(self, scored: Sequence[tuple[Scores, Scores]], step: int) -> NoReturn:
        """That a rollout's pictures have no score. TryLater keeps what was learnt before."""
        rewards = self.config.rewards
        asked = [name for name in rewards if name not in self.unasked[self.task][0]]
        silent = [n for n in asked if all(one is None for scores, _ in scored for one in scores.parts[n])] or asked
        what = f"none of the {self.config.batch} pictures of a rollout got a score"
        where = f"rewards: {', '.join(silent)}; task: {self.task}"
        if step > 0 or all(isinstance(rewards[name], MAY_BE_AWAY) for name in silent):
            raise TryLater(what, where, "see whether they score this task, and are there; the same command goes on")
        raise BadInput(what, where, "give rewards that score this task and these data")

    def noisy(self, step: int) -> range:
        """The levels of a rollout whose steps are random."""
        return self.sampler.noisy(self.config.seed, step)

    def learnt(self) -> Sequence[int]:
        """The numbers of the losses that each sample has: the levels of its random steps."""
        return list(self.rolled.trajectory.steps)

    @torch.no_grad()
    def _given(self, groups: Groups) -> Given:
        """Of every sample; each prompt, and each picture to be edited, is encoded once."""
        prompts, of = pictures_of(groups.prompts), list(groups.of)
        condition = self.base.encode(prompts.texts, prompts)
        negative = None
        if self.config.sampler.guidance_scale > 1:
            empty = self.base.encode([""] * len(prompts.texts), prompts)
            negative = Condition(empty.tokens[of], empty.pooled[of])
        references = [latents[of] for latents in self.base.references(prompts)]
        return Given(Condition(condition.tokens[of], condition.pooled[of]), negative, references)

    def _sampled(self, groups: Groups, given: Given, noisy: range) -> tuple[Trajectory, list[Pending]]:
        """Trajectories of all samples, and their scores, which are computed while the next ones are sampled."""
        size = self.config.rollout_batch or len(groups.numbers)
        shape = self.base.latents.of(pictures_of(groups.prompts[:1])).shape[1:]
        parts, pending = [], []
        shared = self._shared(groups, given, shape, noisy.start) if self.config.sampler.window else None
        with ThreadPoolExecutor(1) as pool:
            for start in range(0, len(groups.numbers), size):
                part = slice(start, start + size)
                draws = Draws(self.config.seed, groups.numbers[part], self.device)
                own = draws.normal(*shape)
                x = own if shared is None else shared[part]
                with self.autocast():
                    parts.append(self.sampler.roll(self.transformer, given.at(part), x, draws, noisy))
                samples = self._samples(groups, range(len(groups.numbers))[part], parts[-1].end)
                scored, watched = (
                    pool.submit(rewards.score, samples, unasked)
                    for rewards, unasked in zip((self.rewards, self.held_out), self.unasked[self.task], strict=True)
                )
                pending.append((scored, watched))
        return joined(parts), pending

    def _shared(self, groups: Groups, given: Given, shape: Sequence[int], stop: int) -> Tensor:
        """Where the random steps begin: groups set out from one noise, that of their first members, and go together."""
        firsts = [number - number % self.config.batch % self.config.group for number in groups.numbers]
        at = [groups.of.index(prompt) for prompt in sorted(set(groups.of))]
        noise = Draws(self.config.seed, [firsts[i] for i in at], self.device).normal(*shape)
        with self.autocast():
            x = self.sampler.follow(self.transformer, given.at(at), noise, range(stop))
        return x[[sorted(set(groups.of)).index(prompt) for prompt in groups.of]]

    def _samples(self, groups: Groups, at: Sequence[int], latents: Tensor) -> list[Sample]:
        pictures = [self.base.vae.decode(latent) for latent in torch.split(latents, 1)]
        examples = [groups.prompts[groups.of[i]] for i in at]
        self.notes.pictures(pictures)
        return [
            Sample(e.text, picture, e.references[0] if e.references else None, e.spec)
            for e, picture in zip(examples, pictures, strict=True)
        ]

    def update(self, groups: Groups, own: Tensor, first: int, number: int, processes: Processes) -> Update:
        """One of the step's updates, on every n-th of the rollout's samples. All processes have equally many forwards.

        own: advantages of this process's samples. first: which of the rollout's is the first of them.
        """
        count = self.config.updates
        at = [i for i in range(len(own)) if (first + i) % count == number and not own[i].isnan()]
        counts = [int(n) for n in processes.gathered([len(at)])]
        weights = [1.0] * len(at) + [0.0] * (max(counts) - len(at))
        at += [0] * (max(counts) - len(at))
        size, micros = self.config.micro_batch or max(1, len(at)), list[Part]()
        for start in range(0, len(at), size):
            part = tuple(at[start : start + size])
            numbers, ids = tuple(groups.numbers[i] for i in part), tuple(groups.ids[i] for i in part)
            for step in self.learnt():
                micros.append(Part(numbers, ids, step, part, tuple(weights[start : start + size]), number == 0))
        return Update(micros, sum(counts) * len(self.learnt()))

    def learning(self) -> AbstractContextManager[None]:
        """With the adapters folded into the weights, where that is exact."""
        return folded(self.transformer) if self.folds else nullcontext()

    # --- loss ---------------------------------------------------------------------------------------------------------

    def losses(self, micro: Part, draws: Draws) -> Tensor:
        """−min(r·A, clip(r)·A) + β·KL of each sample at this level."""
        config, i, at = self.config, micro.step, list(micro.at)
        rolled, walked = self.rolled, self.rolled.trajectory.steps[i]
        given, x, next_x = rolled.given.at(at), walked.x[at], walked.next_x[at]
        negative = walked.negative[at] if micro.fresh and walked.negative is not None else None
        with self.learning():
            v, _ = self.sampler.velocity(self.transformer, given, i, x, negative)
        drawn = self.sampler.step(i, x, v, next_x)
        advantage = rolled.advantages[at].nan_to_num()
        log_ratio = drawn.log_prob - walked.log_prob[at]
        if config.guard:
            sharpness = self.sampler.sharpness(drawn.std)
            log_ratio = normalised(log_ratio, drawn.mean, walked.mean[at], drawn.std, sharpness)
        losses, ratio = clipped_losses(log_ratio, advantage, config.clip)
        weights = torch.tensor(micro.weights, device=self.device)
        if config.beta:
            with torch.no_grad(), without_adapters(self.transformer):
                v_before, _ = self.sampler.velocity(self.transformer, given, i, x)
            before = self.sampler.step(i, x, v_before, next_x).mean
            std = drawn.std if config.kl == "exact" else self.sampler.deviation(i, drawn.std)
            divergence = flow.gaussian_kl(drawn.mean, before, std)
            losses = losses + config.beta * divergence
            self.notes.add("kl", divergence[weights > 0])
            self.notes.add("velocity_drift", (v.flatten(1).norm(dim=1) / v_before.flatten(1).norm(dim=1))[weights > 0])
        self.notes.add("ratio_off", (ratio - 1).abs()[weights > 0])
        self.notes.add("clipped", ((ratio - 1).abs() > config.clip).float()[weights > 0])
        return losses * weights

    def told(self, processes: Processes) -> dict[str, Any]:
        watched = (("reward", self.rewards), ("held_out", self.held_out))
        beside = {f"{prefix}/{name}": n for prefix, rewards in watched for name, n in rewards.told().items()}
        return {"task": self.task} | self.notes.means(processes) | totals(beside, processes)

    # --- as the base stage --------------------------------------------------------------------------------------------

    def show(self) -> list[Shown]:
        return self.base.show()

    def export(self, folder: Path, weights: Tensors) -> None:
        """The model with the adapters merged into it, and the adapters beside it."""
        self.base.export(folder, weights)


def _by_prompt(of: Sequence[int], latents: Tensor) -> list[Tensor]:
    """The latents of each prompt's samples."""
    return [latents[[i for i, own in enumerate(of) if own == prompt]] for prompt in sorted(set(of))]


def checked(config: GrpoConfig) -> KontextStage | JointStage:
    """Its base, none of whose weights is loaded yet. Raises BadInput for what it would not train with."""
    check_rewards("rewards", config.rewards, config.data.tasks)
    check_rewards("held_out", config.held_out, config.data.tasks)
    for task in config.data.tasks:
        if _sum_of(config.rewards, task) == _sum_of(config.held_out, task):
            where = f"held_out: {', '.join(config.held_out)}; rewards: {', '.join(config.rewards)}; task: {task}"
            what = "what is held out is what is trained on: no alarm could sound"
            raise BadInput(what, where, "hold out another reward")
    if config.merge and config.stage == "grpo" and Placement.choose(config.device, config.dtype).dtype != torch.float32:
        what = "merged in bf16 the adapters are others than in updates: ratios of fresh samples would be off"
        raise BadInput(what, "merge: true", "leave it out, or set dtype to fp32")
    return _base(config)


def _sum_of(rewards: Mapping[str, RewardConfig], task: Task) -> list[tuple[str, float]]:
    """What is summed for a task, whatever the names and the unit: by each reward's settings, its share of the sum."""
    asked = [reward for reward in rewards.values() if of_task(reward, task)]
    whole = sum(abs(reward.weight) for reward in asked) or 1.0
    return sorted((repr(reward.model_copy(update={"weight": 1.0})), reward.weight / whole) for reward in asked)


def _base(config: GrpoConfig) -> KontextStage | JointStage:
    """The stage whose model this is."""
    shared = {name: getattr(config, name) for name in DitConfig.model_fields} | {
        "model": config.model,
        "lora": config.lora,
    }
    if find_model(config.model).kind == "kontext":
        if config.mllm is not None:
            raise BadInput("a Kontext model has no language model", f"mllm: {config.mllm}", "leave mllm out")
        length = config.max_sequence_length
        return KontextStage(KontextConfig(**shared | {"stage": "kontext", "max_sequence_length": length}))
    more = {"stage": "joint", "mllm": config.mllm, "reference": config.reference, "tune": TuneConfig(connector=False)}
    return JointStage(JointConfig(**shared | more))
