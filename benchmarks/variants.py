"""Seconds until a fixed reward: Flow-GRPO, its variants on the same rollout, and DiffusionNFT.

    python benchmarks/variants.py [RECIPE] [REWARD] [SEEDS] [KEY=VALUE …]      tiny/pdtr's `grpo`, +0.1, 3

All start from the same model, with the same prompts, group and batch. A run has got there when the mean reward of its
last five steps is as high as asked (+R: so much above that of the first step); only its steps are timed.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import sys
import time
from datetime import date
from typing import Any

import torch
from pydantic import TypeAdapter

from unipic.config import read_recipe, resolve
from unipic.train.loop import advance
from unipic.train.optim import Weights
from unipic.train.processes import Processes
from unipic.train.stages import AnyConfig, stage_of

VARIANTS: dict[str, list[str]] = {
    "Flow-GRPO": [],
    "CPS noise": ["sampler.kind=cps"],
    "window of 2": ["sampler.window=2"],
    "GRPO-Guard": ["guard=true"],
    "DiffusionNFT": ["stage=nft", "sampler.guidance_scale=1", "beta=1e-4"],
}
LAST, MOST_STEPS = 5, 200


def seconds_to(raw: dict[str, Any], sets: list[str], asked: str) -> tuple[float, float, float] | None:
    """Seconds, the first step's reward and the last ones'; None if it did not get there."""
    processes = Processes("cpu" if not torch.cuda.is_available() else "cuda", "auto")
    stage = stage_of(resolve(TypeAdapter(AnyConfig), raw, "variants", sets))
    stage.place(processes)
    weights, rewards, spent = Weights(stage.trained, stage.config.optimizer, None), list[float](), 0.0
    for step in range(MOST_STEPS):
        micros = stage.batch(step, range(stage.config.batch))
        start = time.perf_counter()
        rewards.append(advance(stage, weights, micros, step, processes)["reward"])
        spent += time.perf_counter() - start
        goal = rewards[0] + float(asked) if asked.startswith("+") else float(asked)
        if (last := statistics.fmean(rewards[-LAST:])) >= goal and step >= LAST:
            return spent, rewards[0], last
    return None


def main(recipe: str = "tiny/pdtr", asked: str = "+0.1", seeds: str = "3", *sets: str) -> None:
    raw, _ = read_recipe(recipe)
    raw = raw.get("grpo", raw)
    raw["steps"] = MOST_STEPS
    where = f"{platform.machine()}, {torch.get_num_threads()} threads, {date.today()}"
    print(f"{recipe} {' '.join(sets)}, until {asked}; {where}")
    # of all variants one seed, then the next: they share the machine's weather
    for seed, (name, changes) in itertools.product(range(int(seeds)), VARIANTS.items()):
        took = seconds_to(raw, [*changes, *sets, f"seed={seed}"], asked)
        said = "not reached" if took is None else f"{took[0]:.0f} s ({took[1]:.3f} → {took[2]:.3f})"
        print(f"{name:14} seed {seed}: {said}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
