"""How much faster `fast_batch` is than the exact mode, and how far its pictures differ.

    python benchmarks/batching.py [MODEL] [PICTURES] [STEPS]

The two modes take turns in one process; the ratio of their fastest rounds is printed, with the largest difference of a
pixel in grey levels.
"""

from __future__ import annotations

import platform
import sys
import time
from datetime import date

import numpy as np
import torch

from unipic import UniPic
from unipic.types import Request

ROUNDS = 5


def main(model: str, pictures: int, steps: int) -> None:
    system = UniPic.from_pretrained(model)
    size = {k: system.defaults["generate"][k] for k in ("width", "height")}
    requests = [Request("a red circle", seed=seed, steps=steps, **size) for seed in range(pictures)]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    results = {}
    for _ in range(ROUNDS):
        for fast in (False, True):
            start = time.perf_counter()
            results[fast] = system.run(requests, fast_batch=fast)
            seconds[fast].append(time.perf_counter() - start)
    exact, fast_time = min(seconds[False]), min(seconds[True])
    difference = max(
        int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) for a, b in zip(*results.values(), strict=True)
    )
    print(
        f"{model}, {pictures} pictures of {size['width']}x{size['height']}, {steps} steps, "
        f"{system.parts.placement.device}, {torch.get_num_threads()} threads, {platform.machine()}, {date.today()}\n"
        f"exact {pictures / exact:.2f} pictures/s   fast {pictures / fast_time:.2f} pictures/s   "
        f"ratio {exact / fast_time:.2f}   largest difference {difference} grey levels"
    )


if __name__ == "__main__":
    arguments = sys.argv[1:] + ["tiny", "8", "10"][len(sys.argv) - 1 :]
    main(arguments[0], int(arguments[1]), int(arguments[2]))
