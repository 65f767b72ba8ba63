"""Of which reward DiffusionNFT's gradient is signal: cosines between the gradients of different pictures.

    python benchmarks/gradient_rewards.py [RECIPE] [PART] [ROLLOUTS] [KEY=VALUE …]      tiny/pdtr-all, 1, 6; 2 at least

The same rollouts, their advantages computed anew from every mark of the world's verifier. Between every two of them,
which have no prompt in common: how far a mark's gradients agree, and how far they agree with those of the score, which
is what is meant. The standard error is as if pairs were independent. PART: of the recipe, from 1. No weights change.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import combinations, permutations

import torch
from gradients import gradient, mean_of, stage_of_part  # beside this file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from unipic.rewards.reward import Sample, WeightedSum
from unipic.rewards.world import WorldReward
from unipic.train.nft import NftStage
from unipic.train.policy import advantages
from unipic.train.processes import Processes

SCORE = "score"
REWARDS = {SCORE: WorldReward(), **{mark: WorldReward(mark=mark) for mark in ("sc", "pq", "clean", "near")}}


class Seen:
    """Samples of a rollout, in their order."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        self.samples += samples
        return [0.0] * len(samples)


def gradients(stage: NftStage, step: int, processes: Processes) -> Iterator[tuple[str, Tensor]]:
    """Of one rollout by every reward."""
    seen, config = Seen(), stage.config
    stage.rewards, stage.held_out = WeightedSum({"seen": (1.0, seen)}), WeightedSum({})
    (groups,) = micros = stage.batch(step, range(config.batch))
    stage.rollout(micros, step, processes)
    for name, reward in REWARDS.items():
        scores = [math.nan if score is None else score for score in reward.score(seen.samples)]
        compared = advantages(torch.tensor(scores).view(-1, config.group), config.advantage, config.advantage_limit)
        if (own := compared.flatten()).isnan().all():
            continue  # groups are all alike, or it is a mark of edits alone
        stage.rolled.advantages = own.to(stage.device)
        yield name, gradient(stage, stage.update(groups, own, 0, 0, processes), processes)


def main(recipe: str = "tiny/pdtr-all", part: str = "1", rollouts: str = "6", *sets: str) -> None:
    stage, processes = stage_of_part(recipe, part, sets, beta=0)  # KL has none at the start
    config = stage.config
    found = dict[str, list[Tensor]]()
    for step in range(int(rollouts)):
        for name, row in gradients(stage, step, processes):
            found.setdefault(name, []).append(row)
    print(
        f"{recipe}, part {part} of {config.model} {' '.join(sets)}, {rollouts} rollouts of {config.batch} in "
        f"groups of {config.group}; {platform.machine()}, {torch.get_num_threads()} threads, {date.today()}\n"
    )
    print("| reward | with itself | with the score |\n|---|---|---|")
    found = {name: rows for name, rows in found.items() if len(rows) == int(rollouts)}
    if SCORE not in found:
        sys.exit("in some rollout the groups are all alike by the score: nothing can be told; give larger ones")
    for name, rows in found.items():
        own = [float(cosine_similarity(a, b, dim=0)) for a, b in combinations(rows, 2)]
        pairs = permutations(range(len(rows)), 2)
        meant = [float(cosine_similarity(rows[i], found[SCORE][j], dim=0)) for i, j in pairs]
        print(f"| {name} | {mean_of(own)} | {mean_of(own if name == SCORE else meant)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
