"""Joint: connector, queries and DiT learn generation and editing together; the language model stays (paper §3.1).

It starts from align's MetaQuery folder, with the transformer of a Kontext run put in its DiT's place. `tune` says what
is trained (paper, Table 3), `reference` who sees the picture to be edited (Table 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import model_validator
from torch import nn

from unipic.config import Strict
from unipic.errors import BadInput
from unipic.models.assembly import Changed, assemble, components_of
from unipic.models.checkpoint import read_component
from unipic.models.find import find_mllm, find_model
from unipic.models.folder import ModelFolder
from unipic.models.kontext import load_transformer
from unipic.models.metaquery import load_conditioner
from unipic.models.mllm import load_mllm
from unipic.models.placement import DTYPES
from unipic.train.dit import trained_transformer, transformer_component, wrong_kind
from unipic.train.lora import LoraConfig, save_lora
from unipic.train.metaquery import MetaQueryConfig, MetaQueryStage
from unipic.train.optim import Tensors
from unipic.train.processes import Processes


class TuneConfig(Strict):
    connector: bool = True
    dit: bool = True

    @model_validator(mode="after")
    def something_is_trained(self) -> TuneConfig:
        if not (self.connector or self.dit):
            raise ValueError("nothing is trained: tune the connector, the dit, or both")
        return self


class JointConfig(MetaQueryConfig):
    """model: a MetaQuery folder. transformer: the folder whose DiT is taken instead of that model's own.

    mllm: where it is not inside the model. lora: of the DiT, in place of all its weights.
    """

    stage: Literal["joint"]
    model: str = "tiny"
    mllm: str | None = None
    transformer: str | None = None
    tune: TuneConfig = TuneConfig()
    lora: LoraConfig | None = None


class JointStage(MetaQueryStage):
    def __init__(self, config: JointConfig) -> None:
        super().__init__(config, "metaquery", "a MetaQuery model, such as align makes")
        self.mllm_folder = find_mllm(self.folder, config.mllm)
        self.dit_folder = self.folder if config.transformer is None else find_model(config.transformer)
        _check_fits(self.dit_folder, self.folder)
        self.check_sizes()
        if config.lora is not None and not config.tune.dit:
            raise BadInput("a LoRA is of the DiT, which is not trained", "lora, tune.dit: false", "leave one out")

    def place(self, processes: Processes) -> None:
        config, device, dtype = self.config, processes.device, processes.dtype
        if self.mllm_folder is None:
            raise wrong_kind(config.model, "a model with its language model; give mllm")
        if config.tune.dit:
            self.transformer = trained_transformer(
                self.dit_folder,
                config.lora,
                seed=config.seed,
                checkpointing=config.gradient_checkpointing,
                processes=processes,
            )
        else:
            self.transformer = load_transformer(self.dit_folder, dtype)
            self.transformer.to(device)
            if config.gradient_checkpointing:
                self.transformer.enable_gradient_checkpointing()
        self.place_vae(processes)
        self.mllm = load_mllm(self.mllm_folder, dtype, device)
        self.mllm.model.to(device)
        self.conditioner = load_conditioner(self.folder, torch.float32 if config.tune.connector else dtype).to(device)
        self.conditioner.requires_grad_(config.tune.connector)
        self.conditioner.connector.gradient_checkpointing = config.gradient_checkpointing

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        modules: dict[str, nn.Module] = {"conditioner": self.conditioner, "transformer": self.transformer}
        chosen = {"conditioner": self.config.tune.connector, "transformer": self.config.tune.dit}
        return {name: module for name, module in modules.items() if chosen[name]} | dict(self.teachers)

    def export(self, folder: Path, weights: Tensors) -> None:
        dtype, components = DTYPES[self.config.save_dtype], components_of(self.folder)
        components["transformer"] = self.dit_folder
        if self.mllm_folder is not None:
            components["mllm"] = self.mllm_folder
        if "conditioner" in weights:
            components["conditioner"] = Changed.over(self.folder, "conditioner", weights["conditioner"], dtype)
        if "transformer" in weights:
            components["transformer"] = transformer_component(self.dit_folder, weights, self.config.lora, dtype)
            if self.config.lora is not None:
                save_lora(folder.with_name("lora"), weights["transformer"], self.config.lora)
        assemble(folder, components, self.defaults)


def _check_fits(dit: ModelFolder, model: ModelFolder) -> None:
    """Raise BadInput if a folder's DiT does not understand a model's connector, or draws other latents."""
    for key in ("joint_attention_dim", "pooled_projection_dim"):
        own, other = (folder.config("transformer").get(key) for folder in (model, dit))
        if own != other:
            what = f"the connector speaks to a DiT whose {key} is {own}, and this one's is {other}"
            raise BadInput(what, f"transformer: {dit.name}", "give the DiT that align spoke to, trained on")
    if not _same_autoencoder(dit, model):
        what = "the two models have different autoencoders: what this DiT draws would not be decoded"
        raise BadInput(what, f"transformer: {dit.name}", "give one that was trained on the same latents")


def _same_autoencoder(a: ModelFolder, b: ModelFolder) -> bool:
    """Whether latents of one are latents of the other; their files may differ in precision."""
    if any(a.config("vae").get(key) != b.config("vae").get(key) for key in ("shift_factor", "scaling_factor")):
        return False
    if [a.hashes.sha256(p) for p in a.weights("vae")] == [b.hashes.sha256(p) for p in b.weights("vae")]:
        return True
    one, other = (read_component(folder, "vae", torch.float32) for folder in (a, b))
    return one.keys() == other.keys() and all(
        one[key].shape == other[key].shape and torch.allclose(one[key], other[key], rtol=1e-2, atol=1e-3) for key in one
    )
