"""What is noted during a step of reinforcement, to be seen in the log: rewards, drift, and what pictures look like."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from unipic.rewards.reward import Scores
from unipic.train.policy import LEAST_VALID, diversity
from unipic.train.processes import Processes

NAMES = (
    "reward",
    "held_out",
    "missing",
    "groups_too_few",
    "groups_alike",
    "advantage",
    "diversity",
    "kl",
    "ratio_off",
    "clipped",
    "velocity_drift",
    "edges",
    "colors",
    "dark",
)


class Notes:
    """Values by name; a step's means are over all that was noted, in all processes.

    missing: share of samples without a score. groups_too_few, groups_alike: shares of groups that are dropped.
    advantage: mean size. ratio_off: |ratio − 1|. clipped: share beyond the clip range. velocity_drift: norm of the
    velocity over that without adapters. diversity: see `policy.diversity`; of the members that a process has.
    edges, colors, dark: see `statistics_of`.
    """

    def __init__(self, rewards: Iterable[str], held_out: Iterable[str]) -> None:
        self.names = (*(f"reward/{name}" for name in rewards), *(f"held_out/{name}" for name in held_out), *NAMES)
        self.values: dict[str, list[float]] = defaultdict(list)

    def clear(self) -> None:
        self.values.clear()

    def add(self, name: str, values: Tensor) -> None:
        self.values[name] += values.detach().flatten().tolist()

    def pictures(self, pictures: Sequence[Image]) -> None:
        """What a collapse or a trick would change in pictures, whatever they show."""
        for picture in pictures:
            for name, value in statistics_of(picture).items():
                self.values[name].append(value)

    def rollout(
        self, scored: Sequence[tuple[Scores, Scores]], rewards: Tensor, advantages: Tensor, groups: Sequence[Tensor]
    ) -> None:
        """scored: of each forward, by the rewards and by those that are held out. rewards, advantages: P×G, of all
        processes. groups: the latents of this process's prompts.
        """
        for trained, held_out in scored:
            for prefix, scores in (("reward", trained), ("held_out", held_out)):
                self.values[prefix] += [score for score in scores.total if score is not None]
                for name, part in scores.parts.items():
                    self.values[f"{prefix}/{name}"] += [score for score in part if score is not None]
        few = (~rewards.isnan()).sum(1) < LEAST_VALID
        self.add("missing", rewards.isnan().float())
        self.add("groups_too_few", few.float())
        self.add("groups_alike", (advantages.isnan().all(1) & ~few).float())
        self.add("advantage", advantages[~advantages.isnan()].abs())
        self.values["diversity"] += [float(diversity(latents)) for latents in groups if len(latents) > 1]

    def means(self, processes: Processes) -> dict[str, float]:
        """By name; one without any values is left out."""
        sums = [number for name in self.names for number in (math.fsum(self.values[name]), len(self.values[name]))]
        table = torch.tensor(processes.gathered(sums), dtype=torch.float64).view(processes.count, len(self.names), 2)
        return {name: float(t / n) for name, (t, n) in zip(self.names, table.sum(0), strict=True) if n}


def totals(own: Mapping[str, float], processes: Processes) -> dict[str, float]:
    """Sums over all processes, which must give the same names."""
    numbers = processes.gathered([*own.values()]) if own else []
    return {name: math.fsum(numbers[i :: len(own)]) for i, name in enumerate(own)}


def statistics_of(picture: Image) -> dict[str, float]:
    """edges: mean step between neighbours, of 1. colors: entropy in bits over 64 colours. dark: share below a tenth."""
    pixels = np.asarray(picture.convert("RGB"), np.float32) / 255
    edges = (np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean()) / 2
    codes = (np.minimum(pixels * 4, 3).astype(int) @ np.array([16, 4, 1])).ravel()
    shares = np.bincount(codes, minlength=64) / codes.size
    entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    return {"edges": float(edges), "colors": float(entropy), "dark": float((pixels.mean(2) < 0.1).mean())}
