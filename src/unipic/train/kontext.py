"""Kontext: the DiT learns to generate and, from reference latents, to edit (paper §3.1). All else is frozen.

With tasks [generate] alone the same stage gives `align` its text-to-image base. Full fine-tuning, or a LoRA, which is
exported beside the merged model. The paper does not say how conditions are dropped: here each sample's text becomes
empty with probability `drop_text`, its references stay, as the sampler's negative branch keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from unipic.data.source import Example
from unipic.models.assembly import assemble, components_of
from unipic.models.find import find_model
from unipic.models.placement import DTYPES
from unipic.models.text import load_text_encoders
from unipic.models.vae import VAE, load_vae
from unipic.train.batches import Batches, DataConfig, Pictures, Share, cache_of
from unipic.train.cache import Made
from unipic.train.dit import Latents, trained_transformer, transformer_component, velocity_of, wrong_kind
from unipic.train.flow_loss import TimesConfig, flow_losses, times
from unipic.train.log import Shown
from unipic.train.loop import RunConfig
from unipic.train.lora import LoraConfig, save_lora
from unipic.train.optim import Tensors
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.showing import ShowConfig, draw_examples, fixed_examples, shown
from unipic.types import Condition


class KontextConfig(RunConfig):
    """model: the folder or name to start from. save_dtype: of the trained weights on disk."""

    stage: Literal["kontext"]
    model: str = "tiny-kontext"
    data: DataConfig = DataConfig()
    times: TimesConfig = TimesConfig()
    drop_text: Share = 0.1
    lora: LoraConfig | None = None
    show: ShowConfig = ShowConfig()
    save_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


class KontextStage:
    """The transformer of a Kontext folder, in training."""

    def __init__(self, config: KontextConfig) -> None:
        self.config = config
        self.folder = find_model(config.model)
        if self.folder.kind != "kontext":
            raise wrong_kind(config.model, "a Kontext model")
        self.batches = Batches(config.data, config.seed, config.batch, config.micro_batch)

    def place(self, processes: Processes) -> None:
        config, self.device = self.config, processes.device
        self.transformer = trained_transformer(
            self.folder,
            config.lora,
            seed=config.seed,
            checkpointing=config.gradient_checkpointing,
            processes=processes,
        )
        self.vae = VAE(load_vae(self.folder, processes.dtype).to(self.device))
        self.text = load_text_encoders(self.folder, processes.dtype)
        for encoder in self.text.modules():
            encoder.to(self.device)
        scope = self.folder.weights_hash()
        self.latents = Latents(self.vae, config.data, scope, self.device)
        self.conditions = cache_of(config.data, f"text {scope} {processes.dtype}")

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        return {"transformer": self.transformer}

    def batch(self, step: int, share: range) -> list[Pictures]:
        return self.batches.micros(step, share)

    def losses(self, micro: Pictures, draws: Draws) -> Tensor:
        x0 = self.latents.of(micro)
        noise, t = draws.normal(*x0.shape[1:]), times(self.config.times, draws)
        dropped = (draws.uniform() < self.config.drop_text).tolist()
        texts = ["" if drop else text for drop, text in zip(dropped, micro.texts, strict=True)]
        condition = self.encode(texts, micro.lasting)
        references = self.latents.of_references(micro)
        return flow_losses(velocity_of(self.transformer, condition, references), x0, t, noise)

    def encode(self, texts: Sequence[str], lasting: bool) -> Condition:
        """Conditions of texts; of those that come again, each is encoded once."""

        def make(missing: list[int]) -> list[Made]:
            made = self.text.encode([texts[i] for i in missing])
            return list(zip(made.tokens, made.pooled, strict=True))

        return Condition(*self.conditions.get(texts if lasting else [None] * len(texts), make, self.device))

    def show(self) -> list[Shown]:
        found: list[Shown] = []
        for examples in fixed_examples(self.batches, self.config.show.count):
            drawn = draw_examples(examples, self.config.show, self.transformer, self.vae, self._pair, self.config.seed)
            found += shown(examples, drawn)
        return found

    def _pair(self, examples: Sequence[Example]) -> tuple[Condition, Condition]:
        return self.encode([e.text for e in examples], True), self.encode([""] * len(examples), True)

    def export(self, folder: Path, weights: Tensors) -> None:
        config, components = self.config, components_of(self.folder)
        components["transformer"] = transformer_component(self.folder, weights, config.lora, DTYPES[config.save_dtype])
        if config.lora is not None:
            save_lora(folder.with_name("lora"), weights["transformer"], config.lora)
        assemble(folder, components, self.folder.defaults)  # last: a run whose model is there is finished
