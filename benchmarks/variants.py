"""Seconds until a fixed reward: Flow-GRPO, its variants on the same rollout, and DiffusionNFT.

    python benchmarks/variants.py [RECIPE] [GAIN] [SEEDS] [KEY=VALUE …]      tiny/pdtr-grpo, 0.1, 3

All start from the same model, with the same prompts, group and batch. A run has got there when the share of SHOWN
fixed prompts that are drawn right, without noise, has risen by the gain. It is looked at every EVERY steps; only the
steps are timed.
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
SHOWN, EVERY, MOST_STEPS = 96, 5, 200


def seconds_to(raw: dict[str, Any], sets: list[str], gain: float) -> tuple[float, float, float] | None:
    """Seconds, and the share that was right before and after; None if it did not get there."""
    processes = Processes("cpu" if not torch.cuda.is_available() else "cuda", "auto")
    stage = stage_of(resolve(TypeAdapter(AnyConfig), raw, "variants", sets))
    stage.place(processes)
    weights, before, spent = Weights(stage.trained, stage.config.optimizer, None), right(stage), 0.0
    for step in range(MOST_STEPS):
        micros = stage.batch(step, range(stage.config.batch))
        start = time.perf_counter()
        advance(stage, weights, micros, step, processes)
        spent += time.perf_counter() - start
        if step % EVERY == EVERY - 1 and (now := right(stage)) >= before + gain:
            return spent, before, now
    return None


def right(stage: Any) -> float:
    return statistics.fmean(float(shown.right) for shown in stage.show())


def main(recipe: str = "tiny/pdtr-grpo", gain: str = "0.1", seeds: str = "3", *sets: str) -> None:
    raw, _ = read_recipe(recipe)
    raw = raw.get("grpo", raw)
    raw |= {"steps": MOST_STEPS, "show": {"count": SHOWN, "guidance_scale": 2.0}}
    raw["data"] = {"tasks": ["generate"]} | raw["data"]
    where = f"{platform.machine()}, {torch.get_num_threads()} threads, {date.today()}"
    print(f"{recipe} {' '.join(sets)}, until {gain} more are right; {where}")
    # of all variants one seed, then the next: they share the machine's weather
    for seed, (name, changes) in itertools.product(range(int(seeds)), VARIANTS.items()):
        took = seconds_to(raw, [*changes, *sets, f"seed={seed}"], float(gain))
        said = "not reached" if took is None else f"{took[0]:.0f} s ({took[1]:.3f} → {took[2]:.3f})"
        print(f"{name:14} seed {seed}: {said}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
