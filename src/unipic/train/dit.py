"""The DiT in training: what Kontext, align, joint and reinforcement share."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from unipic import flow
from unipic.errors import BadInput
from unipic.models.assembly import Changed
from unipic.models.folder import ModelFolder
from unipic.models.kontext import KontextTransformer, load_transformer
from unipic.models.lora import merge_lora
from unipic.models.vae import VAE
from unipic.train.batches import DataConfig, Pictures, cache_of
from unipic.train.cache import Made
from unipic.train.lora import LoraConfig, add_lora, save_lora
from unipic.train.optim import Tensors
from unipic.train.processes import Processes
from unipic.types import Condition


def trained_transformer(
    folder: ModelFolder, lora: LoraConfig | None, *, seed: int, checkpointing: bool, processes: Processes
) -> KontextTransformer:
    """A folder's transformer on its device: with gradients of all its weights, in float32; or of adapters alone, in
    float32 on a base in the precision that is computed in.
    """
    transformer = load_transformer(folder, torch.float32 if lora is None else processes.dtype)
    transformer.to(processes.device)
    if lora is None:
        transformer.requires_grad_(True)
    else:
        add_lora(transformer, lora, seed)
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train()
    return transformer


def velocity_of(
    transformer: KontextTransformer, condition: Condition, references: Sequence[Tensor] = ()
) -> Callable[[Tensor, Tensor], Tensor]:
    """(x: B×C×H×W, t: B) → velocity, without guidance."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v: Tensor = transformer(x, condition.tokens, condition.pooled, t * flow.TRAIN_TIMESTEPS, references=references)
        return v

    return velocity


class Latents:
    """Latents of a batch's pictures; of those that come again, kept under their pixels.

    Not under their ids: two folders may both have a sample "1", and a folder may change between runs.
    """

    def __init__(self, vae: VAE, data: DataConfig, scope: str, device: torch.device) -> None:
        self.vae, self.device = vae, device
        self.cache = cache_of(data, f"latents {scope} {vae.module.dtype} {vae.shift} {vae.scale}")

    def of(self, micro: Pictures) -> Tensor:
        """B×C×h×w, of what is to be drawn; float32."""
        return self._latents(micro.pixels, micro.lasting)

    def of_references(self, micro: Pictures) -> list[Tensor]:
        return [self._latents(pixels, micro.lasting) for pixels in micro.references]

    def _latents(self, pixels: Tensor, lasting: bool) -> Tensor:
        def make(missing: list[int]) -> list[Made]:
            return [(latent,) for latent in self.vae.latents(pixels[missing].to(self.device)).float()]

        (latents,) = self.cache.get([_content(p) if lasting else None for p in pixels], make, self.device)
        return latents


def _content(pixels: Tensor) -> str:
    """A name for a picture, 3×H×W, that no other has."""
    return f"{tuple(pixels.shape)} {hashlib.sha256(pixels.contiguous().numpy().data).hexdigest()}"


def transformer_component(
    folder: ModelFolder, tensors: Tensors, lora: LoraConfig | None, dtype: torch.dtype
) -> Changed:
    """The trained transformer of a new folder: its weights, or the folder's with the adapters merged into them."""
    trained = tensors["transformer"]
    if lora is not None:
        transformer = load_transformer(folder, torch.float32)
        with tempfile.TemporaryDirectory() as temporary:
            save_lora(Path(temporary), trained, lora)
            merge_lora(transformer, temporary)
        trained = transformer.state_dict()
    return Changed.over(folder, "transformer", trained, dtype)


def wrong_kind(model: str, wanted: str) -> BadInput:
    return BadInput(f"this stage starts from {wanted}", f"model: {model}", "give another model")
