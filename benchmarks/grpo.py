"""What a rollout and its updates cost, beside a plain transcription of the reference recipe on the same model.

    python benchmarks/grpo.py [MODEL] [TASK] [KEY=VALUE …]

The transcription does as the reference implementation of Flow-GRPO does: adapters stay beside the weights; prompts and
pictures are encoded for every sample; guidance's two branches share every forward, in updates with gradient, where the
negative one is detached afterwards; the model without adapters runs the same way. Both take turns in one process, from
the same weights, on the same trajectories; the fastest round of each counts. The gradients of both are compared with
each other, and with those of the transcription's DiT in float64: how far float32 by itself is off.
"""

from __future__ import annotations

import copy
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from unipic import flow
from unipic.config import resolve
from unipic.rewards.reward import Sample, WeightedSum
from unipic.train.batches import pictures_of
from unipic.train.grpo import Groups, GrpoStage, Part
from unipic.train.loop import Update
from unipic.train.lora import without_adapters
from unipic.train.policy import clipped_losses
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.stages import AnyConfig, stage_of
from unipic.types import Condition

ROUNDS = 3
PROCESSES = Processes("cpu", "fp32")


class Redness:
    """A reward that costs nothing, and that pictures of one prompt differ in."""

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        colors: list[Any] = [sample.picture.resize((1, 1)).getpixel((0, 0)) for sample in samples]
        return [float(red - green) for red, green, _ in colors]


class Plain:
    """The reference recipe, on a stage's models, or with a transformer of its own, in whatever precision that is."""

    def __init__(self, stage: GrpoStage, transformer: nn.Module) -> None:
        self.stage, self.config, self.transformer = stage, stage.config, transformer
        self.dtype = next(transformer.parameters()).dtype

    def doubled(self, groups: Groups) -> tuple[Condition, list[Tensor]]:
        """[negative; positive] conditions, and references, of every sample."""
        samples = pictures_of([groups.prompts[i] for i in groups.of])
        negative = self.stage.base.encode([""] * len(samples.texts), samples)
        both = Condition.cat([negative, self.stage.base.encode(samples.texts, samples)])
        return both, [torch.cat([r, r]) for r in self.stage.base.references(samples)]

    def velocity(self, both: Condition, references: list[Tensor], i: int, x: Tensor) -> Tensor:
        t = (self.stage.sampler.sigmas[i] * flow.TRAIN_TIMESTEPS).expand(2 * len(x))
        given = [each.to(self.dtype) for each in (torch.cat([x, x]), both.tokens, both.pooled)]
        v = self.transformer(*given, t, references=[r.to(self.dtype) for r in references])
        negative, positive = v.float().chunk(2)
        negative = negative.detach()
        return negative + self.config.sampler.guidance_scale * (positive - negative)

    @torch.no_grad()
    def rollout(self, groups: Groups) -> None:
        both, references = self.doubled(groups)
        shape = self.stage.base.latents.of(pictures_of(groups.prompts[:1])).shape[1:]
        draws = Draws(self.config.seed, groups.numbers, self.stage.device)
        x = draws.normal(*shape)
        for i in range(self.config.sampler.steps):
            x = self.stage.sampler.step(i, x, self.velocity(both, references, i, x), z=draws.normal(*shape)).next
        for latent in torch.split(x, 1):
            self.stage.base.vae.decode(latent)

    def update(self, groups: Groups, update: Update) -> None:
        rolled = self.stage.rolled
        for micro in update.micros:
            part: Part = micro
            at = list(part.at)
            walked = rolled.trajectory.steps[part.step]
            negative = rolled.given.negative
            assert negative is not None  # noqa: S101
            both = Condition(
                *(
                    torch.cat([getattr(negative, name)[at], getattr(rolled.given.condition, name)[at]])
                    for name in ("tokens", "pooled")
                )
            )
            references = [torch.cat([r[at], r[at]]) for r in rolled.given.references]
            x, next_x = walked.x[at], walked.next_x[at]
            drawn = self.stage.sampler.step(part.step, x, self.velocity(both, references, part.step, x), next_x)
            with torch.no_grad(), without_adapters(self.transformer):
                before = self.stage.sampler.step(part.step, x, self.velocity(both, references, part.step, x), next_x)
            losses, _ = clipped_losses(drawn.log_prob - walked.log_prob[at], rolled.advantages[at], self.config.clip)
            s = self.stage.sampler.deviation(part.step, drawn.std)
            losses = losses + self.config.beta * flow.gaussian_kl(drawn.mean, before.mean, s)
            (losses.sum() / update.terms).backward()


