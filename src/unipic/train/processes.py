"""The processes of one run: a single one, or those that torchrun started, with the weights sharded among them (FSDP2).

Only tensors travel between them: torch's `*_object` collectives pickle.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from unipic.errors import BadInput
from unipic.models.placement import DTYPES, Placement
from unipic.train.optim import Tensors
from unipic.train.sharding import whole

_FORWARDS = ("ask",)  # methods beside `forward` that read a model's weights
HEARD = 2.0  # seconds in which a process can say why it failed: as soon as one has ended, torchrun ends all


class Processes:
    """This process among all. device: where it computes. dtype: in what; weights, moments and averages stay float32.

    patience: how long one may wait for the others; torch's own if None. They meet once: what torchrun keeps of their
    meeting is in the way of another, so that all which a command does is done by the same `Processes`.
    """

    def __init__(self, device: str = "auto", dtype: str = "auto", patience: timedelta | None = None) -> None:
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
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=patience)
        if not self.first:
            warnings.simplefilter("ignore")  # all would say the same

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
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh(self.device.type, (self.count,))
        for module in modules.values():
            for block in _blocks(module):
                fully_shard(block, mesh=mesh)
            # the outermost weights too: gathered ones that stayed would hide what is put in their place between steps
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
            for name in _FORWARDS:
                if hasattr(module, name):
                    register_fsdp_forward_method(module, name)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all processes do by themselves, and if one of them fails, none goes on: that one raises, others end.

        Nothing within may wait for other processes.
        """
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            if self.count == 1:
                raise
            failure = error
        codes = self.gathered([_exit_code(failure)])
        if not any(codes):
            return
        speaker = next(rank for rank, code in enumerate(codes) if code)
        try:
            if failure is not None and speaker == self.rank:
                raise failure
        finally:
            del failure  # it holds this frame, and this frame it
        time.sleep(HEARD)
        raise SystemExit(int(codes[speaker]))

    def gathered(self, numbers: Sequence[float]) -> list[float]:
        """Those of all processes, in their order; each must give equally many."""
        if self.count == 1:
            return list(numbers)
        own = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own)
        return [number for part in parts for number in part.tolist()]

    def any(self, flag: bool) -> bool:
        """Whether it holds in any process."""
        return any(self.gathered([flag]))

    def whole(self, files: Tensors) -> Tensors:
        """In the first process every tensor whole and on the CPU; all processes must ask."""
        found: Tensors = {file: {} for file in files}
        for file, named in files.items():
            for name, tensor in named.items():
                full = whole(tensor)
                if self.first:
                    found[file][name] = full.detach().cpu()
        return found

    def close(self) -> None:
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a model: the members of its outermost lists."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)


def _exit_code(failure: BaseException | None) -> int:
    if failure is None:
        return 0
    code = failure.code if isinstance(failure, SystemExit) else getattr(failure, "exit_code", 1)
    return code if isinstance(code, int) else 1
