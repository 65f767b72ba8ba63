"""The DiT in training: what Kontext, align, joint and reinforcement share."""

from __future__ import annotations

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
from unipic.types import Condition


def trained_transformer(
    folder: ModelFolder, lora: LoraConfig | None, *, seed: int, checkpointing: bool, device: torch.device
) -> KontextTransformer:
    """A folder's transformer, in float32, with gradients: of all its weights, or of adapters alone."""
    transformer = load_transformer(folder, torch.float32)
    transformer.to(device)
    if lora is None:
        transformer.requires_grad_(True)
    else:
        add_lora(transformer, lora, seed)
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
    """Latents of a batch's pictures; of those that come again, kept."""

    def __init__(self, vae: VAE, data: DataConfig, scope: str, device: torch.device) -> None:
        self.vae, self.device = vae, device
        self.cache = cache_of(data, f"latents {scope}")

    def of(self, micro: Pictures) -> Tensor:
        """B×C×h×w, of what is to be drawn; float32."""
        return self._latents(micro.pixels, micro.keys, "picture")

    def of_references(self, micro: Pictures) -> list[Tensor]:
        return [self._latents(pixels, micro.keys, f"reference {i}") for i, pixels in enumerate(micro.references)]

    def _latents(self, pixels: Tensor, keys: Sequence[str | None], role: str) -> Tensor:
        def make(missing: list[int]) -> list[Made]:
            return [(latent,) for latent in self.vae.latents(pixels[missing].to(self.device)).float()]

        (latents,) = self.cache.get([key and f"{key} {role}" for key in keys], make, self.device)
        return latents


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
