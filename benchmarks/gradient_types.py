"""Of which types of edit DiffusionNFT's gradient is signal: inner products between the gradients of different groups.

    python benchmarks/gradient_types.py [RECIPE] [PART] [ROLLOUTS] [KEY=VALUE …]      tiny/pdtr, 1, 12; 2 at least

Each type's gradient by itself, of groups whose scores are not all alike. `norm`: of one group's, root mean square.
`signal`: the mean inner product of two groups' of different rollouts over their norms' product, which is the expected
cosine between two groups; with groups of the same type, and with those of any other. The standard error is as if pairs
of rollouts were independent. PART: of the recipe, from 1. No weights change.
"""

from __future__ import annotations

import math
import operator
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from gradients import gradient  # beside this file
from torch import Tensor

from unipic.train.nft import NftConfig, NftStage
from unipic.train.pdtr import part_config
from unipic.train.processes import Processes
from unipic.train.stages import read


@dataclass(frozen=True)
class Summed:
    """Of all groups of a type in a rollout."""

    rollout: int
    type: str
    groups: int
    gradient: Tensor


def by_type(stage: NftStage, rollout: int, processes: Processes) -> Iterator[Summed]:
    """The gradients of a rollout, one for each type of which some group is not all alike."""
    (groups,) = micros = stage.batch(rollout, range(stage.config.batch))
    stage.rollout(micros, rollout, processes)
    whole = stage.rolled.advantages.view(-1, stage.config.group)
    types = [example.spec.type for example in groups.prompts]
    for type in sorted(set(types)):
        own = whole.clone()
        own[[other != type for other in types]] = math.nan
        if count := int((~own.isnan().all(1)).sum()):
            stage.rolled.advantages = own.flatten()
            update = stage.update(groups, own.flatten().cpu(), 0, 0, processes)
            yield Summed(rollout, type, count, gradient(stage, update, processes) * update.terms)


def norm(of: Sequence[Summed]) -> float:
    """Of one group's gradient."""
    return math.sqrt(sum(float(each.gradient.square().sum()) for each in of) / sum(each.groups for each in of))


def signal(one: Sequence[Summed], other: Sequence[Summed]) -> str:
    """The expected cosine between two groups, with its standard error. one: of a single type."""
    own = norm(one)
    norms = {type: norm([each for each in other if each.type == type]) for type in {each.type for each in other}}
    apart = operator.lt if one is other else operator.ne  # each pair once
    pairs = [(a, b) for a in one for b in other if apart(a.rollout, b.rollout)]
    count = sum(a.groups * b.groups for a, b in pairs)
    products = torch.tensor([float(a.gradient @ b.gradient) / (own * norms[b.type]) for a, b in pairs])
    if len(products) < 2:
        return "–"
    error = float(products.std()) * math.sqrt(len(products)) / count
    return f"{float(products.sum()) / count:.4f} ± {error:.4f}"


def main(recipe: str = "tiny/pdtr", part: str = "1", rollouts: str = "12", *sets: str) -> None:
    whole: Any = read(recipe, sets)
    asked = part_config(whole, whole.parts[int(part) - 1], whole.grpo.model, int(part))
    config = NftConfig.model_validate({**asked.model_dump(), "updates": 1, "beta": 0})  # KL has none at the start
    processes = Processes("cuda" if torch.cuda.is_available() else "cpu", "auto")
    stage = NftStage(config)
    stage.place(processes)
    found = [each for rollout in range(int(rollouts)) for each in by_type(stage, rollout, processes)]
    print(
        f"{recipe}, part {part} of {config.model} {' '.join(sets)}, {rollouts} rollouts of {config.batch} in "
        f"groups of {config.group}; {platform.machine()}, {torch.get_num_threads()} threads, {date.today()}\n"
    )
    print("| type | groups | norm | signal | with other types |\n|---|---|---|---|---|")
    for type in sorted({each.type for each in found}):
        own, others = ([e for e in found if (e.type == type) is same] for same in (True, False))
        groups = sum(each.groups for each in own)
        print(f"| {type} | {groups} | {norm(own):.2g} | {signal(own, own)} | {signal(own, others)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
