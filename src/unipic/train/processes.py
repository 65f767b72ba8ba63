"""The processes of one run: a single one, or those that torchrun started, with the weights sharded among them (FSDP2).

Only tensors travel between them: torch's `*_object` collectives pickle.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unipic.errors import BadInput
from unipic.models.placement import DTYPES, Placement
from unipic.train.optim import Tensors


class Processes:
    """This process among all. device: where it computes. dtype: in what; weights, moments and averages stay float32."""

    def __init__(self, device: str = "auto", dtype: str = "auto") -> None:
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if device == "auto" and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        placement = Placement.choose(device, dtype)
        self.device, self.dtype = placement.device, placement.dtype
        if self.dtype == DTYPES["fp16"]:
            raise BadInput("training in fp16 would lose small gradients", "dtype: fp16", "use bf16 or fp32")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Which samples of a batch are this process's."""
        each = batch // self.count
        return range(self.rank * each, (self.rank + 1) * each)

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def shard(self, modules: Mapping[str, nn.Module]) -> None:
        """Spread weights that are trained over all processes, block by block."""
        if self.count == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.count,))
        for module in modules.values():
            for child in module.modules():
                if isinstance(child, nn.ModuleList):
                    for block in child:
                        if any(p.requires_grad for p in block.parameters()):
                            fully_shard(block, mesh=mesh)
            fully_shard(module, mesh=mesh)

    def sum(self, *numbers: float) -> list[float]:
        """Each number summed over all processes."""
        if self.count == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(n) for n in tensor]

    def any(self, flag: bool) -> bool:
        """Whether it holds in any process."""
        return self.sum(float(flag))[0] > 0

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()

    def whole(self, files: Tensors) -> Tensors:
        """Every tensor whole and on the CPU; all processes must ask."""
        return {file: {name: _whole(t) for name, t in named.items()} for file, named in files.items()}

    def put(self, tensor: Tensor, like: Tensor) -> Tensor:
        """A whole tensor in another's place, precision and sharding."""
        tensor = tensor.to(like.device, like.dtype)
        if not hasattr(like, "device_mesh"):
            return tensor
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor, like.device_mesh, like.placements)  # type: ignore[attr-defined]

    def close(self) -> None:
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _whole(tensor: Tensor) -> Tensor:
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu()
