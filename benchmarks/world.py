"""How many pictures the small world draws in a second, and how many verdicts it gives, on one core.

    python benchmarks/world.py [SCENES]

Drawing, looking at prompts and looking at edits take turns in one process. The processor's time is taken, not the
clock's, and the best of the rounds is printed: what the machine does besides should not count.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from datetime import date

import numpy as np
from PIL import Image

from unipic.world import edits, language, verify
from unipic.world.language import Prompt
from unipic.world.render import render
from unipic.world.scene import sample

ROUNDS = 7


def prompts(count: int) -> list[tuple[Image.Image, Prompt]]:
    """Pictures, each with a prompt that is true of it; of every kind in turn."""
    found: list[tuple[Image.Image, Prompt]] = []
    seed = 0
    while len(found) < count:
        tag = language.TAGS[seed % len(language.TAGS)]
        scene = sample(seed, "train")
        prompt = language.prompt(scene, tag, np.random.default_rng(seed))
        if prompt is not None:
            found.append((render(scene), prompt))
        seed += 1
    return found


def main(count: int) -> None:
    scenes = [sample(seed, "train") for seed in range(count)]
    asked = [(picture, prompt.metadata()) for picture, prompt in prompts(count)]
    changed = [edits.sample(seed, "train") for seed in range(count)]
    drawn = [(render(edit.source), render(edit.target), edit) for edit in changed]
    tasks: dict[str, Callable[[], object]] = {
        "renders": lambda: [render(scene) for scene in scenes],
        "prompt verdicts": lambda: [verify.prompt(picture, spec) for picture, spec in asked],
        "edit verdicts": lambda: [verify.edit(*parts) for parts in drawn],
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for done in range(ROUNDS + 1):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            if done:  # the first round fills the caches of masks and templates
                seconds[name].append(time.process_time() - start)
    rates = "   ".join(f"{name} {count / min(taken):,.0f}/s" for name, taken in seconds.items())
    print(f"{count} of each, {ROUNDS} rounds, one core, {platform.machine()}, {date.today()}\n{rates}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
