"""The DiT in training: what Kontext, align, joint and reinforcement share."""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unipic import flow
from unipic.data.source import Example
from unipic.errors import BadInput
from unipic.models.assembly import Changed
from unipic.models.find import find_model
from unipic.models.folder import ModelFolder
from unipic.models.kontext import KontextTransformer, load_transformer
from unipic.models.lora import merge_lora
from unipic.models.spec import ModelSpec
from unipic.models.vae import VAE, load_vae
from unipic.train.batches import Batches, DataConfig, Pictures, Share, cache_of, pictures_of, scope_of
from unipic.train.cache import Made
from unipic.train.cells import CellHead, scene_losses
from unipic.train.flow_loss import TimesConfig, change_weights, flow_losses, times
from unipic.train.log import Shown
from unipic.train.loop import RunConfig
from unipic.train.lora import LoraConfig, add_lora, save_lora
from unipic.train.optim import Tensors
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.showing import ShowConfig, draw_examples, fixed_examples, shown
from unipic.types import Condition

LOOKED_AT = 64  # batches of each phase and task, before training begins


class DitConfig(RunConfig):
    """noises: how often a sample is noised in an update, at levels of their own, while what encodes it runs once.
    drop_text: share of samples whose text becomes empty. weigh_changes: whether the few places that an edit changes
    count for more (see `flow_loss.change_weights`). cells: weight of a second loss, on what each image token knows
    on its way (see `train.cells`); for scenes of the embedded world. save_dtype: of the trained weights on disk.
    """

    data: DataConfig = DataConfig()
    times: TimesConfig = TimesConfig()
    noises: Annotated[int, Field(ge=1)] = 1
    drop_text: Share = 0.1
    weigh_changes: bool = False
    cells: Annotated[float, Field(ge=0)] = 0.0
    show: ShowConfig = ShowConfig()
    save_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


