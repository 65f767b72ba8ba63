"""Of which types of edit DiffusionNFT's gradient is signal: inner products between the gradients of different groups.

    python benchmarks/gradient_types.py [RECIPE] [PART] [ROLLOUTS] [KEY=VALUE …]      tiny/pdtr-all, 1, 12; 3 at least

Each type's gradient by itself, of groups whose scores are not all alike. `norm`: of one group's, root mean square.
`signal`: the mean inner product of two groups' of different rollouts over the product of their norms, as the cosine
between two groups would be if all were equally long; with groups of the same type, and of any other. Its error is the
jackknife's, which leaves one rollout out (`too few`: then nothing is left of a type). PART: of the recipe, from 1, and
of edits. No weights change.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np
import torch
from gradients import gradient, stage_of_part  # beside this file
from numpy.typing import NDArray
from torch import Tensor

from unipic.train.nft import NftStage
from unipic.train.processes import Processes


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


@dataclass(frozen=True)
class Products:
    """Inner products between sums of groups, N×N, and what they say of single groups. groups, types, rollouts: N."""

    products: NDArray[np.float64]
    groups: NDArray[np.int64]
    types: NDArray[np.str_]
    rollouts: NDArray[np.int64]

    def without(self, rollout: int) -> Products:
        """All but one rollout's."""
        kept = self.rollouts != rollout
        return Products(self.products[np.ix_(kept, kept)], self.groups[kept], self.types[kept], self.rollouts[kept])

    def between(self, one: str, other: str) -> tuple[float, int]:
        """Of two groups of different rollouts: the sum of their inner products, and how many pairs there are."""
        rows, columns = self.types == one, self.types == other
        apart = (self.rollouts[:, None] != self.rollouts)[np.ix_(rows, columns)]
        pairs = np.outer(self.groups[rows], self.groups[columns])
        return float((self.products[np.ix_(rows, columns)] * apart).sum()), int((pairs * apart).sum())

    def norm(self, type: str) -> float:
        """Of one group's gradient: what groups of a rollout have in common, as those of different ones have, is out."""
        own, (total, pairs) = self.types == type, self.between(type, type)
        count = self.groups[own]
        common = total / pairs * (count * (count - 1)).sum() if pairs else 0.0
        return math.sqrt(max(float(self.products[own, own].sum()) - common, 0.0) / count.sum())

    def signal(self, one: str, others: list[str]) -> float:
        """NaN where no two groups are of different rollouts."""
        found = [(*self.between(one, other), self.norm(one) * self.norm(other)) for other in others]
        pairs = sum(count for _, count, _ in found)
        return sum(total / (norms or math.nan) for total, count, norms in found if count) / pairs if pairs else math.nan

    def told(self, one: str, others: list[str]) -> str:
        """The signal with its standard error."""
        left = [self.without(rollout) for rollout in np.unique(self.rollouts)]
        each = np.array(
            [rest.signal(one, [t for t in others if t in rest.types]) for rest in left if one in rest.types]
        )
        if not len(each) or np.isnan(each).any():
            return "too few"
        return f"{self.signal(one, others):.4f} ± {math.sqrt((len(each) - 1) * float(each.var())):.4f}"


def main(recipe: str = "tiny/pdtr-all", part: str = "1", rollouts: str = "12", *sets: str) -> None:
    stage, processes = stage_of_part(recipe, part, sets, beta=0)  # KL has none at the start
    config = stage.config
    found = [each for rollout in range(int(rollouts)) for each in by_type(stage, rollout, processes)]
    rows = torch.stack([each.gradient for each in found]).double()
    columns = ([getattr(each, name) for each in found] for name in ("groups", "type", "rollout"))
    products = Products((rows @ rows.T).cpu().numpy(), *map(np.array, columns))
    print(
        f"{recipe}, part {part} of {config.model} {' '.join(sets)}, {rollouts} rollouts of {config.batch} in "
        f"groups of {config.group}; {platform.machine()}, {torch.get_num_threads()} threads, {date.today()}\n"
    )
    print("| type | groups | norm | signal | with other types |\n|---|---|---|---|---|")
    types = sorted({each.type for each in found})
    for type in types:
        groups = sum(each.groups for each in found if each.type == type)
        own, others = products.told(type, [type]), products.told(type, [other for other in types if other != type])
        print(f"| {type} | {groups} | {products.norm(type):.2g} | {own} | {others} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
