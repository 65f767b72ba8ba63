"""At which noise an edit goes wrong: scores of edits that start from their right result under so much noise.

    python benchmarks/noise_levels.py MODEL [N]

N edits of the world's benchmark, with the model's own steps and guidance. At level 0 the right result is only encoded
and decoded, at 1 nothing is given away. What is lost between two levels is lost by the steps between them.
"""

from __future__ import annotations

import platform
import sys
from datetime import date

import torch
from torch import Tensor

from unipic import UniPic, flow
from unipic.evals import tables, world
from unipic.evals.generate import batches, requests_of
from unipic.evals.items import Item
from unipic.evals.run import settings_of
from unipic.parts import Parts
from unipic.pipeline import encode, initial_latent, velocity_of
from unipic.sampling import sample
from unipic.types import Request
from unipic.world import edits
from unipic.world.render import render

LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


def main(model: str, n: int) -> None:
    system = UniPic.from_pretrained(model)
    items = world.items(0, n, ("edit",))
    requests = requests_of(system, items, settings_of(system, {}), control=False)
    print(f"{model}, {n} edits, {torch.get_num_threads()} threads, {platform.machine()}, {date.today()}\n")
    print("| noise |", " | ".join(("edits", *edits.TYPES)), "|")
    print("|---" * (2 + len(edits.TYPES)) + "|")
    judged: dict[float, list[tuple[Item, world.Verdict]]] = {level: [] for level in LEVELS}
    for batch in batches(items):
        for level, latents in restored(system.parts, batch, [requests[item.id] for item in batch]).items():
            with system.parts.vae.use() as vae:
                pictures = [vae.decode(latent[None]) for latent in latents]
            judged[level] += [(item, world.judge(item, p)) for item, p in zip(batch, pictures, strict=True)]
    for level, found in judged.items():
        scores = tables.tally(found)["edit"]
        types = [f"{score.value:.1f}" if (score := scores[type]) else "–" for type in edits.TYPES]
        print(f"| {level:g} |", " | ".join((tables.cell(scores["overall"]), *types)), "|")


@torch.no_grad()
def restored(parts: Parts, items: list[Item], requests: list[Request]) -> dict[float, Tensor]:
    """By level, what becomes of the right results' latents: B×C×h×w."""
    work = list(zip(requests, encode(parts, requests), strict=True))
    with parts.vae.use() as vae:
        right = torch.cat([vae.encode(render(item.spec.target)) for item in items])
    noise = torch.cat([initial_latent(parts, request) for request in requests])
    right, sigmas = right.to(noise), flow.sigmas(requests[0].steps, parts.spec.shift)
    with parts.transformer.use() as transformer:
        velocity = velocity_of(parts, transformer, work, sigmas)
        return {level: sample(velocity, *begun(right, noise, sigmas, level)) if level else right for level in LEVELS}


def begun(right: Tensor, noise: Tensor, sigmas: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The right result at a level, and the steps that are left: those below it."""
    start = torch.tensor([level], dtype=sigmas.dtype)
    x = flow.interpolate(right, noise, start.expand(len(right)).to(right))
    return x, torch.cat([start, sigmas[sigmas < level - 1e-3]])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 96)
