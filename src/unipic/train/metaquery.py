"""What align and joint share: a frozen language model speaks through queries and connector to the DiT (paper §3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL.Image import Image, fromarray
from torch import Tensor, nn

from unipic.data.source import Example
from unipic.models.kontext import KontextTransformer
from unipic.models.metaquery import Conditioner, MetaQuery
from unipic.models.mllm import MLLM
from unipic.models.vae import VAE
from unipic.train.batches import Batches, DataConfig, Pictures, Share
from unipic.train.dit import Latents, velocity_of
from unipic.train.flow_loss import TimesConfig, flow_losses, times
from unipic.train.log import Shown
from unipic.train.loop import RunConfig
from unipic.train.randomness import Draws
from unipic.train.showing import ShowConfig, draw_examples, fixed_examples, shown
from unipic.types import Condition

Reference = Literal["mllm", "dit", "both"]


class MetaQueryConfig(RunConfig):
    """reference: who sees the picture to be edited (paper, Table 2; published: both)."""

    data: DataConfig = DataConfig()
    times: TimesConfig = TimesConfig()
    drop_text: Share = 0.1
    reference: Reference = "both"
    show: ShowConfig = ShowConfig()
    save_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


class MetaQueryStage:
    """Losses and pictures of a MetaQuery model in training; what is trained is its stage's to say."""

    config: Any
    batches: Batches
    transformer: KontextTransformer
    conditioner: Conditioner
    mllm: MLLM
    vae: VAE
    latents: Latents
    trained: Mapping[str, nn.Module]

    def batch(self, step: int, share: range) -> list[Pictures]:
        return self.batches.micros(step, share)

    def losses(self, micro: Pictures, draws: Draws) -> Tensor:
        x0 = self.latents.of(micro)
        noise, t = draws.normal(*x0.shape[1:]), times(self.config.times, draws)
        dropped = (draws.uniform() < self.config.drop_text).tolist()
        texts = ["" if drop else text for drop, text in zip(dropped, micro.texts, strict=True)]
        condition = self.encode(texts, _pictures(micro))
        references = self.latents.of_references(micro) if self.config.reference != "mllm" else []
        return flow_losses(velocity_of(self.transformer, condition, references), x0, t, noise)

    def encode(self, texts: Sequence[str], pictures: Sequence[Sequence[Image]]) -> Condition:
        """Conditions of texts, each with its own pictures."""
        seen = pictures if self.config.reference != "dit" else [()] * len(texts)
        return MetaQuery(self.mllm, self.conditioner).read(texts, seen)

    def show(self) -> list[Shown]:
        found: list[Shown] = []
        for examples in fixed_examples(self.batches, self.config.show.count):
            drawn = draw_examples(
                examples,
                self.config.show,
                self.transformer,
                self.vae,
                self._pair,
                self.config.seed,
                self.config.reference != "mllm",
            )
            found += shown(examples, drawn)
        return found

    def _pair(self, examples: Sequence[Example]) -> tuple[Condition, Condition]:
        pictures = [e.references for e in examples]
        return self.encode([e.text for e in examples], pictures), self.encode([""] * len(examples), pictures)


def _pictures(micro: Pictures) -> list[list[Image]]:
    """The references of each sample, as the language model's image processor wants them."""
    columns = [pixels.permute(0, 2, 3, 1).numpy() for pixels in micro.references]
    return [[fromarray(np.ascontiguousarray(column[i])) for column in columns] for i in range(len(micro.texts))]