class DitStage(ABC):
    """Losses and pictures of a DiT in training; what speaks to it, and what is trained, is the stage's to say."""

    transformer: KontextTransformer

    def __init__(self, config: Any, kind: str, wanted: str) -> None:
        """kind: of the folder to start from; wanted: the same in words. Raises BadInput for another."""
        self.config = config
        self.batches = Batches(config.data, config.seed, config.batch, config.micro_batch)
        self.folder = find_model(config.model)
        if self.folder.kind != kind:
            raise wrong_kind(config.model, wanted)
        self.dit_folder = self.folder
        self.check_sizes()

    def check_sizes(self) -> None:
        """Raise BadInput if a phase's first batches have more positions than the transformer knows."""
        for phase in self.config.data.phases:
            for task in dict.fromkeys(self.config.data.tasks):
                for turn in range(LOOKED_AT):
                    size = self.batches.source.draw(task, turn, self.config.batch, phase.resolution).size
                    self.check_size(*size, f"data.phases, resolution {phase.resolution}")

    def check_size(self, width: int, height: int, where: str) -> None:
        largest = ModelSpec(self.dit_folder).largest_side
        if max(width, height) > largest:
            what = f"pictures of {width}x{height} have more positions than the transformer knows"
            raise BadInput(what, where, f"lower the resolution: sides of {largest} at most")

    def place_vae(self, processes: Processes) -> None:
        self.vae = VAE(load_vae(self.folder, processes.dtype).to(processes.device))
        data = self.config.data
        self.latents = Latents(self.vae, data, scope_of(data, self.folder, "vae"), processes.device)

    @property
    def scope(self) -> str:
        """Of conditions that are kept: what makes them, in this folder all but the DiT and the autoencoder."""
        speaks = [c for c in self.folder.components() if c not in ("transformer", "scheduler", "vae")]
        return scope_of(self.config.data, self.folder, *speaks)

    def batch(self, step: int, share: range) -> list[Pictures]:
        micros = self.batches.micros(step, share)
        for size in {micro.size for micro in micros}:
            self.check_size(*size, f"data.phases, step {step}")
        return micros

    @abstractmethod
    def encode(self, texts: Sequence[str], micro: Pictures) -> Condition:
        """Conditions of samples, with these texts in place of their own."""

    def references(self, micro: Pictures) -> list[Tensor]:
        """Latents of what the DiT itself sees of the pictures to be edited."""
        return self.latents.of_references(micro)

    def losses(self, micro: Pictures, draws: Draws) -> Tensor:
        x0 = self.latents.of(micro)
        count = self.config.noises
        drawn = [(draws.normal(*x0.shape[1:]), times(self.config.times, draws)) for _ in range(count)]
        noise, t = (torch.cat(each) for each in zip(*drawn, strict=True))
        dropped = (draws.uniform() < self.config.drop_text).tolist()
        texts = ["" if drop else text for drop, text in zip(dropped, micro.texts, strict=True)]
        condition = Condition.cat([self.encode(texts, micro)] * count)
        seen = self.references(micro)
        references = [torch.cat([latents] * count) for latents in seen]
        taps: dict[int, Tensor] = {}
        velocity = velocity_of(self.transformer, condition, references, taps if self.config.cells else None)
        weights = None
        if self.config.weigh_changes and micro.task == "edit":
            source = (seen or self.latents.of_references(micro))[0]
            weights = change_weights(x0, source).repeat(count, 1, 1, 1)
        losses = flow_losses(velocity, torch.cat([x0] * count), t, noise, weights).view(count, -1).mean(0)
        if not self.config.cells:
            return losses
        rows, columns = (side // self.transformer.config.patch_size for side in x0.shape[-2:])
        shown = [own[-len(seen) - 1 :] for own in micro.scenes]  # references that the DiT does not see have no tokens
        told: Tensor = self.teachers["cells"](taps[self.tapped]).unflatten(0, (count, -1)).transpose(0, 1)
        return losses + float(self.config.cells) * scene_losses(told, shown, rows, columns)

    @property
    def tapped(self) -> int:
        """The block at two thirds of the way: what is to be drawn must be known there, and can still be drawn."""
        return max(0, len(self.transformer.transformer_blocks) * 2 // 3 - 1)

    @cached_property
    def teachers(self) -> Mapping[str, nn.Module]:
        """Trained beside the model, and thrown away."""
        if not self.config.cells:
            return {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return {"cells": CellHead(self.transformer.inner_dim).to(self.vae.module.device)}

    def show(self) -> list[Shown]:
        config = self.config
        found: list[Shown] = []
        for examples in fixed_examples(self.batches, config.show.count):
            drawn = draw_examples(examples, config.show, self.transformer, self.vae, self._prepared, config.seed)
            found += shown(examples, drawn)
        return found

    def _prepared(self, examples: Sequence[Example]) -> tuple[Condition, Condition, list[Tensor]]:
        micro = pictures_of(examples)
        return self.encode(micro.texts, micro), self.encode([""] * len(examples), micro), self.references(micro)


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
    transformer: KontextTransformer,
    condition: Condition,
    references: Sequence[Tensor] = (),
    taps: dict[int, Tensor] | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """(x: B×C×H×W, t: B) → velocity, without guidance. taps: see `KontextTransformer`."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        at, text = t * flow.TRAIN_TIMESTEPS, condition
        v: Tensor = transformer(x, text.tokens, text.pooled, at, references=references, taps=taps)
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
        return self._latents(micro.pixels, micro)

    def of_references(self, micro: Pictures) -> list[Tensor]:
        return [self._latents(pixels, micro) for pixels in micro.references]

    def _latents(self, pixels: Tensor, micro: Pictures) -> Tensor:
        def make(missing: list[int]) -> list[Made]:
            return [(latent,) for latent in self.vae.latents(pixels[missing].to(self.device)).float()]

        kept = [lasts and self.cache.keeps for lasts in micro.lasting]
        keys = [content(p) if keep else None for p, keep in zip(pixels, kept, strict=True)]
        (latents,) = self.cache.get(keys, make, self.device)
        return latents


def content(pixels: Tensor) -> str:
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
