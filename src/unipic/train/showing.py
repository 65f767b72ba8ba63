"""Pictures of fixed samples while a model trains, and whether they are right, where their source can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from PIL.Image import Image
from pydantic import Field
from torch import Tensor

from unipic import flow
from unipic.config import Strict
from unipic.data.source import Example
from unipic.models.vae import VAE
from unipic.rewards.world import judge
from unipic.sampling import Transformer, guided, sample
from unipic.train.batches import Batches, stacked
from unipic.train.log import Shown
from unipic.train.randomness import Draws
from unipic.types import Condition

Prepare = Callable[[Sequence[Example]], tuple[Condition, Condition, Sequence[Tensor]]]
"""Examples of one task and size → their conditions, those of their negative branch, and the DiT's reference latents"""


class ShowConfig(Strict):
    """count: of each task, the first samples of the source at the last resolution. batch: of them in a forward."""

    count: Annotated[int, Field(ge=0)] = 8
    batch: Annotated[int, Field(ge=1)] = 16
    steps: Annotated[int, Field(ge=1)] = 20
    guidance_scale: Annotated[float, Field(ge=1)] = 3.5


def fixed_examples(batches: Batches, count: int) -> list[list[Example]]:
    """The first samples of each task, at the last resolution; a list for each task."""
    resolution = batches.data.phases[-1].resolution
    found = []
    for task in dict.fromkeys(batches.data.tasks if count else ()):
        draw = batches.source.draw(task, 0, count, resolution)
        found.append([batches.source.load(draw, i) for i in range(count)])
    return found


@torch.no_grad()
def draw_examples(
    examples: Sequence[Example], config: ShowConfig, transformer: Transformer, vae: VAE, prepare: Prepare, seed: int
) -> list[Image]:
    """Pictures of examples of one task and size, with guidance; the i-th from noise of (seed, i)."""
    device, dtype, pictures = vae.module.device, vae.module.dtype, []
    sigmas = flow.sigmas(config.steps)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):  # what is trained stays in float32
        for start in range(0, len(examples), config.batch):
            part = examples[start : start + config.batch]
            condition, negative, references = prepare(part)
            latents = vae.latents(stacked([e.picture for e in part[:1]]).to(device))
            noise = Draws(seed, range(start, start + len(part)), device).normal(*latents.shape[1:])
            velocity = guided(transformer, condition, negative, references, scale=config.guidance_scale)
            pictures += [vae.decode(latent) for latent in torch.split(sample(velocity, noise, sigmas), 1)]
    return pictures


def shown(examples: Sequence[Example], pictures: Sequence[Image]) -> list[Shown]:
    """With their references and verdicts."""
    return [Shown(e.text, (*e.references, p), right(e, p)) for e, p in zip(examples, pictures, strict=True)]


def right(example: Example, picture: Image) -> bool | None:
    """Whether a picture is what an example of the world asks for; None for others."""
    verdict = judge(example.spec, picture)
    return None if verdict is None else verdict.right
