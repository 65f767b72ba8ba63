"""Stand-in for SD3.5's autoencoder: a tiny AutoencoderKL, trained to copy pictures through a small latent.

What a DiT must later learn decides its loss: pixels and edges alike (L1; squares, too, since small objects on a plain
ground do not move the median), a light pull of the posterior towards a unit normal, and noise on what the decoder
reads, so that a latent that is slightly wrong still decodes to a clean shape. Of an edit both pictures are copied.
At the end latents are measured and `shift_factor` and `scaling_factor` set, so that they have unit variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unipic.models.assembly import Changed, assemble, components_of
from unipic.models.find import find_model
from unipic.models.vae import VAE, load_vae
from unipic.train.batches import Batches, Pictures, PromptsConfig, stacked
from unipic.train.log import Shown
from unipic.train.loop import RunConfig
from unipic.train.optim import Tensors
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.showing import fixed_examples, right

NonNegative = Annotated[float, Field(ge=0)]
MEASURED = 512  # pictures whose latents set the scale


class VaeConfig(RunConfig):
    """squares, edges, kl: weights beside the pixels' L1.

    noise: the most that is added to a latent, in standard deviations of its own; how much is drawn for each sample. A
    decoder that still sees the picture then asks less of the DiT, whose latents are never quite right.
    """

    stage: Literal["vae"]
    model: str = "tiny-kontext"
    data: PromptsConfig = PromptsConfig()
    squares: NonNegative = 6.0
    edges: NonNegative = 1.0
    kl: NonNegative = 1e-4
    noise: NonNegative = 0.05
    show_count: Annotated[int, Field(ge=0)] = 16


class VaeStage:
    """The autoencoder of any folder, in training."""

    def __init__(self, config: VaeConfig) -> None:
        self.config = config
        self.batches = Batches(config.data, config.seed, config.batch, config.micro_batch)
        self.folder = find_model(config.model)

    def place(self, processes: Processes) -> None:
        self.device = processes.device
        self.vae = load_vae(self.folder, torch.float32).to(self.device).requires_grad_(True).train()

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        return {"vae": self.vae}

    def batch(self, step: int, share: range) -> list[Pictures]:
        return self.batches.micros(step, share)

    def losses(self, micro: Pictures, draws: Draws) -> Tensor:
        copies = [self._copied(pixels, draws) for pixels in (micro.pixels, *micro.references)]
        return torch.stack(copies).mean(0)

    def _copied(self, pixels: Tensor, draws: Draws) -> Tensor:
        """The losses of one picture of each sample."""
        wanted = pixels.to(self.device).float() / 127.5 - 1
        posterior = self.vae.encode(wanted).latent_dist
        latent = posterior.mean + posterior.std * draws.normal(*posterior.mean.shape[1:])
        level = self.config.noise * draws.uniform() * latent.detach().flatten(1).std(1)
        latent = latent + level.view(-1, 1, 1, 1) * draws.normal(*latent.shape[1:])
        made = self.vae.decode(latent).sample
        config = self.config
        return vae_losses(made, wanted, posterior.kl(), squares=config.squares, edges=config.edges, kl_weight=config.kl)

    @torch.no_grad()
    def show(self) -> list[Shown]:
        """Pictures and their copies."""
        vae, found = VAE(self.vae), []
        for examples in fixed_examples(self.batches, self.config.show_count):
            for e in examples:
                copy = vae.decode(vae.encode(e.picture))
                found.append(Shown(e.text, (e.picture, copy), right(e, copy)))
        return found

    def export(self, folder: Path, weights: Tensors) -> None:
        vae = load_vae(self.folder, torch.float32).to(self.device)
        vae.load_state_dict(weights["vae"])
        shift, deviation = self._measured(vae)
        config = self.folder.config("vae") | {"shift_factor": shift, "scaling_factor": 1 / deviation}
        components = components_of(self.folder)
        components["vae"] = Changed(config, weights["vae"])
        assemble(folder, components, self.folder.defaults)

    @torch.no_grad()
    def _measured(self, vae: Any) -> tuple[float, float]:
        """Mean and standard deviation of the latents of the first pictures of training."""
        latents: list[Tensor] = []
        step = 0
        while sum(len(latent) for latent in latents) < MEASURED:
            pixels = stacked([e.picture for e in self.batches.examples(step, range(self.config.batch))])
            latents.append(vae.encode(pixels.to(self.device).float() / 127.5 - 1).latent_dist.mode())
            step += 1
        values = torch.cat([latent.flatten() for latent in latents]).double()
        return float(values.mean()), float(values.std())


def vae_losses(made: Tensor, wanted: Tensor, kl: Tensor, *, squares: float, edges: float, kl_weight: float) -> Tensor:
    """L1 and squares of pixels, L1 of their differences to the right and below, and the posterior's KL, a value.

    made, wanted: B×3×H×W; kl: B. Returns B.
    """

    def l1(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).mean(1)

    pixels = l1(made, wanted) + squares * (made - wanted).square().flatten(1).mean(1)
    contours = l1(made.diff(dim=-1), wanted.diff(dim=-1)) + l1(made.diff(dim=-2), wanted.diff(dim=-2))
    return pixels + edges * contours + kl_weight * kl / made[0].numel()
