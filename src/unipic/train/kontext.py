"""Kontext: the DiT learns to generate and, from reference latents, to edit (paper §3.1). All else is frozen.

With tasks [generate] alone the same stage gives `align` its text-to-image base. Full fine-tuning, or a LoRA, which is
exported beside the merged model. The paper does not say how conditions are dropped: here each sample's text becomes
empty with probability `drop_text`, its references stay, as the sampler's negative branch keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from unipic.models.assembly import assemble, components_of
from unipic.models.placement import DTYPES
from unipic.models.text import T5_LENGTH, load_text_encoders
from unipic.train.batches import Pictures, cache_of
from unipic.train.cache import Made
from unipic.train.dit import DitConfig, DitStage, trained_transformer, transformer_component
from unipic.train.lora import LoraConfig, save_lora
from unipic.train.optim import Tensors
from unipic.train.processes import Processes
from unipic.types import Condition


class KontextConfig(DitConfig):
    """model: the folder or name to start from. lora: of the DiT, in place of all its weights.

    max_sequence_length: T5's tokens for a text, as in diffusers. Sampling pads to 256, or as the tokenizer says; where
    texts are short, most of training needs fewer.
    """

    stage: Literal["kontext"]
    model: str = "tiny-kontext"
    lora: LoraConfig | None = None
    max_sequence_length: Annotated[int, Field(ge=1, le=T5_LENGTH)] = T5_LENGTH


class KontextStage(DitStage):
    """The transformer of a Kontext folder, in training."""

    def __init__(self, config: KontextConfig) -> None:
        super().__init__(config, "kontext", "a Kontext model")

    def place(self, processes: Processes) -> None:
        config, self.device = self.config, processes.device
        self.transformer = trained_transformer(
            self.folder,
            config.lora,
            seed=config.seed,
            checkpointing=config.gradient_checkpointing,
            processes=processes,
        )
        self.place_vae(processes)
        self.text = load_text_encoders(self.folder, processes.dtype)
        for encoder in self.text.modules():
            encoder.to(self.device)
        self.conditions = cache_of(config.data, f"text {self.scope} {processes.dtype} {config.max_sequence_length}")

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        return {"transformer": self.transformer, **self.teachers}

    def encode(self, texts: Sequence[str], micro: Pictures) -> Condition:
        """Of samples that come again, each text is encoded once."""

        length = self.config.max_sequence_length

        def make(missing: list[int]) -> list[Made]:
            made = self.text.encode([texts[i] for i in missing], length)
            return list(zip(made.tokens, made.pooled, strict=True))

        keys = [text if lasts else None for text, lasts in zip(texts, micro.lasting, strict=True)]
        return Condition(*self.conditions.get(keys, make, self.device))

    def export(self, folder: Path, weights: Tensors) -> None:
        config, components = self.config, components_of(self.folder)
        components["transformer"] = transformer_component(self.folder, weights, config.lora, DTYPES[config.save_dtype])
        if config.lora is not None:
            save_lora(folder.with_name("lora"), weights["transformer"], config.lora)
        assemble(folder, components, self.folder.defaults)  # last: a run whose model is there is finished
