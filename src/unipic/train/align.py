"""Align: connector and queries learn to speak to a text-to-image DiT that stays as it is (paper §3.1, §4.1).

It starts from a text-to-image Kontext run and a language model, and ends as a MetaQuery folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from unipic.config import Strict
from unipic.models.assembly import Changed, assemble
from unipic.models.find import find_mllm
from unipic.models.folder import ModelFolder
from unipic.models.kontext import load_transformer
from unipic.models.metaquery import Conditioner
from unipic.models.mllm import load_mllm
from unipic.models.placement import DTYPES
from unipic.train.batches import PromptsConfig
from unipic.train.dit import wrong_kind
from unipic.train.metaquery import MetaQueryConfig, MetaQueryStage
from unipic.train.optim import Tensors
from unipic.train.processes import Processes

Count = Annotated[int, Field(ge=1)]


class ConnectorConfig(Strict):
    """The published sizes (paper §3.1: 24 layers, about 1 B parameters, 256 queries)."""

    hidden_size: Count = 1536
    intermediate_size: Count = 8960
    num_hidden_layers: Count = 24
    num_attention_heads: Count = 24
    num_queries: Count = 256


class AlignConfig(MetaQueryConfig):
    """model: a Kontext folder, trained on text-to-image. mllm: Qwen2.5-VL's folder or hub name."""

    stage: Literal["align"]
    model: str
    mllm: str
    connector: ConnectorConfig = ConnectorConfig()
    data: PromptsConfig = PromptsConfig()


class AlignStage(MetaQueryStage):
    def __init__(self, config: AlignConfig) -> None:
        super().__init__(config, "kontext", "a Kontext model")
        self.mllm_folder = find_mllm(self.folder, config.mllm)

    def place(self, processes: Processes) -> None:
        device, dtype = processes.device, processes.dtype
        if self.mllm_folder is None:
            raise wrong_kind(self.config.mllm, "a language model")
        self.transformer = load_transformer(self.folder, dtype)
        self.transformer.to(device)
        self.place_vae(processes)
        self.mllm = load_mllm(self.mllm_folder, dtype, device)
        self.mllm.model.to(device)
        shape = self.folder.config("transformer")
        self.conditioner = new_conditioner(
            self.config.connector,
            llm=self.mllm.width,
            tokens=shape["joint_attention_dim"],
            pooled=shape["pooled_projection_dim"],
            seed=self.config.seed,
        ).to(device)
        if self.config.gradient_checkpointing:
            self.conditioner.connector.gradient_checkpointing = True
            self.transformer.enable_gradient_checkpointing()

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        return {"conditioner": self.conditioner, **self.teachers}

    def export(self, folder: Path, weights: Tensors) -> None:
        dtype = DTYPES[self.config.save_dtype]
        tensors = {name: t.to(dtype) for name, t in weights["conditioner"].items()}
        components: dict[str, ModelFolder | Changed] = dict.fromkeys(("transformer", "vae", "scheduler"), self.folder)
        components["conditioner"] = Changed(self.conditioner.config, tensors)
        if self.mllm_folder is not None:
            components["mllm"] = self.mllm_folder
        assemble(folder, components, self.defaults)


def new_conditioner(config: ConnectorConfig, *, llm: int, tokens: int, pooled: int, seed: int) -> Conditioner:
    """A conditioner with random weights: linear layers as torch draws them, queries of the size of embeddings."""
    settings = config.model_dump(exclude={"num_queries"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conditioner = Conditioner(settings, config.num_queries, llm, pooled, tokens)
        nn.init.normal_(conditioner.meta_queries, std=llm**-0.5)
    return conditioner
