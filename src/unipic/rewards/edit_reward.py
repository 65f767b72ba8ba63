"""EditReward: a trained model's scores of edits as a reward (paper §3.2). Other pictures have none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import Lock

import torch

from unipic.models.find import find_model
from unipic.models.placement import Placement
from unipic.models.reward_model import FULL, OUTPUTS, Edited, Output, load_reward_model
from unipic.rewards.reward import Sample


class EditReward:
    """One of a reward model's outputs as a share of its best, about 0 to 1. Samples of one source and instruction share
    what is read of it.

    model: a folder, or a hub name. output: one of `OUTPUTS`. batch: of results in a forward. May be called from several
    threads, for one of which at a time it computes.
    """

    def __init__(
        self, model: str, output: Output = "overall", batch: int = 16, device: str = "auto", dtype: str = "auto"
    ) -> None:
        if device == "auto" and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # of the processes of a run each has its own
        place = Placement.choose(device, dtype)
        self.model = load_reward_model(find_model(model), place.dtype, place.device)
        self.index, self.batch = OUTPUTS.index(output), batch
        self.lock = Lock()

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        groups: dict[tuple[str, bytes], list[int]] = {}
        pixels: dict[int, bytes] = {}  # of each source, once
        for i, sample in enumerate(samples):
            if (source := sample.source) is not None:
                if id(source) not in pixels:
                    pixels[id(source)] = repr((source.mode, source.size)).encode() + source.tobytes()
                groups.setdefault((sample.text, pixels[id(source)]), []).append(i)
        edits = [_group([samples[i] for i in members]) for members in groups.values()]
        scores: list[float | None] = [None] * len(samples)
        order = [i for members in groups.values() for i in members]
        with self.lock:
            found = self.model.score(edits, self.batch, bounded=False)[:, self.index].tolist()
        for i, score in zip(order, found, strict=True):
            scores[i] = score / FULL
        return scores


def _group(samples: Sequence[Sample]) -> Edited:
    """Of one source, which all have, and one instruction."""
    first, results = samples[0], tuple(sample.picture.convert("RGB") for sample in samples)
    return Edited((first.source or first.picture).convert("RGB"), first.text, results)
