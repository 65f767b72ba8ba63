"""The paper's stages at full size, with random weights, for step_costs.py: what they train, and losses of a batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from unipic.models.kontext import KontextTransformer
from unipic.models.metaquery import Conditioner, MetaQuery
from unipic.models.mllm import MLLM
from unipic.train.dit import velocity_of
from unipic.train.flow_loss import flow_losses
from unipic.train.lora import LoraConfig, add_lora
from unipic.types import Condition

PUBLISHED = Path(__file__).parents[1] / "tests" / "published"
BF16 = torch.bfloat16
CLIP, T5 = 77, 256  # tokens
PROMPT = 64  # tokens of a prompt to the language model, beside those of its pictures


@dataclass(frozen=True)
class Case:
    """stage: kontext, align or joint. side: pixels of a square picture. lora: of the DiT, rank 32."""

    stage: str
    side: int = 512
    edit: bool = False
    lora: bool = False
    checkpointing: bool = False

    @property
    def trains(self) -> str:
        parts = {"kontext": "DiT", "align": "connector", "joint": "connector and DiT"}
        return "LoRA r 32" if self.lora else parts[self.stage]

    @property
    def names(self) -> list[str]:
        return [
            self.stage,
            self.trains,
            f"{self.side}²",
            "edit" if self.edit else "text-to-image",
            "yes" if self.checkpointing else "no",
        ]


def settings(name: str) -> dict[str, Any]:
    """The published JSON of a component, without labels."""
    stored = json.loads((PUBLISHED / name / "config.json").read_text())
    return {key: value for key, value in stored.items() if not key.startswith("_")}


class Prompted(MLLM):
    """Qwen2.5-VL whose prompts have a given length, in place of a tokenizer's."""

    def __init__(self, model: Any, image_tokens: int) -> None:
        self.model, self.image_tokens = model, image_tokens

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(self.model.device)

    @torch.no_grad()
    def _prompts(self, texts: Sequence[str], pictures: Sequence[Sequence[Any]]) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(len(texts), PROMPT + self.image_tokens, dtype=torch.long, device=self.device)
        return self.model.get_input_embeddings()(ids), torch.ones_like(ids)


class Models:
    """The models of a case on a device: what its stage trains in float32, all else in bf16, as it loads them.

    As `KontextStage`, `AlignStage` and `JointStage` place them, with random weights.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        self.conditioner: Conditioner | None = None
        trains_dit = case.stage != "align"
        with device:
            self.transformer = KontextTransformer(**settings("kontext/transformer"))
            if case.stage != "kontext":
                self.conditioner = Conditioner(**settings("metaquery/conditioner")).train()
                self.mllm = Prompted(qwen(), (case.side // 32) ** 2 if case.edit else 0)
        self.transformer.requires_grad_(trains_dit and not case.lora)
        if case.lora:
            self.transformer.to(BF16)
            add_lora(self.transformer, LoraConfig(), seed=0)
            for parameter in self.transformer.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        if not trains_dit:
            self.transformer.to(BF16).eval()
        if case.checkpointing:
            self.transformer.enable_gradient_checkpointing()
            if self.conditioner is not None:
                self.conditioner.connector.gradient_checkpointing = True

    @property
    def trained(self) -> dict[str, nn.Module]:
        """As the stages name them."""
        found: dict[str, nn.Module] = {} if self.case.stage == "align" else {"transformer": self.transformer}
        return found if self.conditioner is None else found | {"conditioner": self.conditioner}

    def modules(self) -> list[nn.Module]:
        return [self.transformer, *([] if self.conditioner is None else [self.conditioner, self.mllm.model])]

    def losses(self, batch: int) -> Tensor:
        """As the stages' `losses`, from latents and, in Kontext, from the text encoders' states."""
        device, dit = self.transformer.device, self.transformer.config
        x0, noise, reference = torch.randn(3, batch, 16, self.case.side // 8, self.case.side // 8, device=device)
        references = [reference] if self.case.edit else []
        if self.conditioner is None:
            tokens = torch.randn(batch, CLIP + T5, dit.joint_attention_dim, dtype=BF16, device=device)
            condition = Condition(tokens, torch.randn(batch, dit.pooled_projection_dim, dtype=BF16, device=device))
        else:
            condition = self.conditioner(
                MetaQuery(self.mllm, self.conditioner).query_states([""] * batch, [()] * batch)
            )
        t = torch.rand(batch, device=device)
        return flow_losses(velocity_of(self.transformer, condition, references), x0, t, noise)


def qwen() -> Any:
    """Qwen2.5-VL in bf16, frozen."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(BF16)
    try:
        config = Qwen2_5_VLConfig.from_dict(settings("metaquery/mllm"))
        return Qwen2_5_VLForConditionalGeneration(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
