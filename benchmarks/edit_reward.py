"""What scoring groups of edits costs when instruction and source are read once, beside a whole prompt for every result.

    python benchmarks/edit_reward.py [MODEL] [GROUP] [SIDE]

MODEL: a reward model's folder, or any with a language model inside, which gets a new head (default: tiny). GROUP:
results of each of two edits (default 16). SIDE: of the pictures, in pixels (default 64). Both ways take turns in one
process on the same pictures; the fastest round of each counts, and their scores are compared. The plain way sees a
source again for every result, as scoring one prompt after another would.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from unipic.models.find import find_language_model
from unipic.models.mllm import load_mllm
from unipic.models.placement import Placement
from unipic.models.reward_model import Edited, RewardModel, load_reward_model, new_head

ROUNDS = 7
INSTRUCTIONS = ("Make the red circle blue", "Move the star to the left and remove the large green square")


def opened(name: str) -> RewardModel:
    place, folder = Placement.choose(), find_language_model(name)
    whole = replace(folder, inside="")
    if folder.inside and whole.has("reward_head"):
        return load_reward_model(whole, place.dtype, place.device)
    mllm = load_mllm(folder, place.dtype, place.device)
    mllm.model.to(place.device)
    return RewardModel(mllm, new_head(mllm.width, 0))


def picture(seed: int, side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def main(name: str = "tiny", group: int = 16, side: int = 64) -> None:
    model = opened(name)
    edits = [
        Edited(picture(i, side), text, tuple(picture(100 * i + j, side) for j in range(1, group + 1)))
        for i, text in enumerate(INSTRUCTIONS)
    ]
    alone = [Edited(e.source, e.instruction, (result,)) for e in edits for result in e.results]
    ways = {"shared": (edits, True), "plain": (alone, False)}
    fastest: dict[str, float] = dict.fromkeys(ways, float("inf"))
    scores = {}
    for _ in range(ROUNDS + 1):  # the first warms up
        for way, (asked, shared) in ways.items():
            begun = time.perf_counter()
            with torch.no_grad():
                scores[way] = model.predict(asked, shared=shared).cpu()
            fastest[way] = min(fastest[way], time.perf_counter() - begun)
    print(f"{name}: 2 groups of {group} results, {side}x{side}")
    for way, seconds in fastest.items():
        print(f"{way:7} {1000 * seconds:8.1f} ms  {2 * group / seconds:8.1f} results/s")
    apart = float((scores["shared"] - scores["plain"]).abs().max())
    print(f"ratio {fastest['plain'] / fastest['shared']:.2f}; scores differ by at most {apart:.1e} of 1")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(*given[:1], *map(int, given[1:3]))
