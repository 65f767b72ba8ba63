"""At which noise levels DiffusionNFT's gradient is signal: cosines between the gradients of different pictures.

    python benchmarks/gradient_levels.py [RECIPE] [PART] [ROLLOUTS] [KEY=VALUE …]      tiny/pdtr-all, 1, 6; 2 at least

Between every two rollouts, which have no prompt in common: what learning brings beyond the prompts that it saw. The
standard error is as if pairs were independent. PART: of the recipe, from 1. No weights change.
"""

from __future__ import annotations

import math
import platform
import statistics
import sys
from datetime import date
from itertools import combinations

import torch
from gradients import gradient, mean_of, stage_of_part  # beside this file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from unipic.train.flow_loss import TimesConfig
from unipic.train.nft import NftConfig

LEVELS = (0.15, 0.4, 0.65, 0.85, 0.94, 0.97, 0.99)


def at_level(config: NftConfig, level: float) -> NftConfig:
    return config.model_copy(update={"times": TimesConfig(mean=math.log(level / (1 - level)), std=1e-6)})


def main(recipe: str = "tiny/pdtr-all", part: str = "1", rollouts: str = "6", *sets: str) -> None:
    stage, processes = stage_of_part(recipe, part, sets, levels=1)
    config = stage.config
    measured = dict[float, list[Tensor]]()
    for step in range(int(rollouts)):
        (update,) = stage.rollout(stage.batch(step, range(config.batch)), step, processes)
        for level in LEVELS:
            stage.config = at_level(config, level)
            measured.setdefault(level, []).append(gradient(stage, update, processes))
        stage.config = config
    print(
        f"{recipe}, part {part} of {config.model} {' '.join(sets)}, {rollouts} rollouts of {config.batch} in "
        f"groups of {config.group}; {platform.machine()}, {torch.get_num_threads()} threads, {date.today()}\n"
    )
    print("| noise level | cosine | norm |\n|---|---|---|")
    for level, found in measured.items():
        cosines = [float(cosine_similarity(*pair, dim=0)) for pair in combinations(found, 2)]
        norm = statistics.fmean(float(each.norm()) for each in found)
        print(f"| {level} | {mean_of(cosines)} | {norm:.3f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
