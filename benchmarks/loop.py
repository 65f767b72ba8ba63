"""What the training loop costs, beside a bare loop on the same model and data.

    python benchmarks/loop.py [RECIPE] [STEPS] [KEY=VALUE …]

The bare loop is a batch, the stage's losses, backward, clipping and the recipe's optimiser. The two take turns in one
process. A step goes from one beginning to the next; of each the fastest round counts. On a CPU it is the processor's
time, which other processes on the machine change little. The bar is a ratio of 1.10.
"""

from __future__ import annotations

import logging
import platform
import sys
import tempfile
import time
import warnings
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from unipic.train.loop import train
from unipic.train.optim import Weights
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.stages import read, stage_of

ROUNDS = 5


def main(recipe: str, steps: int, sets: list[str]) -> None:
    config = read(recipe, [*sets, f"steps={steps}", "sample_every=0", "checkpoint_every=0"])
    loop, bare = [], []
    for _ in range(ROUNDS):
        loop.append(in_the_loop(config))
        bare.append(by_itself(config))
    ours, least = (sum(min(times) for times in zip(*rounds, strict=True)) / (steps - 1) for rounds in (loop, bare))
    print(
        f"{recipe}, batch {config.batch}, {ROUNDS} times {steps} steps, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, {date.today()}\n"
        f"loop {1000 * ours:.1f} ms a step   bare {1000 * least:.1f} ms a step   ratio {ours / least:.3f}"
    )


def in_the_loop(config: Any) -> list[float]:
    """Seconds of each step, with moving averages, checks and the log."""
    stage: Any = stage_of(config)
    begun: list[float] = []
    prepare = stage.batch

    def batch(step: int, share: range) -> Any:
        begun.append(now())
        return prepare(step, share)

    stage.batch = batch
    with tempfile.TemporaryDirectory() as folder:
        train(stage, Path(folder) / "run")
    return [b - a for a, b in pairwise(begun)]


def by_itself(config: Any) -> list[float]:
    stage: Any = stage_of(config)
    processes = Processes(config.device, config.dtype)
    stage.place(processes)
    weights = [p for module in stage.trained.values() for p in module.parameters() if p.requires_grad]
    optimizers = Weights(stage.trained, config.optimizer, None).optimizers
    begun = []
    for step in range(config.steps):
        begun.append(now())
        for micro in stage.batch(step, range(config.batch)):
            with processes.autocast():
                losses = stage.losses(micro, Draws(config.seed, micro.numbers, processes.device))
            (losses.sum() / config.batch).backward()
        if config.optimizer.clip is not None:
            torch.nn.utils.clip_grad_norm_(weights, config.optimizer.clip)
        for optimizer in optimizers:
            optimizer.step()
        for p in weights:
            p.grad = None
    return [b - a for a, b in pairwise(begun)]


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    arguments = sys.argv[1:] + ["tiny/kontext", "20", "model=tiny-kontext"][len(sys.argv) - 1 :]
    main(arguments[0], int(arguments[1]), arguments[2:])
