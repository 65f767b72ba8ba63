"""What a reward costs for 1,000 pictures: time, the processor's time, a GPU's memory, and what a judge is paid.

    python benchmarks/rewards.py REWARD [TASK] [PICTURES] [SIDE]

REWARD: a kind, or a .yaml file with a reward as recipes have it, as for `unipic serve-reward`. TASK: edit (if none is
given), generate, or text, whose prompts ask for a word. PICTURES: how many, in groups of 16 (64). SIDE: in pixels (64).

Pictures are the world's, every one another. A first group warms up and does not count; a judge wants to be paid for
it all the same. Of a remote reward or a judge, the processor's time is the client's alone.
"""

from __future__ import annotations

import platform
import sys
import time
from datetime import date

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter

from unipic.config import read_recipe, resolve
from unipic.rewards.configs import RewardConfig
from unipic.rewards.reward import Sample, WeightedSum
from unipic.world import edits, language
from unipic.world.render import render
from unipic.world.scene import sample

GROUP = 16


def group(task: str, number: int, side: int) -> list[Sample]:
    """Pictures of one prompt or edit."""
    if task == "edit":
        edit = edits.sample(number, "train")
        text, source, picture, spec = edit.instruction, scaled(render(edit.source), side), render(edit.target), edit
    else:
        tries = (sample(1000 * number + i, "train") for i in range(1000))
        told = ((s, language.prompt(s, language.TAGS[number % 6], np.random.default_rng(number))) for s in tries)
        scene, prompt = next((s, p) for s, p in told if p is not None)
        text = 'a sign that says "unipic"' if task == "text" else prompt.text
        source, picture, spec = None, render(scene), prompt if task == "generate" else None
    moved = [Image.fromarray(np.roll(np.asarray(picture), i, axis=1)) for i in range(GROUP)]
    return [Sample(text, scaled(p, side), source, spec) for p in moved]


def scaled(picture: Image.Image, side: int) -> Image.Image:
    return picture if picture.width == side else picture.resize((side, side), Image.Resampling.NEAREST)


def main(name: str, task: str = "edit", count: int = 64, side: int = 64) -> None:
    raw, where = read_recipe(name) if name.endswith((".yaml", ".yml")) else ({"kind": name}, name)
    adapter: TypeAdapter[RewardConfig] = TypeAdapter(RewardConfig)
    reward = WeightedSum({"": (1.0, resolve(adapter, raw, where).open())})
    groups = [group(task, number, side) for number in range(1 + -(-count // GROUP))]
    reward.score(groups[0])
    reward.told()
    samples = [each for own in groups[1:] for each in own]
    begun, worked = time.perf_counter(), time.process_time()
    scores = reward.score(samples).total
    seconds, work = time.perf_counter() - begun, time.process_time() - worked
    told = {key.removeprefix("/"): value for key, value in reward.told().items()}
    share = 1000 / len(samples)
    known = sum(score is not None for score in scores)
    print(f"{name}, {task}: {len(samples)} pictures, {side}x{side}, in groups of {GROUP}; {known} were scored")
    costs = {"seconds": seconds, "of the processor": work, **told}
    print("1,000 pictures: " + ", ".join(f"{key} {share * value:,.4g}" for key, value in costs.items()))
    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        print(f"{torch.cuda.get_device_name()}, peak {peak / 2**30:.1f} GiB")
    print(f"{torch.get_num_threads()} threads, {platform.machine()}, {date.today()}")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(*given[:2], *map(int, given[2:4]))
