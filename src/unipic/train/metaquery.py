"""What align and joint share: a frozen language model speaks through queries and connector to the DiT (paper §3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from PIL.Image import Image, fromarray
from torch import Tensor

from unipic.models.folder import ModelFolder
from unipic.models.metaquery import Conditioner, MetaQuery
from unipic.models.mllm import MLLM
from unipic.train.batches import Pictures, cache_of, scope_of
from unipic.train.cache import Cache, Made
from unipic.train.dit import DitConfig, DitStage, content
from unipic.types import Condition

Reference = Literal["mllm", "dit", "both"]


class MetaQueryConfig(DitConfig):
    """reference: who sees the picture to be edited (paper, Table 2; published: both)."""

    reference: Reference = "both"


class MetaQueryStage(DitStage):
    """The conditions of a MetaQuery model in training."""

    conditioner: Conditioner
    mllm: MLLM
    mllm_folder: ModelFolder | None

    @property
    def defaults(self) -> dict[str, dict[str, Any]]:
        """Of the model's folder, which then says who saw references in training; of answers, the language model's."""
        own, language = self.folder.defaults, self.mllm_folder.defaults if self.mllm_folder else {}
        answers = {"describe": language["describe"]} if "describe" in language else {}
        return {**own, **answers, "edit": {**own.get("edit", {}), "reference_to": self.config.reference}}

    def encode(self, texts: Sequence[str], micro: Pictures) -> Condition:
        """Of samples that come again each is encoded once, if queries and connector stay as they are."""
        seen = micro.references if self.config.reference != "dit" else ()
        model = MetaQuery(self.mllm, self.conditioner)
        if any(p.requires_grad for p in self.conditioner.parameters()):
            return model.read(texts, _pictures(seen, range(len(texts))))

        @torch.no_grad()
        def make(missing: list[int]) -> list[Made]:
            made = model.read([texts[i] for i in missing], _pictures(seen, missing))
            return list(zip(made.tokens, made.pooled, strict=True))

        kept = [lasts and self.conditions.keeps for lasts in micro.lasting]
        keys = [
            f"{[content(pixels[i]) for pixels in seen]} {text}" if keep else None
            for i, (text, keep) in enumerate(zip(texts, kept, strict=True))
        ]
        return Condition(*self.conditions.get(keys, make, self.mllm.device))

    @cached_property
    def conditions(self) -> Cache:
        return cache_of(self.config.data, f"metaquery {self.scope} {self.mllm.dtype}")

    @property
    def scope(self) -> str:
        own = scope_of(self.config.data, self.mllm_folder, "mllm") if self.mllm_folder is not None else ""
        return f"{super().scope} {own}"

    def references(self, micro: Pictures) -> list[Tensor]:
        return super().references(micro) if self.config.reference != "mllm" else []


def _pictures(references: Sequence[Tensor], samples: Sequence[int]) -> list[list[Image]]:
    """The references of these samples, as the language model's image processor wants them."""
    columns = [pixels.permute(0, 2, 3, 1).numpy() for pixels in references]
    return [[fromarray(np.ascontiguousarray(column[i])) for column in columns] for i in samples]
