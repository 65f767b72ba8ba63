"""How much of a reinforcement's gradient is signal: the cosine between those of a rollout's two halves.

    python benchmarks/gradients.py [RECIPE] [TASK] [ROLLOUTS] [KEY=VALUE …]      tiny/pdtr-grpo, generate, 2

Halves hold every second member of every group: the same prompts. No weights change.
"""

from __future__ import annotations

import math
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from typing import Any

import torch
from bandit import VARIANTS  # beside this file
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn.functional import cosine_similarity

from unipic.config import read_recipe, resolve
from unipic.train.loop import Update
from unipic.train.nft import NftConfig, NftStage
from unipic.train.pdtr import part_config
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.stages import AnyConfig, read, stage_of


def gradient(stage: Any, update: Update, processes: Processes) -> Tensor:
    """Of the loss of an update, all adapters' in one row."""
    parameters = [p for module in stage.trained.values() for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = None
    for micro in update.micros:
        with processes.autocast():
            losses = stage.losses(micro, Draws(stage.config.seed, micro.numbers, processes.device))
        (losses.sum() / update.terms).backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def stage_of_part(recipe: str, part: str, sets: Sequence[str], **changes: Any) -> tuple[NftStage, Processes]:
    """Of a PDTR recipe, ready to roll out, one update a rollout. part: from 1. changes: of its settings."""
    whole: Any = read(recipe, sets)
    asked = part_config(whole, whole.parts[int(part) - 1], whole.grpo.model, int(part))
    processes = Processes("cuda" if torch.cuda.is_available() else "cpu", "auto")
    stage = NftStage(NftConfig.model_validate({**asked.model_dump(), "updates": 1, **changes}))
    stage.place(processes)
    return stage, processes


def mean_of(cosines: Sequence[float]) -> str:
    """With its standard error, as if they were independent."""
    error = statistics.stdev(cosines) / len(cosines) ** 0.5 if len(cosines) > 1 else math.nan
    return f"{statistics.fmean(cosines):.3f} ± {error:.3f}"


def halves(stage: Any, updates: Sequence[Update], processes: Processes) -> list[Tensor]:
    """Each with noise of its own, and measured from its own means: what errors have in common must cancel in each."""
    config, found = stage.config, []
    apart = stage.rolled.advantages.view(-1, config.group // len(updates), len(updates))
    stage.rolled.advantages = (apart - apart.mean(1, keepdim=True)).flatten()
    for number, update in enumerate(updates, 1):
        stage.config = config.model_copy(update={"seed": config.seed + number})
        found.append(gradient(stage, update, processes))
    stage.config = config
    return found


def main(recipe: str = "tiny/pdtr-grpo", task: str = "generate", rollouts: str = "2", *sets: str) -> None:
    raw, _ = read_recipe(recipe)
    raw = raw.get("grpo", raw) | {"updates": 2}
    processes = Processes("cpu" if not torch.cuda.is_available() else "cuda", "auto")
    where = f"{platform.machine()}, {torch.get_num_threads()} threads, {date.today()}"
    print(f"{recipe} {' '.join(sets)}, {task}, {rollouts} rollouts of {raw['batch']}; {where}")
    for name, changes in VARIANTS.items():
        stage: Any = stage_of(resolve(TypeAdapter(AnyConfig), raw, "signal", [*changes, *sets, f"data.tasks=[{task}]"]))
        stage.place(processes)
        cosines, diverse, spent = [], [], time.process_time()
        for step in range(int(rollouts)):
            updates = stage.rollout(stage.batch(step, range(stage.config.batch)), step, processes)
            one, other = halves(stage, updates, processes)
            cosines.append(float(cosine_similarity(one, other, dim=0)))
            diverse.append(stage.told(processes)["diversity"])
        spent = (time.process_time() - spent) / len(cosines)
        each = ", ".join(f"{c:.3f}" for c in cosines)
        print(f"{name:14} {each}; diversity {statistics.fmean(diverse):.2f}; {spent:.0f} CPU s a rollout", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
