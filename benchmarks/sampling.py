"""Steps and guidance: what they cost a picture, and what the world's benchmark says of it.

    python benchmarks/sampling.py MODEL [N]         resumable; pictures are under runs/sampling

N items each of prompts and of edits, the same for every setting. Seconds are a picture's of 64×64 by itself, the median
of seven, generation and edit; imports and loading aside.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unipic import UniPic
from unipic.evals import tables, world
from unipic.evals.generate import generate, requests_of
from unipic.evals.ledger import Ledger
from unipic.evals.run import RESULTS, settings_of
from unipic.evals.score import result_of

STEPS, SCALES = (10, 20, 50), (1.0, 2.0, 3.5, 5.0)
ROUNDS = 7


def main(model: str, n: int) -> None:
    system = UniPic.from_pretrained(model)
    folder = Path("runs/sampling") / system.parts.folder.weights_hash(system.parts.mllm_folder)[:12]
    place, threads = system.parts.placement.device, torch.get_num_threads()
    print(f"{model}, {n} prompts and {n} edits, {place}, {threads} threads, {platform.machine()}, {date.today()}\n")
    print("| steps | guidance | strictly right | edits, of 10 | s a picture | s an edit |\n|---|---|---|---|---|---|")
    for steps in STEPS:
        for scale in SCALES:
            sampling = {"steps": steps, "guidance_scale": scale}
            prompts, edits = quality(system, folder / f"{steps}-{scale:g}", n, sampling)
            drawn, edited = cost(system, sampling)
            print(f"| {steps} | {scale:g} | {prompts} | {edits} | {drawn:.2f} | {edited:.2f} |", flush=True)


def quality(system: UniPic, run: Path, n: int, sampling: dict[str, Any]) -> tuple[str, str]:
    """Overall scores of prompts and edits, with their intervals."""
    items = world.items(0, n, ("geneval", "edit"))
    with Ledger(run / RESULTS) as ledger:
        generate(system, items, requests_of(system, items, settings_of(system, sampling), control=False), ledger)
        judged = [(item, world.judge(item, result_of(item, ledger))) for item in items]
    scores = tables.tally(judged)
    return tables.cell(scores["geneval"]["overall"]), tables.cell(scores["edit"]["overall"])


def cost(system: UniPic, sampling: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a picture and of an edit."""
    picture = system.generate("a red circle", **sampling)[0]

    def median(draw: Callable[[], object]) -> float:
        return statistics.median(seconds(draw) for _ in range(ROUNDS))

    draw = partial(system.generate, "a red circle", **sampling)
    return median(draw), median(partial(system.edit, picture, "Make it blue", **sampling))


def seconds(draw: Callable[[], object]) -> float:
    start = time.perf_counter()
    draw()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 96)