def main(model: str, task: str, sets: list[str]) -> None:
    raw = {"stage": "grpo", "model": model, "steps": 1, "batch": 32, "group": 8, "micro_batch": 16, "rollout_batch": 32}
    raw |= {"rewards": {"world": {"kind": "world"}}, "data": {"tasks": [task], "phases": [{"resolution": 64}]}}
    stage: Any = stage_of(resolve(TypeAdapter(AnyConfig), raw, "benchmark", sets))
    stage.place(PROCESSES)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in stage.transformer.named_parameters():
            if ".lora_B." in name:
                p.add_(0.02 * torch.randn_like(p))
    stage.rewards = WeightedSum({"redness": (1.0, Redness())})
    plain, exact = Plain(stage, stage.transformer), Plain(stage, copy.deepcopy(stage.transformer).double())
    (groups,) = stage.batch(0, range(stage.config.batch))
    seconds: dict[str, list[float]] = {}
    apart = dict.fromkeys(("ours and plain", "ours and float64", "plain and float64"), 0.0)
    for _ in range(ROUNDS):
        updates = timed(seconds, "our rollout", lambda: stage.rollout([groups], 0, PROCESSES))
        timed(seconds, "plain rollout", lambda: plain.rollout(groups))
        for which, update in zip(("first", "second"), updates, strict=False):
            timed(seconds, f"our {which} update", lambda update=update: ours(stage, update))
            found = {"ours": gradients(stage.transformer)}
            timed(seconds, f"plain {which} update", lambda update=update: plain.update(groups, update))
            found["plain"] = gradients(stage.transformer)
            exact.update(groups, update)
            found["float64"] = gradients(exact.transformer)
            for name in apart:
                one, other = (found[whose].double() for whose in name.split(" and "))
                apart[name] = max(apart[name], float((one - other).abs().max() / other.abs().max()))
    best = {name: min(times) for name, times in seconds.items()}
    print(
        f"{model}, {task}, {stage.config.batch} pictures, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"{date.today()}"
    )
    for name in ("rollout", "first update", "second update", "rollout and first update", "rollout and both updates"):
        parts = [part for part in ("rollout", "first update", "second update") if part in name or "both" in name]
        mine_s, theirs_s = (sum(best[f"{whose} {part}"] for part in parts) for whose in ("our", "plain"))
        print(f"{name:24} {mine_s:7.2f} s, plain {theirs_s:7.2f} s, ratio {theirs_s / mine_s:.2f}")
    for name, worst in apart.items():
        print(f"largest difference of a gradient, of the largest one, {name}: {worst:.1e}")
    off = max(stage.notes.values["ratio_off"])
    print(
        f"largest |ratio − 1| of fresh samples, adapters {'' if stage.merges else 'not '}merged in rollouts: {off:.1e}"
    )


def ours(stage: GrpoStage, update: Update) -> None:
    for micro in update.micros:
        (stage.losses(micro, None).sum() / update.terms).backward()  # type: ignore[arg-type]


def gradients(transformer: nn.Module) -> Tensor:
    """All of them in one row; they are cleared."""
    rows = []
    for p in transformer.parameters():
        if p.grad is not None:
            rows.append(p.grad.flatten())
            p.grad = None
    return torch.cat(rows)


def timed(seconds: dict[str, list[float]], name: str, job: Callable[[], Any]) -> Any:
    start = time.process_time()
    result = job()
    seconds.setdefault(name, []).append(time.process_time() - start)
    return result


if __name__ == "__main__":
    arguments = sys.argv[1:] + ["tiny-kontext", "edit"][len(sys.argv) - 1 :]
    main(arguments[0], arguments[1], arguments[2:])
