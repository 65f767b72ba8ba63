"""UniPic2-MetaQuery's conditioner: what the multimodal language model says through learnable queries → Condition.

The queries are appended to the prompt; the language model's last hidden states at their places pass a bidirectional
transformer, the connector, and are projected to the DiT's token width and, averaged, to its pooled width (paper §3.1).
Keys as published: meta_queries, projector_1…3, connector.layers.N.*. A stored wish for flash-attention is a hint:
attention is torch's own, which picks the best kernel that the machine has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from unipic.errors import BadModel
from unipic.models.checkpoint import describing_errors, fill, read_component
from unipic.models.folder import ModelFolder
from unipic.models.mllm import MLLM
from unipic.types import GENERATE_PREFIX, Condition


class SelfAttention(nn.Module):
    """Bidirectional multi-head attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        out: Tensor = self.out_proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(gelu(self.fc1(x), approximate="tanh"))
        return out


class ConnectorLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, hidden: int, heads: int, eps: float) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.self_attn, self.mlp = SelfAttention(width, heads), MLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Connector(nn.Module):
    """The layers between two projections; nothing is normalised after the last."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        hidden_act: str = "gelu_pytorch_tanh",
        layer_norm_eps: float = 1e-6,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden_act != "gelu_pytorch_tanh" or attention_dropout:
            raise ValueError(f"connector with {hidden_act=}, {attention_dropout=}: only gelu_pytorch_tanh, no dropout")
        if hidden_size % num_attention_heads:
            raise ValueError(f"connector width {hidden_size} is not divisible by {num_attention_heads} heads")
        self.gradient_checkpointing = False
        self.layers = nn.ModuleList(
            ConnectorLayer(hidden_size, intermediate_size, num_attention_heads, layer_norm_eps)
            for _ in range(num_hidden_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            save_memory = self.gradient_checkpointing and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if save_memory else layer(x)
        return x


class Conditioner(nn.Module):
    """Queries, connector and projections. config: the published `conditioner/config.json`."""

    def __init__(
        self,
        connector_config: Mapping[str, Any],
        num_queries: int = 256,
        llm_hidden_size: int = 3584,
        pooled_projection_dim: int = 2048,
        joint_attention_dim: int = 4096,
    ) -> None:
        super().__init__()
        settings = {k: v for k, v in connector_config.items() if k not in ("_attn_implementation", "model_type")}
        self.config = {
            "_class_name": "StableDiffusion3Conditioner",
            "connector_config": dict(connector_config),
            "num_queries": num_queries,
            "llm_hidden_size": llm_hidden_size,
            "pooled_projection_dim": pooled_projection_dim,
            "joint_attention_dim": joint_attention_dim,
        }
        width = settings["hidden_size"]
        self.connector = Connector(**settings)
        self.projector_1 = nn.Linear(llm_hidden_size, width)
        self.projector_2 = nn.Linear(width, pooled_projection_dim)
        self.projector_3 = nn.Linear(width, joint_attention_dim)
        self.meta_queries = nn.Parameter(torch.zeros(num_queries, llm_hidden_size))

    def forward(self, hidden: Tensor) -> Condition:
        """hidden: B×num_queries×llm_hidden_size, the language model's states at the queries."""
        x = self.connector(self.projector_1(hidden))
        return Condition(tokens=self.projector_3(x), pooled=self.projector_2(x.mean(dim=1)))

    def ask(self, states: Callable[[], Tensor]) -> Condition:
        """The same, of states that are computed within: queries that are sharded are whole meanwhile."""
        return self.forward(states())


class MetaQuery:
    """A frozen multimodal language model that speaks to the DiT through a conditioner."""

    def __init__(self, mllm: MLLM, conditioner: Conditioner) -> None:
        self.mllm, self.conditioner = mllm, conditioner
        if (mine := conditioner.config["llm_hidden_size"]) != (its := mllm.width):
            raise BadModel(
                f"the conditioner expects a language model of width {mine}, this one has {its}",
                "conditioner/config.json: llm_hidden_size",
                "give the --mllm that the model was trained with",
            )

    def modules(self) -> list[Any]:
        return [self.mllm.model, self.conditioner]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], pictures: Sequence[Image] = ()) -> Condition:
        """Conditions of prompts that share the same pictures (the edit's references; none for generation).

        The prompts are one right-padded batch, as published: prompt and negative prompt go together.
        """
        return self.read(prompts, [pictures] * len(prompts))

    def read(self, prompts: Sequence[str], pictures: Sequence[Sequence[Image]]) -> Condition:
        """The same, with gradients for whoever trains the conditioner. pictures: of each prompt."""
        return self.conditioner.ask(lambda: self.query_states(prompts, pictures))

    def query_states(self, prompts: Sequence[str], pictures: Sequence[Sequence[Image]]) -> Tensor:
        """The language model's hidden states at the queries, B×num_queries×width. pictures: of each prompt."""
        texts = [prompt if own else GENERATE_PREFIX + prompt for prompt, own in zip(prompts, pictures, strict=True)]
        return self.mllm.states_at_queries(texts, pictures, self.conditioner.meta_queries)


def blank_conditioner(folder: ModelFolder) -> Conditioner:
    """The conditioner that a folder describes, without its weights."""
    settings = {k: v for k, v in folder.config("conditioner").items() if not k.startswith("_")}
    with describing_errors(folder.root / "conditioner"), torch.device("meta"):
        return Conditioner(**settings)


def load_conditioner(folder: ModelFolder, dtype: torch.dtype) -> Conditioner:
    """The conditioner of a published MetaQuery folder."""
    blank = blank_conditioner(folder)
    conditioner: Conditioner = fill(blank, read_component(folder, "conditioner", dtype), folder.root / "conditioner")
    return conditioner
