"""Low-rank adapters in training. By default on q, k, v and output projections of the joint attention, of both streams;
not on the second, image-only attention of SD3.5 (as the reference implementation of Flow-GRPO).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import peft
import torch
from diffusers import StableDiffusion3Pipeline
from peft.tuners.lora import Linear as LoraLinear
from pydantic import Field
from torch import Tensor, nn

from unipic.config import Strict
from unipic.errors import BadInput
from unipic.models.kontext import KontextTransformer

ADAPTER = "default"  # as diffusers names the first
JOINT_ATTENTION = tuple(
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)


class LoraConfig(Strict):
    """The paper's rank 32 and α 64: W + (α/r)·B·A. targets: endings of the adapted layers' names."""

    rank: Annotated[int, Field(ge=1)] = 32
    alpha: Annotated[float, Field(gt=0)] = 64.0
    targets: tuple[str, ...] = JOINT_ATTENTION


def add_lora(transformer: KontextTransformer, config: LoraConfig, seed: int) -> None:
    """Put adapters beside a frozen transformer's layers; they begin without effect, A random by the seed, B zero."""
    layers = dict(transformer.named_modules())
    for target in config.targets:
        fitting = [layer for name, layer in layers.items() if name == target or name.endswith(f".{target}")]
        if not fitting or not all(isinstance(layer, nn.Linear) for layer in fitting):
            what = "no layer ends so" if not fitting else "not only linear layers end so"
            raise BadInput(what, f"lora.targets: {target}", "name linear layers, such as attn.to_q")
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(settings)


@contextmanager
def merged(transformer: nn.Module) -> Iterator[None]:
    """Adapters added into the weights beside them: the same function but for rounding, in fewer products."""
    layers = [layer for layer in transformer.modules() if isinstance(layer, LoraLinear)]
    kept = [layer.base_layer.weight.data for layer in layers]
    with torch.no_grad():
        for layer, weight in zip(layers, kept, strict=True):
            layer.base_layer.weight.data = weight + layer.get_delta_weight(ADAPTER).to(weight.dtype)
    try:
        with without_adapters(transformer):
            yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.base_layer.weight.data = weight


@contextmanager
def folded(transformer: nn.Module) -> Iterator[None]:
    """As `merged`, and adapters have their gradients: of W + (α/r)·B·A in one product, not of three beside each other.

    Not with gradient checkpointing, which would compute the layers anew after the block.
    """
    layers = [layer for layer in transformer.modules() if isinstance(layer, LoraLinear)]
    for layer in layers:
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        with torch.no_grad():
            weight = layer.base_layer.weight + layer.get_delta_weight(ADAPTER)
        layer.forward = partial(_Folded.apply, layer.scaling[ADAPTER], a, b, weight, layer.base_layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # its own, which hid its class's


class _Folded(torch.autograd.Function):
    """x·Wᵀ + bias, of a W that is no parameter but was made of a and b; x: …×in, a: r×in, b: out×r."""

    @staticmethod
    def forward(ctx: Any, scale: float, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, weight, x)
        ctx.scale = scale
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *of: Tensor) -> tuple[Tensor | None, ...]:
        (a, b, weight, x), (of_out,) = ctx.saved_tensors, of
        rows, of_rows = x.flatten(0, -2), of_out.flatten(0, -2)
        of_a = ctx.scale * (of_rows @ b).T @ rows
        of_b = ctx.scale * of_rows.T @ (rows @ a.T)
        return None, of_a, of_b, None, None, of_out @ weight if ctx.needs_input_grad[5] else None


@contextmanager
def without_adapters(transformer: nn.Module) -> Iterator[None]:
    """The model as it was before it had any."""
    layers = [layer for layer in transformer.modules() if isinstance(layer, LoraLinear)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_lora(folder: Path, tensors: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Write adapters as diffusers does: pytorch_lora_weights.safetensors, with α and targets in its header."""
    metadata: dict[str, Any] = {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": list(config.targets),
    }
    StableDiffusion3Pipeline.save_lora_weights(
        folder,
        transformer_lora_layers={name.replace(".default.", "."): t.contiguous() for name, t in tensors.items()},
        transformer_lora_adapter_metadata=metadata,
    )
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes files that only their owner may read
