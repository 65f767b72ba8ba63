"""What autograd keeps and which operations are dispatched, on tensors without memory, for step_costs.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def count(modules: Sequence[nn.Module], trained: bool = False) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad or not trained)


def weight_bytes(modules: Sequence[nn.Module]) -> int:
    return sum(p.numel() * p.itemsize for module in modules for p in module.parameters())


def without_memory(module: nn.Module) -> None:
    """Give a module of the meta device tensors that claim to be on the CPU, where autocast has its rules."""
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            part.register_parameter(name, nn.Parameter(torch.empty_like(p, device="cpu"), p.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty_like(buffer, device="cpu"))


class Saved:
    """Storages that autograd keeps for the backward, the models' own aside."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        own = (t for module in modules for t in itertools.chain(module.parameters(), module.buffers()))
        self.own = {t.untyped_storage()._cdata for t in own}
        self.kept: dict[int, torch.UntypedStorage] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.kept[storage._cdata] = storage
        return tensor

    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.kept.values())


def norms_in_float32(module: nn.Module) -> None:
    """What autocast does on a GPU, and does not on a CPU, whose rules the counting otherwise goes by."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def attention_backward(
    grad: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, q, k, v))


def counter() -> FlopCounterMode:
    """A multiplication with its addition is two operations. torch's table lacks the CPU's fused attention."""
    fused = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=fused)


def operations(work: Callable[[], Any]) -> int:
    with counter() as flops:
        work()
    return flops.get_total_flops()
