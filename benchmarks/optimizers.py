"""AdamW and Muon on the same stage and samples, from the same weights: the loss by seconds of processor time.

    python benchmarks/optimizers.py [RECIPE [STEPS]] [--set KEY=VALUE …]      default: proof/vae, 300 updates each

The rate of each is the best of those tried by hand on proof/vae: AdamW 1e-3 (2e-3 is worse), Muon 4e-3.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from unipic.models import tiny
from unipic.train.loop import update
from unipic.train.optim import Weights
from unipic.train.processes import Processes
from unipic.train.stages import read, stage_of

RATES = {"adamw": 1e-3, "muon": 4e-3}
PARTS = 6  # of a run, each a line of the table


def curve(recipe: str, sets: list[str], kind: str, steps: int) -> list[tuple[float, float]]:
    """(seconds, mean loss of this part of the run) of each part."""
    config = read(recipe, [*sets, f"optimizer.kind={kind}", f"optimizer.lr={RATES[kind]}", f"steps={steps}"])
    stage: Any = stage_of(config)
    processes = Processes("cpu")
    stage.place(processes)
    weights = Weights(stage.trained, stage.config.optimizer, stage.config.ema)
    found, losses, seconds = [], [], 0.0
    for step in range(steps):
        micros = stage.batch(step, range(stage.config.batch))
        start = time.process_time()
        losses.append(update(stage, weights, micros, step, processes)["loss"])
        seconds += time.process_time() - start
        if (step + 1) % max(1, steps // PARTS) == 0:
            found.append((seconds, sum(losses) / len(losses)))
            losses = []
    return found


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    sets = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
    plain = [word for i, word in enumerate(arguments) if word != "--set" and (not i or arguments[i - 1] != "--set")]
    recipe, steps = plain[0] if plain else "proof/vae", int(plain[1]) if len(plain) > 1 else 300
    with tempfile.TemporaryDirectory() as folder:
        if recipe == "proof/vae":
            tiny.main([folder, "--to-train"])
            sets = [f"model={Path(folder) / 'tiny-kontext'}", *sets]
        curves = {kind: curve(recipe, sets, kind, steps) for kind in RATES}
    print("  ".join(f"{kind:>8} s     loss" for kind in curves))
    for row in zip(*curves.values(), strict=True):
        print("  ".join(f"{seconds:10.1f} {loss:8.4f}" for seconds, loss in row))


if __name__ == "__main__":
    main(sys.argv[1:])
