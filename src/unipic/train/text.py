"""Stand-in for CLIP-L, CLIP-G and T5: tiny text encoders, trained to tell which picture a text belongs to.

A contrastive loss (CLIP's, symmetric) between each encoder's summary of a text and a small picture encoder, which is
thrown away afterwards. It sees the picture to be drawn and, for an edit, the picture before; so instructions are learnt
as prompts are. Summaries: the CLIPs' pooled projections, and the mean of T5's states.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from unipic.errors import BadInput
from unipic.models.assembly import Changed, assemble, components_of
from unipic.models.find import find_model
from unipic.models.text import load_text_encoders
from unipic.train.batches import Batches, DataConfig, Pictures, pictures_of
from unipic.train.dit import wrong_kind
from unipic.train.log import Shown
from unipic.train.loop import RunConfig
from unipic.train.optim import Tensors
from unipic.train.processes import Processes
from unipic.train.randomness import Draws

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
EMBEDDING = 64


class TextConfig(RunConfig):
    """show_batch: texts and pictures among which each must find its own."""

    stage: Literal["text"]
    model: str = "tiny-kontext"
    data: DataConfig = DataConfig()
    show_batch: Annotated[int, Field(ge=1)] = 64


class PictureEncoder(nn.Module):
    """B×6×H×W (a picture, and what it was before or nothing) → three unit vectors a sample."""

    def __init__(self) -> None:
        super().__init__()
        widths = (6, 32, 64, 64, 64)
        pairs = pairwise(widths)
        self.layers = nn.Sequential(
            *(layer for a, b in pairs for layer in (nn.Conv2d(a, b, 4, 2, 1), nn.GroupNorm(8, b), nn.SiLU())),
            nn.AdaptiveAvgPool2d((4, 4)),
            nn.Flatten(),
            nn.Linear(64 * 16, 3 * EMBEDDING),
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = (normalize(part, dim=-1) for part in self.layers(pictures).chunk(3, dim=-1))
        return a, b, c


class Summaries(nn.Module):
    """From what each text encoder says of a text to a unit vector; and the sharpness of their comparison."""

    def __init__(self, clip: int, t5: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            [nn.Linear(clip, EMBEDDING), nn.Linear(clip, EMBEDDING), nn.Linear(t5, EMBEDDING)]
        )
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, said: list[Tensor]) -> list[Tensor]:
        return [normalize(project(x), dim=-1) for project, x in zip(self.projections, said, strict=True)]


class TextStage:
    """The three text encoders of a Kontext folder, in training."""

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self.batches = Batches(config.data, config.seed, config.batch, config.micro_batch)
        self.folder = find_model(config.model)
        if self.folder.kind != "kontext":
            raise wrong_kind(config.model, "a Kontext model")
        if config.micro_batch not in (None, config.batch):
            what = "a contrastive loss compares all of a batch with each other"
            raise BadInput(what, f"micro_batch: {config.micro_batch}", "leave micro_batch out, or lower batch")

    def place(self, processes: Processes) -> None:
        self.device = processes.device
        self.text = load_text_encoders(self.folder, torch.float32)
        for encoder in self.text.modules():
            encoder.to(self.device).requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.pictures = PictureEncoder().to(self.device)
            self.summaries = Summaries(self.text.clips[0].config.projection_dim, self.text.t5.config.d_model)
            self.summaries.to(self.device)

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        encoders = dict(zip(ENCODERS, self.text.modules(), strict=True))
        return {**encoders, "pictures": self.pictures, "summaries": self.summaries}

    def batch(self, step: int, share: range) -> list[Pictures]:
        return self.batches.micros(step, share)

    def losses(self, micro: Pictures, draws: Draws) -> Tensor:
        logits = self.similarities(micro)
        wanted = torch.arange(len(micro.texts), device=self.device)
        both = [cross_entropy(side, wanted, reduction="none") for one in logits for side in (one, one.T)]
        return torch.stack(both).mean(0)

    def similarities(self, micro: Pictures) -> list[Tensor]:
        """For each encoder B×B: texts in rows, pictures in columns."""
        condition = self.text.read(micro.texts)
        first, second = condition.pooled.chunk(2, dim=-1)
        short = self.text.clip_tokenizers[0].model_max_length
        texts = self.summaries([first, second, condition.tokens[:, short:].mean(1)])
        after = micro.pixels.to(self.device).float() / 127.5 - 1
        before = (
            micro.references[0].to(self.device).float() / 127.5 - 1 if micro.references else torch.zeros_like(after)
        )
        pictures = self.pictures(torch.cat([after, before], dim=1))
        scale = self.summaries.log_scale.clamp(max=4.6).exp()  # 100, as CLIP
        return [scale * t @ p.T for t, p in zip(texts, pictures, strict=True)]

    @torch.no_grad()
    def show(self) -> list[Shown]:
        """For each text the picture that T5 finds for it, and whether all three encoders find its own."""
        found: list[Shown] = []
        for step in range(len(self.config.data.tasks)):
            examples = self.batches.examples(step, range(min(self.config.show_batch, self.config.batch)))
            micro = pictures_of(examples)
            chosen = torch.stack([one.argmax(1) for one in self.similarities(micro)], dim=1).tolist()
            found += [
                Shown(e.text, (*e.references, examples[js[-1]].picture), all(examples[j].text == e.text for j in js))
                for e, js in zip(examples, chosen, strict=True)
            ]
        return found

    def export(self, folder: Path, weights: Tensors) -> None:
        components = components_of(self.folder)
        for name in ENCODERS:
            components[name] = Changed.over(self.folder, name, weights[name], torch.float32)
        assemble(folder, components, self.folder.defaults)
