"""What align and joint share: a frozen language model speaks through queries and connector to the DiT (paper §3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL.Image import Image, fromarray
from torch import Tensor

from unipic.models.metaquery import Conditioner, MetaQuery
from unipic.models.mllm import MLLM
from unipic.train.batches import Pictures
from unipic.train.dit import DitConfig, DitStage
from unipic.types import Condition

Reference = Literal["mllm", "dit", "both"]


class MetaQueryConfig(DitConfig):
    """reference: who sees the picture to be edited (paper, Table 2; published: both)."""

    reference: Reference = "both"


class MetaQueryStage(DitStage):
    """The conditions of a MetaQuery model in training."""

    conditioner: Conditioner
    mllm: MLLM

    def encode(self, texts: Sequence[str], micro: Pictures) -> Condition:
        seen = _pictures(micro) if self.config.reference != "dit" else [()] * len(texts)
        return MetaQuery(self.mllm, self.conditioner).read(texts, seen)

    def references(self, micro: Pictures) -> list[Tensor]:
        return super().references(micro) if self.config.reference != "mllm" else []


def _pictures(micro: Pictures) -> list[list[Image]]:
    """The references of each sample, as the language model's image processor wants them."""
    columns = [pixels.permute(0, 2, 3, 1).numpy() for pixels in micro.references]
    return [[fromarray(np.ascontiguousarray(column[i])) for column in columns] for i in range(len(micro.texts))]
